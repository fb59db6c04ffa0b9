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
from turbovaed_cli.setting import setting
from turbovaed_cli.settings import ClipSettings, EvalSettings

if TYPE_CHECKING:
    from turbovaed_cli.evaluation.scores import EvalResult
    from turbovaed_cli.models.pair import Pair


@dataclass(frozen=True)
class EvalTask:
    """What is compared, and what is asked of the result."""

    compare: tuple[str, ...] = setting(
        (), "Several models on the same clips: --compare A B C.", "Model", metavar="MODEL", many=True, by_commas=False,
        complete=complete_model,
    )  # fmt: skip
    fail_under: tuple[str, ...] = setting(
        (), "Exit with 4 below this share of the teacher: psnr=0.969.", "Measuring", metavar="NAME=X", many=True,
        complete=lambda _: [f"{name}=" for name in METRIC_NAMES],
    )  # fmt: skip
    speed: bool = setting(False, "Time both decoders in turns, and print the ratio.", "Measuring")
    report: Path | None = setting(None, "HTML page to write. A run folder gets one anyway.", "Input and output", metavar="FILE")


EXAMPLES = """\
turbovaed eval --data videos
turbovaed eval --data videos --model runs/ltx --fail-under psnr=0.969
turbovaed eval --data videos --compare runs/ltx runs/ltx-2"""


@command
def evaluate(
    *,
    data: Annotated[Path, field_option(ClipSettings, "data")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Further models of --compare.", rich_help_panel="Model")
    ] = None,
    task: EvalTask,
    overwrite: Overwrite = False,
    model: ComparedModel,
    settings: EvalSettings,
    show: Show,
) -> None:
    """Student and teacher against the source, and their ratio: PSNR, SSIM, LPIPS, rFVD, VMAF, flicker. See docs/metrics.md."""
    check_system("eval")
    others = [*task.compare, *(more or ())]
    if task.report is not None and others:
        raise SettingsError("`report` shows one model, `compare` asks for several", "one eval --model M --report FILE for each")
    check_file(task.report, "`report`", overwrite=overwrite)
    for name in filter(None, (model.model, *others)):
        _check_run_folder(Path(name))
    if others and not task.compare:
        raise SettingsError(f"unexpected: {' '.join(others)}", f"--model {others[0]}, or --compare A B for several models")
    from turbovaed_cli.cli.eval_tables import as_tables
    from turbovaed_cli.evaluation.evaluate import (
        SPEED_REPEATS,
        check_eval_settings,
        eval_document,
        evaluate_all,
        met_thresholds,
        parse_thresholds,
    )
    from turbovaed_cli.report.run_page import keep_evaluation

    warn_of_old_ffmpeg()
    thresholds = parse_thresholds(task.fail_under)
    settings = replace(settings, speed_repeats=SPEED_REPEATS if task.speed else 0)
    check_eval_settings(settings)
    pairs = _pairs(model, others, settings, show)
    results = evaluate_all(pairs, data, settings, required=thresholds, report=show.report)
    if show.json:
        documents = [eval_document(result) for result in results]
        console.print_json(documents[0] | ({"comparisons": documents[1:]} if others else {}))
    else:
        print_tables(as_tables(results, data, every_clip=show.verbose))
    for pair, result in zip(pairs, results, strict=True):
        keep_evaluation(result, pair, settings, data, task.report, show.report)
    for line in met_thresholds(results, thresholds):
        console.note(line)
    finish(results[0].skipped, functools.partial(_check, results, thresholds))


def _pairs(model: ComparedModel, others: list[str], settings: EvalSettings, show: Show) -> "list[Pair]":
    """The students with their teachers. Beside --model, --teacher and --config belong to that one."""
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn

    device, dtype = resolve_device(settings.device, show.report), resolve_dtype(settings.dtype)
    warn_of_cudnn(device, dtype, show.report)
    first = [model] if model.model or not others else []
    rest = [replace(model, model=name, teacher=None if model.model else model.teacher, config=None) for name in others]
    return [one.load(device=device, dtype=dtype) for one in (*first, *rest)]


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
