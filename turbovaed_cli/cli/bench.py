"""`turbovaed bench`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from turbovaed_cli.choices import check_choices
from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import (
    Frames,
    Hdr,
    Json,
    LatentsAre,
    LatentsShape,
    Model,
    ModelConfig,
    Overwrite,
    Quiet,
    Size,
    TeacherOf,
    Verbose,
    Yes,
    check_file,
    check_system_for,
    consent_of,
    lengths,
    listed,
    model_or_default,
    reporter_of,
    shape_of_latents,
)
from turbovaed_cli.files.places import check_place
from turbovaed_cli.settings import APPLE_DEVICES, LAYOUTS, PRECISIONS, TARGETS, BenchSettings, check_device
from turbovaed_cli.units import format_size, parse_size


@command
def bench(
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help=f"{', '.join(TARGETS)} or all; several by commas. Default: torch,onnx."),
    ] = None,
    model: Model = None,
    config: ModelConfig = None,
    teacher: TeacherOf = None,
    frames: Frames = BenchSettings.frames,
    size: Size = format_size(BenchSettings.size),
    dtype: Annotated[
        str, typer.Option("--dtype", help=f"{', '.join(PRECISIONS)}; several by commas. Default: each target's own.")
    ] = "",
    layout: Annotated[str, typer.Option("--layout", help=f"{', '.join(LAYOUTS)}; several by commas.")] = BenchSettings.layouts[0],
    data: Annotated[
        Path | None, typer.Option("--data", help="Videos to encode: real latents, and quality against the videos.")
    ] = None,
    hdr: Hdr = BenchSettings.hdr,
    latents: Annotated[Path | None, typer.Option("--latents", help="A latents file to decode instead of random ones.")] = None,
    latents_are: LatentsAre = BenchSettings.latents_are,
    latents_shape: LatentsShape = "",
    compiled: Annotated[bool, typer.Option("--compile", help="A row for torch.compile too; a minute or more.")] = False,
    warmup: Annotated[int, typer.Option("--warmup", help="Calls before the clock counts.")] = BenchSettings.warmup,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed calls.")] = BenchSettings.repeats,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads, pinned; 0: as many as torch.")] = BenchSettings.threads,
    memory_frames: Annotated[
        str, typer.Option("--memory-frames", help="Clip lengths to measure the memory of a decode at, such as 17,33,65.")
    ] = "",
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Leave the teacher's decoder out.")] = False,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda or mps; for coreml an attached iphone or ipad, or iphone:NAME.")
    ] = BenchSettings.device,
    apple_team: Annotated[
        str, typer.Option("--apple-team", help="Development team that signs coremltools' app on an attached device.")
    ] = BenchSettings.apple_team,
    ios_project: Annotated[
        Path | None, typer.Option("--ios-project", help="Write a Swift package that measures on a phone, and do nothing else.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", help="An earlier --json: ratios with intervals; repeat for the report.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option("--fail-under", help="Such as fps=24, of every target's fastest student; repeat. A miss ends with 4."),
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="An HTML page of the results.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random latents.")] = BenchSettings.seed,
    overwrite: Overwrite = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time the student's decode beside its teacher's, target by target; what cannot run here says so."""
    check_system_for(data, "bench --data")
    names = listed(target) or BenchSettings.targets
    check_choices("--target", names, (*TARGETS, "all"))
    check_choices("--dtype", listed([dtype]), PRECISIONS)
    check_choices("--layout", listed([layout]), LAYOUTS)
    if device.partition(":")[0] not in APPLE_DEVICES:
        check_device(device, APPLE_DEVICES)
    if report is not None:
        check_file(report, "--report", overwrite=overwrite)
    if ios_project is not None:
        check_place(ios_project, "--ios-project", folder=True)
        check_place(ios_project.parent, "--ios-project", folder=True)  # where the old and the new one change places
    from turbovaed_cli.benchmarking import results
    from turbovaed_cli.benchmarking.bench import bench as run
    from turbovaed_cli.benchmarking.bench import write_ios_project
    from turbovaed_cli.cli.bench_tables import said, tables

    least, earlier = results.thresholds(listed(fail_under)), [results.read_document(path) for path in compare or []]
    settings = BenchSettings(
        TARGETS if "all" in names else names, frames, parse_size(size), listed([dtype]), listed([layout]), warmup,
        repeats, threads, device, apple_team, not no_teacher, compiled, data, latents, seed=seed,
        memory_frames=lengths(memory_frames), latents_are=latents_are, latents_shape=shape_of_latents(latents_shape), hdr=hdr,
    )  # fmt: skip
    if ios_project is not None:
        skipped = write_ios_project(
            ios_project,
            model_or_default(model),
            settings,
            teacher=teacher,
            config=config,
            overwrite=overwrite,
            consent=consent_of(yes),
            report=reporter_of(quiet, verbose),
        )
        console.note(f"next: {ios_project / 'README.md'} says how to run it")
        finish(skipped)
        return
    result = run(
        model_or_default(model),
        settings,
        teacher=teacher,
        config=config,
        consent=consent_of(yes),
        report=reporter_of(quiet, verbose),
    )
    compared = results.changes(result.rows, earlier[0]["rows"]) if earlier else []
    if json:
        console.print_json(results.bench_document(result, compared))
    else:
        console.note(result.header)
        console.note(f"decoding {result.latents}; load average before and after: {_loads(result.load_average)}")
        for title, columns, rows in tables(result, compared):
            console.print_table(title, columns, rows)
        if result.no_estimate:
            console.note(result.no_estimate)
        console.note(f"runtimes: {', '.join(dict.fromkeys(row.runtime for row in result.rows if row.measured)) or 'none'}")
        for line in dict.fromkeys(f"{row.target}: {line}" for row in result.rows for line in said(row)):
            console.note(line)
    if earlier and not compared:
        console.warn(f"{compare[0] if compare else ''} has no row that this run measured too")
    if earlier and not results.same_machine(earlier[0]["machine"], result.header):
        console.warn(f"the earlier run is from another machine: {earlier[0]['machine']}")
    if report is not None:
        from turbovaed_cli.report.bench_page import write_page

        write_page(report, [results.bench_document(result), *earlier])
        console.note(f"to look at: {report}")

    def check() -> None:
        for failure in result.failures:
            raise failure
        results.raise_for_thresholds(result, least)

    finish(result.skipped, check)


def _loads(loads: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {before:.1f} and {after:.1f}" for name, (before, after) in loads.items()) or "not known"
