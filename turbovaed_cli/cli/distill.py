"""`turbovaed distill`."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from turbovaed_cli.choices import check_choice
from turbovaed_cli.cli import console
from turbovaed_cli.cli.estimates import download_in_words, free_in_words, time_in_words, warn_of_room
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.models import show_design
from turbovaed_cli.cli.options import (
    HDR_HELP,
    PRECISE_HELP,
    Gflops,
    Json,
    Params,
    Quiet,
    Teacher,
    Verbose,
    Yes,
    check_folder,
    consent_of,
    one_of,
    reporter_of,
    warn_of_old_ffmpeg,
)
from turbovaed_cli.errors import DifferentRunError, SettingsError, TurboVaedError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.machine.launch import command_line, is_beside_another, launch
from turbovaed_cli.registry.find import find_model, with_licence
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DEFAULT_RECIPE, DEVICES, DTYPES, OPTIMIZERS, RECIPES, check_device, read_recipe
from turbovaed_cli.units import human_bytes, parse_count, parse_size

if TYPE_CHECKING:
    from turbovaed_cli.training.distill import DistillResult
    from turbovaed_cli.training.estimate import DistillEstimate

Result = TypeVar("Result")


@command
def distill(
    teacher: Teacher = DEFAULT_MODEL,
    data: Annotated[
        str | None, typer.Option("--data", help="Videos to learn from, encoded on the way; a folder or an fsspec URL.")
    ] = None,
    latents: Annotated[
        str | None, typer.Option("--latents", help="A cache made by cache-latents, or its URL, instead of --data.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option("--val", help="Videos to measure the finished student on, for report.html; never learnt from.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="The run folder or its URL. Default: runs/TEACHER. The same command resumes.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help=f"{', '.join(RECIPES)}, or a TOML file with [[stages]]; the options below change it. "
            "default: the teacher's own (models show NAME has it), or what the run folder began with.",
        ),
    ] = DEFAULT_RECIPE,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps in all; stages keep their shares.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Clips per forward pass, in every stage.")] = None,
    accumulation: Annotated[int | None, typer.Option("--accumulation", help="Forward passes per optimizer step.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Pixel frames per clip.")] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="WIDTHxHEIGHT of the clips in pixels, or one number; not of stages with their own."),
    ] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="Take every n-th frame.")] = None,
    hdr: Annotated[str | None, typer.Option("--hdr", help=HDR_HELP)] = None,
    crop: Annotated[
        str | None, typer.Option("--crop", help="Learn from random crops of this size, WIDTHxHEIGHT, in every stage.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate, in every stage.")] = None,
    lr_schedule: Annotated[str | None, typer.Option("--lr-schedule", help="constant or cosine.")] = None,
    warmup_steps: Annotated[int | None, typer.Option("--warmup-steps", help="Steps of linear warm-up.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help=f"{one_of(OPTIMIZERS)}.")] = None,
    ema_decay: Annotated[float | None, typer.Option("--ema-decay", help="Of the averaged weights that model/ holds.")] = None,
    perceptual: Annotated[str | None, typer.Option("--perceptual", help="auto, lpips, ssim or none.")] = None,
    perceptual_weight: Annotated[float | None, typer.Option("--perceptual-weight", help="Weight of the perceptual loss.")] = None,
    feature_weight: Annotated[
        float | None, typer.Option("--feature-weight", help="Weight of feature alignment; 0 leaves it out.")
    ] = None,
    teacher_weight: Annotated[
        float | None, typer.Option("--teacher-weight", help="Weight of L1 to the teacher's own pixels; 0 leaves it out.")
    ] = None,
    adversarial_weight: Annotated[
        float | None, typer.Option("--adversarial-weight", help="Weight of the 3-D PatchGAN's loss, in every stage.")
    ] = None,
    posterior: Annotated[str | None, typer.Option("--posterior", help="sample or mean.")] = None,
    start: Annotated[str | None, typer.Option("--start", help="plain random weights, or fitted by least squares.")] = None,
    student_config: Annotated[
        Path | None, typer.Option("--student-config", help="JSON with another student, in the published key names.")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="A student to start from, as --model takes it, instead of random weights.")
    ] = None,
    params: Params = None,
    gflops: Gflops = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence of a local teacher whose folder states none; its student carries it.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    save_every: Annotated[int | None, typer.Option("--save-every", help="Steps between checkpoints.")] = None,
    sample_every: Annotated[int | None, typer.Option("--sample-every", help="Steps between sample strips; 0 draws none.")] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing", help="Recompute activations: less memory for large crops, more time, the same bits."
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile", help="torch.compile the student; the first step of every stage takes a minute or more."),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Batches read ahead.")] = None,
    log: Annotated[
        str | None, typer.Option("--log", help="Also log to tensorboard, trackio or wandb; several by commas.")
    ] = None,
    nproc: Annotated[
        int, typer.Option("--nproc", help="Processes on this machine, each with a device and --batch-size of its own.")
    ] = 1,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help=f"{', '.join(DTYPES)}; auto takes bf16 where the device has it.")
    ] = None,
    precise: Annotated[bool | None, typer.Option("--precise", help=PRECISE_HELP)] = None,
    device: Annotated[str | None, typer.Option("--device", help=f"{one_of(DEVICES)}.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time some steps of every stage, say what it would take, write nothing.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a small decoder to do what a frozen teacher's decoder does; the same command resumes."""
    check_system("distill")
    spec = with_licence(find_model(teacher), licence)
    folder = run or f"runs/{spec.name}"
    if not is_beside_another():
        check_folder(folder, "--run")
    settings = read_recipe(_recipe_named(recipe, spec, folder))
    check_choice("--dtype", dtype or "auto", (*DTYPES, "auto"))
    check_choice("--optimizer", optimizer or settings.optimizer, OPTIMIZERS)
    check_device(device or "auto")
    if nproc != 1 and not dry_run:
        _launch(nproc)
    from turbovaed_cli.cli.eval_tables import as_tables
    from turbovaed_cli.evaluation.evaluate import eval_document
    from turbovaed_cli.models.design import Budget, design_student
    from turbovaed_cli.models.loading import read_config
    from turbovaed_cli.training.distill import distill as teach
    from turbovaed_cli.training.distill import estimate_distill
    from turbovaed_cli.training.validation import measure_run
    from turbovaed_cli.video import list_videos

    if data is not None:
        warn_of_old_ffmpeg()

    given = {
        "steps": steps, "batch_size": batch_size, "accumulation": accumulation, "crop": parse_size(crop) if crop else None,
        "lr": lr, "lr_schedule": lr_schedule, "warmup_steps": warmup_steps, "optimizer": optimizer, "ema_decay": ema_decay,
        "perceptual": perceptual, "perceptual_weight": perceptual_weight, "feature_weight": feature_weight,
        "teacher_weight": teacher_weight, "adversarial_weight": adversarial_weight, "posterior": posterior, "start": start,
        "frames": frames, "size": parse_size(size) if size else None, "stride": stride, "hdr": hdr, "seed": seed, "save_every": save_every,
        "sample_every": sample_every, "workers": workers, "dtype": dtype, "device": device,
        "gradient_checkpointing": gradient_checkpointing, "compile": compiled, "precise": precise,
        "log": tuple(name.strip() for name in log.split(",") if name.strip()) if log is not None else None,
        "fit_batch": None if batch_size is None else False,
    }  # fmt: skip
    if optimizer not in (None, settings.optimizer) and lr is None:
        raise SettingsError(
            f"the learning rates of recipe {settings.recipe} are {settings.optimizer}'s, and {optimizer} needs others",
            "give --lr too: muon takes about 2e-3, adamw 1e-4",
        )
    settings = settings.with_changes(**{name: value for name, value in given.items() if value is not None})
    report = reporter_of(quiet, verbose)
    design = None
    if params is not None or gflops is not None:
        if student_config is not None or init is not None:
            raise SettingsError(
                "--params and --gflops design a student, --student-config and --init bring one", "leave out one of the two"
            )
        budget = Budget(parse_count(params) if params else None, gflops, settings.frames, settings.size)
        design = design_student(spec, budget)
        if not quiet and (verbose or not RunDir.is_run(Path(folder))):  # a resume has shown it before
            show_design(design, on_stderr=True)
    given_config = read_config(student_config) if student_config else None
    if val is not None:
        list_videos(val)  # before hours of training, not behind them
    if dry_run:
        _show_distill_estimate(
            _with_changes_listed(
                verbose,
                estimate_distill,
                spec,
                folder,
                data=data,
                latents=latents,
                settings=settings,
                student_config=design.config if design else given_config,
                init=init,
                processes=int(os.environ.get("WORLD_SIZE") or nproc),
                command_line=command_line(),
                report=report,
            ),
            json=json,
        )
        return
    result = _with_changes_listed(
        verbose,
        teach,
        spec,
        folder,
        data=data,
        latents=latents,
        settings=settings,
        student_config=design.config if design else given_config,
        init=init,
        command_line=command_line(),
        consent=consent_of(yes),
        report=report,
    )
    measured = measure_run(spec, folder, val, latents, settings.device, report) if val is not None else None
    if json:
        extras = {"design": design, "evaluation": measured and eval_document(measured)}
        console.print_json(asdict(result) | {name: value for name, value in extras.items() if value is not None})
    else:
        _show_distilled(result)
        for table in as_tables([measured], val) if measured and val else ():
            console.print_table(table.title, table.columns, table.rows)
        console.note(f"next: turbovaed eval --model {folder} --data DIR; turbovaed reconstruct IN.mp4 --model {folder}")
    finish(result.skipped)


