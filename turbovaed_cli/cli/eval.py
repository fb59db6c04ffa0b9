"""The command `turbovaed eval`."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turbovaed_cli.choices import METRIC_NAMES
from turbovaed_cli.cli import console
from turbovaed_cli.cli.completion import complete_model
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import ComparedModel, Overwrite, Show, check_file, field_option, warn_of_old_ffmpeg
from turbovaed_cli.cli.table import print_tables
from turbovaed_cli.errors import CheckFailedError, SettingsError, UnwritableError
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.system import check_system
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.setting import same, setting
from turbovaed_cli.settings import ClipSettings, EvalSettings

if TYPE_CHECKING:
    from turbovaed_cli.evaluation.scores import EvalResult
    from turbovaed_cli.evaluation.testcard import CardResult
    from turbovaed_cli.models.pair import Pair


@dataclass(frozen=True)
class EvalTask:
    """What is compared, and what is asked of the result."""

    latents: tuple[Path, ...] = setting(
        (), "Latents files to decode in place of videos: the teacher's decode is the reference. Repeat.", "Measuring in detail",
        metavar="FILE", many=True, by_commas=False,
    )  # fmt: skip
    latents_are: str = same(ClipSettings, "latents_are", panel="Measuring in detail")
    latents_shape: tuple[int, ...] = same(ClipSettings, "latents_shape", panel="Measuring in detail")
    compare: tuple[str, ...] = setting(
        (), "Several models on the same clips: --compare A B C.", "Model", metavar="MODEL", many=True, by_commas=False,
        complete=complete_model,
    )  # fmt: skip
    fail_under: tuple[str, ...] = setting(
        (), "Exit with 4 if clips keep less than this: psnr=0.969.", "Measuring", metavar="NAME=X", many=True,
        complete=lambda _: [f"{name}=" for name in METRIC_NAMES],
    )  # fmt: skip
    testcard: bool = setting(False, "Also the test card: drawn clips, which need no --data.", "Measuring")
    speed: bool = setting(False, "Time both decoders in turns, and print the ratio.", "Measuring")
    report: Path | None = setting(
        None, "HTML page to write. A run folder gets one anyway.", "Input and output",
        metavar="FILE",
    )  # fmt: skip


EXAMPLES = """\
turbovaed eval --data videos --testcard
turbovaed eval --data videos --model runs/ltx --fail-under psnr=0.969
turbovaed eval --data videos --compare runs/wan taew2_2.pth --report page.html"""


@command
def evaluate(
    *,
    data: Annotated[Path | None, field_option(ClipSettings, "data")] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Further models of --compare.", rich_help_panel="Model")
    ] = None,
    task: EvalTask,
    overwrite: Overwrite = False,
    model: ComparedModel,
    settings: EvalSettings,
    show: Show,
) -> None:
    """Student and teacher against the source: PSNR, SSIM, LPIPS, ST-LPIPS, rFVD, VMAF, flicker, grid, seam, banding. See docs/metrics.md."""
    check_system("eval")
    others = [*task.compare, *(more or ())]
    _check_task(task, data, settings)
    check_file(task.report, "`report`", overwrite=overwrite)
    for name in filter(None, (model.model, *others)):
        _check_run_folder(Path(name))
    if others and not task.compare:
        raise SettingsError(f"unexpected: {' '.join(others)}", f"--model {others[0]}, or --compare A B for several models")
    from turbovaed_cli.evaluation.evaluate import SPEED_REPEATS, check_eval_settings, met_thresholds
    from turbovaed_cli.evaluation.evaluate import parse_thresholds as parsed

    warn_of_old_ffmpeg()
    thresholds = parsed(task.fail_under)
    has_page = task.report is not None and bool(task.latents or (others and data is not None))
    settings = replace(settings, speed_repeats=SPEED_REPEATS if task.speed or has_page else 0)
    check_eval_settings(settings)
    pairs = _pairs(model, others, settings, show)
    results = _measured(pairs, data, task, settings, thresholds, show)
    cards = _cards(pairs, settings, show) if task.testcard else []
    if has_page:
        from turbovaed_cli.evaluation.costs import with_peaks

        results = with_peaks(results, pairs, settings.device, show.report)
    _show(results, cards, data, show, is_comparison=bool(others))
    _keep(results, cards, pairs, data, task, settings, show, has_page=has_page)
    for line in met_thresholds(results, thresholds):
        console.note(line)
    finish(results[0].skipped if results else [], functools.partial(_check, results, thresholds))


def _check_task(task: EvalTask, data: Path | None, settings: EvalSettings) -> None:
    """Refuse input that is missing, and what latents without a source or the test card alone cannot answer."""
    if data is None and not task.latents:
        if not task.testcard:
            raise SettingsError("there is nothing to measure", "`data` DIR of videos, `latents` FILE, or `testcard=True`")
        asked = {"fail_under": task.fail_under, "speed": task.speed, "metrics": settings.metrics}
        for name in (name for name, value in asked.items() if value):
            what = f"`{name}` is about clips of videos; the test card always has the same figures"
            raise SettingsError(what, "add `data` DIR")
    if task.testcard and settings.protocol == "paper":
        raise SettingsError("the published script has no test card", "`protocol` standard, or leave out `testcard=True`")
    if data is not None and task.latents:
        raise SettingsError("`data` and `latents` cannot be combined: both choose what is decoded", "give one of them")
    if task.latents and task.fail_under:
        raise SettingsError(
            "`fail_under` is a share of the teacher's score, and on latents the teacher is the reference", "`data` DIR of videos"
        )


def _measured(
    pairs: "Sequence[Pair]",
    data: Path | None,
    task: EvalTask,
    settings: EvalSettings,
    thresholds: Mapping[str, float],
    show: Show,
) -> "list[EvalResult]":
    """Measure on the videos of --data, or on --latents; nothing without either."""
    if data is not None:
        from turbovaed_cli.evaluation.evaluate import evaluate_all

        return evaluate_all(pairs, data, settings, required=thresholds, report=show.report)
    if not task.latents:
        return []
    from turbovaed_cli.evaluation.from_latents import evaluate_latents

    return evaluate_latents(
        pairs, task.latents, settings, latents_are=task.latents_are, latents_shape=task.latents_shape, report=show.report
    )


def _cards(pairs: "Sequence[Pair]", settings: EvalSettings, show: Show) -> "list[CardResult]":
    from turbovaed_cli.evaluation.testcard import measure_testcards

    return measure_testcards(pairs, settings, report=show.report)


def _show(
    results: "Sequence[EvalResult]", cards: "Sequence[CardResult]", data: Path | None, show: Show, *, is_comparison: bool
) -> None:
    """Print the tables of clips and those of test cards, or both as one JSON document."""
    from turbovaed_cli.cli.eval_tables import as_tables
    from turbovaed_cli.cli.testcard_tables import card_tables
    from turbovaed_cli.evaluation.evaluate import eval_document
    from turbovaed_cli.evaluation.testcard.scores import card_document, whole_document

    if not show.json:
        print_tables(as_tables(results, data or Path(), every_clip=show.verbose) if results else [])
        print_tables(card_tables(cards, every_pattern=show.verbose))
        return
    documents = [eval_document(result) for result in results] or [whole_document(card) for card in cards]
    for document, card in zip(documents, cards, strict=False):  # no cards unless they were asked for
        document["testcard"] = card_document(card)
    console.print_json(documents[0] | ({"comparisons": documents[1:]} if is_comparison else {}))


def _keep(
    results: "Sequence[EvalResult]",
    cards: "Sequence[CardResult]",
    pairs: "Sequence[Pair]",
    data: Path | None,
    task: EvalTask,
    settings: EvalSettings,
    show: Show,
    *,
    has_page: bool,
) -> None:
    """Write the page of a comparison, and each result into the run folder that its model is."""
    if data is not None:
        from turbovaed_cli.report.run_page import keep_evaluation

        of_pairs = zip_longest(pairs, results, cards)  # no cards unless they were asked for
        for pair, result, card in of_pairs:
            keep_evaluation(result, pair, settings, data, None if has_page else task.report, show.report, card=card)
    elif cards:
        from turbovaed_cli.report.run_page import keep_cards

        keep_cards(cards, pairs, settings, task.report if not results else None, show.report)
    if has_page and task.report is not None:
        from turbovaed_cli.report.compare_page import write_comparison

        write_comparison(
            task.report,
            results,
            pairs,
            settings,
            data,
            latents_are=task.latents_are,
            latents_shape=task.latents_shape,
            cards=cards,
        )
        console.note(f"to look at: {task.report}")


def _pairs(model: ComparedModel, others: list[str], settings: EvalSettings, show: Show) -> "list[Pair]":
    """The decoders with their teachers. Beside --model, --family and --config belong to that one.

    --teacher too, except that a compared decoder that names no teacher takes it.
    """
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn

    device, dtype = resolve_device(settings.device, show.report), resolve_dtype(settings.dtype)
    warn_of_cudnn(device, dtype, show.report)
    first = [model] if model.model or not others else []
    alone = None if model.model else model.teacher
    rest = [replace(model, model=name, teacher=alone, config=None, family=None) for name in others]
    loaded = [one.load(device=device, dtype=dtype) for one in first]
    return [*loaded, *(one.load(otherwise=model.teacher, device=device, dtype=dtype) for one in rest)]


def _check(results: "Sequence[EvalResult]", thresholds: Mapping[str, float]) -> None:
    """Raise CheckFailedError if a threshold was missed."""
    from turbovaed_cli.evaluation.evaluate import find_misses

    if misses := [miss for result in results for miss in find_misses(result, thresholds)]:
        hint = "docs/metrics.md says what is compared; the clips to look at are in the table"
        raise CheckFailedError("; ".join(map(str, misses)), hint)


def _check_run_folder(path: Path) -> None:
    """Refuse a run folder in which the result cannot be kept, before anything is measured."""
    if not RunDir.is_run(path):
        return
    run = RunDir(path)
    try:
        check_place(run.eval, folder=True)
        check_place(run.testcards, folder=True)
        check_place(run.report)
    except UnwritableError as error:
        hint = f"`model={run.model}` measures the same student and keeps nothing in the run folder"
        raise UnwritableError(error.what, hint) from error
