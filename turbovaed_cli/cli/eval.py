"""The command `turbovaed eval`."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        (), "Exit with 4 below this share of the teacher: psnr=0.969.", "Measuring", metavar="NAME=X", many=True,
        complete=lambda _: [f"{name}=" for name in METRIC_NAMES],
    )  # fmt: skip
    speed: bool = setting(False, "Time both decoders in turns, and print the ratio.", "Measuring")
    report: Path | None = setting(
        None, "HTML page to write. A run folder gets one anyway.", "Input and output",
        metavar="FILE",
    )  # fmt: skip


EXAMPLES = """\
turbovaed eval --data videos
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
    _check_task(task, data)
    check_file(task.report, "`report`", overwrite=overwrite)
    for name in filter(None, (model.model, *others)):
        _check_run_folder(Path(name))
    if others and not task.compare:
        raise SettingsError(f"unexpected: {' '.join(others)}", f"--model {others[0]}, or --compare A B for several models")
    from turbovaed_cli.cli.eval_tables import as_tables
    from turbovaed_cli.evaluation.evaluate import SPEED_REPEATS, check_eval_settings, eval_document, met_thresholds
    from turbovaed_cli.evaluation.evaluate import parse_thresholds as parsed

    warn_of_old_ffmpeg()
    thresholds = parsed(task.fail_under)
    has_page = task.report is not None and (bool(others) or bool(task.latents))
    settings = replace(settings, speed_repeats=SPEED_REPEATS if task.speed or has_page else 0)
    check_eval_settings(settings)
    pairs = _pairs(model, others, settings, show)
    results = _measured(pairs, data, task, settings, thresholds, show)
    if has_page:
        from turbovaed_cli.evaluation.costs import with_peaks

        results = with_peaks(results, pairs, settings.device, show.report)
    if show.json:
        documents = [eval_document(result) for result in results]
        console.print_json(documents[0] | ({"comparisons": documents[1:]} if others else {}))
    else:
        print_tables(as_tables(results, data or Path(), every_clip=show.verbose))
    _keep(results, pairs, data, task, settings, show, has_page=has_page)
    for line in met_thresholds(results, thresholds):
        console.note(line)
    finish(results[0].skipped, functools.partial(_check, results, thresholds))


def _check_task(task: EvalTask, data: Path | None) -> None:
    """Refuse input that is missing, and what latents without a source cannot answer."""
    if data is None and not task.latents:
        raise SettingsError("there is nothing to measure", "`data` DIR of videos, or `latents` FILE")
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
    """Measure on the videos of --data, or on --latents."""
    if data is not None:
        from turbovaed_cli.evaluation.evaluate import evaluate_all

        return evaluate_all(pairs, data, settings, required=thresholds, report=show.report)
    from turbovaed_cli.evaluation.from_latents import evaluate_latents

    return evaluate_latents(
        pairs, task.latents, settings, latents_are=task.latents_are, latents_shape=task.latents_shape, report=show.report
    )


def _keep(
    results: "Sequence[EvalResult]",
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

        for pair, result in zip(pairs, results, strict=True):
            keep_evaluation(result, pair, settings, data, None if has_page else task.report, show.report)
    if has_page and task.report is not None:
        from turbovaed_cli.report.compare_page import write_comparison

        write_comparison(
            task.report, results, pairs, settings, data, latents_are=task.latents_are, latents_shape=task.latents_shape
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
        check_place(run.report)
    except UnwritableError as error:
        hint = f"`model={run.model}` measures the same student and keeps nothing in the run folder"
        raise UnwritableError(error.what, hint) from error