def _launch(nproc: int) -> NoReturn:
    """The same command in `nproc` processes, which know each other."""
    if nproc < 1:
        raise SettingsError(f"--nproc is {nproc}; it must be at least 1")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise SettingsError("--nproc starts processes, and a launcher has started several already", "leave out one of the two")
    words = list(sys.argv[1:])
    at = next(index for index, word in enumerate(words) if word.partition("=")[0] == "--nproc")
    del words[at : at + (1 if "=" in words[at] else 2)]
    code, what = launch(words, nproc)
    if what:
        console.print_error(TurboVaedError(what, "the same command goes on from the last checkpoint"))
    raise typer.Exit(code)


def _recipe_named(recipe: str, spec: "ModelSpec", run: str) -> str:
    """The name of a recipe or file: for `default` that of a run that is there, or the teacher's. Older runs have other names."""
    settings = RunDir(Path(run)).read_config()["settings"] if RunDir.is_run(Path(run)) else {}
    renamed = {"default": "fast", "fast": "quick"} if settings and "fit_batch" not in settings else {}
    began = str(settings.get("recipe"))
    now = renamed.get(began, began)
    if recipe == DEFAULT_RECIPE:
        return now if now in RECIPES else spec.recipe
    return now if recipe == began else recipe


def _show_distilled(result: "DistillResult") -> None:
    """What a finished distillation came to."""
    share = 100 * result.student_params / result.teacher_decoder_params
    rows = [
        ("steps", str(result.step) + (f" (resumed from {result.resumed_from})" if result.resumed_from else "")),
        *((name, f"{value:.5f}") for name, value in result.losses.items() if name not in ("lr", "grad_norm")),
        ("student", f"{result.student_params / 1e6:.3f} M parameters, {share:.1f} % of the teacher's decoder"),
        ("model", str(result.model)),
    ]
    console.print_table("Distilled", ["", ""], rows)


