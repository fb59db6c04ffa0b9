"""The command `turbovaed bench`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import Against, ModelChoice, MoreModels, Overwrite, Show, check_file, check_system_for
from turbovaed_cli.cli.table import print_tables
from turbovaed_cli.files.places import check_place
from turbovaed_cli.setting import setting
from turbovaed_cli.settings import TARGETS, THRESHOLDS, BenchSettings

if TYPE_CHECKING:
    from turbovaed_cli.benchmarking.results import BenchResult, Change


@dataclass(frozen=True)
class BenchTask:
    """What is written, compared and asked of the result."""

    report: Path | None = setting(None, "HTML page of the results to write.", "Input and output", metavar="FILE")
    compare: tuple[Path, ...] = setting(
        (),
        "An earlier --json, for ratios with intervals; repeat.",
        "Input and output",
        metavar="FILE",
        many=True,
        by_commas=False,
    )
    fail_under: tuple[str, ...] = setting(
        (), "Exit with 4 if the fastest student of a target has less: fps=24.", "Measuring", metavar="NAME=X", many=True,
        complete=lambda _: [f"{name}=" for name in THRESHOLDS],
    )  # fmt: skip
    no_teacher: bool = setting(False, "Leave the teacher's decoder out.", "Model")
    ios_project: Path | None = setting(
        None, "Write a Swift package that measures on a phone, and do nothing else.", "Apple devices", metavar="DIR"
    )


EXAMPLES = """\
turbovaed bench --model runs/ltx --report bench.html
turbovaed bench --model ltx --against taeltx.pth diffusers:ltx
turbovaed bench --target coreml --fail-under fps=24"""


@command
def bench(
    *,
    more: MoreModels = None,
    task: BenchTask,
    overwrite: Overwrite = False,
    settings: BenchSettings,
    model: ModelChoice,
    against: Against,
    show: Show,
) -> None:
    """Time the student's decode beside its teacher's, target by target; what cannot run here gets a row with the reason."""
    check_system_for(settings.data, "bench --data")
    check_file(task.report, "`report`", overwrite=overwrite)
    if task.ios_project is not None:
        check_place(task.ios_project, "`ios_project`", folder=True)
        check_place(task.ios_project.parent, "`ios_project`", folder=True)  # where the old and the new one change places
    from turbovaed_cli.benchmarking import results
    from turbovaed_cli.benchmarking.bench import bench as run

    least, earlier = results.thresholds(task.fail_under), [results.read_document(path) for path in task.compare]
    targets = TARGETS if "all" in settings.targets else settings.targets
    settings = replace(settings, targets=targets, teacher=not task.no_teacher)
    if task.ios_project is not None:
        _write_ios_project(task.ios_project, settings, model, show, overwrite=overwrite)
        return
    named: dict[str, Any] = {
        "teacher": model.teacher,
        "family": model.family,
        "config": model.config,
        "against": against.with_more(more),
    }
    result = run(model.name, settings, **named, consent=model.consent, report=show.report)
    compared = results.changes(result.rows, earlier[0]["rows"]) if earlier else []
    if show.json:
        console.print_json(results.bench_document(result, compared))
    else:
        _show_result(result, compared)
    if earlier and not compared:
        console.warn(f"{task.compare[0]} has no row that this run measured too")
    if earlier and not results.same_machine(earlier[0]["machine"], result.header):
        console.warn(f"the earlier run is from another machine: {earlier[0]['machine']}")
    if task.report is not None:
        from turbovaed_cli.report.bench_page import write_page

        write_page(task.report, [results.bench_document(result), *earlier])
        console.note(f"to look at: {task.report}")

    def check() -> None:
        for failure in result.failures:
            raise failure
        results.raise_for_thresholds(result, least)

    finish(result.skipped, check)


def _write_ios_project(place: Path, settings: BenchSettings, model: ModelChoice, show: Show, *, overwrite: bool) -> None:
    """Write the package of `bench --ios-project`."""
    from turbovaed_cli.benchmarking.bench import write_ios_project

    skipped = write_ios_project(
        place,
        model.name,
        settings,
        teacher=model.teacher,
        config=model.config,
        overwrite=overwrite,
        consent=model.consent,
        report=show.report,
    )
    console.note(f"next: {place / 'README.md'} says how to run it")
    finish(skipped)


def _show_result(result: "BenchResult", compared: "Sequence[Change]") -> None:
    """The machine, the tables, and the notes on them."""
    from turbovaed_cli.cli.bench_tables import said, tables

    console.note(result.header)
    console.note(f"decoding {result.latents}; load average before and after: {_loads(result.load_average)}")
    print_tables(tables(result, compared))
    if result.no_estimate:
        console.note(result.no_estimate)
    console.note(f"runtimes: {', '.join(dict.fromkeys(row.runtime for row in result.rows if row.measured)) or 'none'}")
    for line in dict.fromkeys(f"{row.target}: {line}" for row in result.rows for line in said(row)):
        console.note(line)


def _loads(loads: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {before:.1f} and {after:.1f}" for name, (before, after) in loads.items()) or "not known"
