"""`turbovaed eval`."""

from pathlib import Path
from typing import Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import (
    Data,
    Device,
    Dtype,
    Frames,
    Hdr,
    Json,
    Model,
    ModelConfig,
    Overwrite,
    Quiet,
    Size,
    TeacherOf,
    Verbose,
    Yes,
    check_file,
    consent_of,
    model_or_default,
    reporter_of,
    warn_of_old_ffmpeg,
)
from turbovaed_cli.errors import CheckFailedError, SettingsError, UnwritableError
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.system import check_system
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import EvalSettings, check_device, check_dtype
from turbovaed_cli.units import format_size, parse_size


@command
def evaluate(
    data: Data,
    model: Model = None,
    config: ModelConfig = None,
    teacher: TeacherOf = None,
    frames: Frames = EvalSettings.frames,
    size: Size = format_size(EvalSettings.size),
    stride: Annotated[int, typer.Option("--stride", help="Take every n-th frame.")] = EvalSettings.stride,
    hdr: Hdr = EvalSettings.hdr,
    clips_per_video: Annotated[
        int, typer.Option("--clips-per-video", help="Evenly spread; 1 takes the first frames, 0 all.")
    ] = EvalSettings.clips_per_video,
    protocol: Annotated[
        str, typer.Option("--protocol", help="standard: fixed range, per clip, then the mean. paper: the published script's.")
    ] = EvalSettings.protocol,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="Several models on the same clips, each against its own teacher: --compare A B C."),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="The further models of --compare.")] = None,
    metrics: Annotated[str, typer.Option("--metrics", help="Only these, comma separated: psnr,ssim,... Default: all.")] = "",
    lpips_weights: Annotated[
        list[Path] | None,
        typer.Option(
            "--lpips-weights", help="A backbone (AlexNet, VGG16) or learned weights of LPIPS; repeat. Default: the pulled ones."
        ),
    ] = None,
    i3d: Annotated[Path | None, typer.Option("--i3d", help="The I3D detector (TorchScript). Default: the pulled one.")] = None,
    i3d_sha256: Annotated[
        str, typer.Option("--i3d-sha256", help="Its sha256, which you vouch for: TorchScript is code.")
    ] = EvalSettings.i3d_sha256,
    dataset: Annotated[
        str, typer.Option("--dataset", help="ucf101, where file names do not say so: shows the published figures.")
    ] = EvalSettings.dataset,
    speed: Annotated[bool, typer.Option("--speed", help="Time both decoders in turns, and print the ratio.")] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option("--fail-under", help="Least share of the teacher's score, such as psnr=0.969; repeat. A miss ends with 4."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write an HTML page with the figures, clips and errors. A run folder gets one anyway."),
    ] = None,
    dtype: Dtype = EvalSettings.dtype,
    device: Device = EvalSettings.device,
    overwrite: Overwrite = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Student and teacher against the source, and their ratio: PSNR, SSIM, LPIPS, rFVD, VMAF, flicker. See docs/METRICS.md."""
    check_system("eval")
    check_dtype(dtype)
    check_device(device)
    if report is not None and (compare or more):
        raise SettingsError("--report shows one model, --compare asks for several", "one eval --model M --report FILE for each")
    if report is not None:
        check_file(report, "--report", overwrite=overwrite)
    for name in filter(None, (model, *(compare or ()), *(more or ()))):
        _check_run_folder(Path(name))
    from turbovaed_cli.cli.eval_tables import as_tables
    from turbovaed_cli.evaluation.evaluate import (
        SPEED_REPEATS,
        check_eval_settings,
        eval_document,
        evaluate_all,
        find_misses,
        met_thresholds,
        parse_thresholds,
    )
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn
    from turbovaed_cli.models.pair import load_pair
    from turbovaed_cli.report.run_page import keep_evaluation

    warn_of_old_ffmpeg()

    thresholds = parse_thresholds(fail_under or [])
    settings = EvalSettings(
        frames, parse_size(size), stride, clips_per_video, protocol, dtype, device, tuple(filter(None, metrics.split(","))),
        tuple(lpips_weights or ()), i3d, i3d_sha256, dataset, SPEED_REPEATS if speed else 0, hdr=hdr
    )  # fmt: skip
    check_eval_settings(settings)
    reporter = reporter_of(quiet, verbose)
    on, precision, consent = resolve_device(device, reporter), resolve_dtype(dtype), consent_of(yes)
    warn_of_cudnn(on, precision, reporter)
    others = [*(compare or ()), *(more or ())]
    if others and not compare:
        raise SettingsError(f"unexpected: {' '.join(others)}", f"--model {others[0]}, or --compare A B for several models")
    names = [model, *others] if model or not others else others
    pairs = [
        load_pair(
            model_or_default(name),
            teacher if name == model or not model else None,  # beside --model, --teacher is the teacher of that one
            config=config if name == model else None,
            device=on,
            dtype=precision,
            consent=consent,
        )
        for name in names
    ]
    results = evaluate_all(pairs, data, settings, required=thresholds, report=reporter)
    if json:
        documents = [eval_document(result) for result in results]
        console.print_json(documents[0] | ({"comparisons": documents[1:]} if others else {}))
    else:
        for table in as_tables(results, data, every_clip=verbose):
            console.print_table(table.title, table.columns, table.rows)
    for pair, result in zip(pairs, results, strict=True):
        keep_evaluation(result, pair, settings, data, report, reporter)
    misses = [miss for result in results for miss in find_misses(result, thresholds)]
    for line in met_thresholds(results, thresholds):
        console.note(line)

    def check() -> None:
        if misses:
            raise CheckFailedError(
                "; ".join(str(miss) for miss in misses),
                "docs/METRICS.md says what is compared; the clips to look at are in the table",
            )

    finish(results[0].skipped, check)


def _check_run_folder(path: Path) -> None:
    """Refuse a run folder in which the result cannot be kept, before anything is measured."""
    if not RunDir.is_run(path):
        return
    run = RunDir(path)
    try:
        check_place(run.eval, folder=True)
        check_place(run.report)
    except UnwritableError as error:
        hint = f"--model {run.model} measures the same student and keeps nothing in the run folder"
        raise UnwritableError(error.what, hint) from error