def _with_changes_listed(verbose: bool, work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """The same call; with `verbose`, every setting that a run was started with otherwise is listed before the error."""
    try:
        return work(*arguments, **options)
    except DifferentRunError as error:
        for change in error.changes if verbose else ():
            console.note(change)
        raise


def _show_distill_estimate(found: "DistillEstimate", *, json: bool) -> None:
    """`distill --dry-run`."""
    if json:
        console.print_json(found)
    else:
        columns = ["stage", "steps left", "clips a step", "s a step", "waiting for data", "memory MB"]
        rows = [
            (
                stage.name,
                stage.steps,
                stage.clips_per_step,
                f"{stage.seconds_per_step:.3g}",
                f"{stage.data_share:.0%}",
                (f"{stage.peak_mb:.0f}" if stage.peak_mb else "-")
                + (f" ({stage.reserved_mb:.0f} reserved)" if stage.reserved_mb else ""),
            )
            for stage in found.stages
        ]
        if rows:
            console.print_table("Some steps of every stage", columns, rows)
        facts = [
            ("steps", f"{found.steps}" + (f", {found.steps_done} of them done" if found.steps_done else "")),
            ("time", time_in_words(found)),
            (
                "disk",
                "not measured" if found.disk_bytes is None else f"at most {human_bytes(found.disk_bytes)}{free_in_words(found)}",
            ),
            ("download", download_in_words(found)),
        ]
        console.print_table("It would take", ["", ""], facts)
        warn_of_room(found, found.run)
    finish(found.skipped)
