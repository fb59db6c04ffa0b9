"""The command line: read options, call one function, show its result. Verbs are imported inside the bodies, so help is quick."""

import errno
import functools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperGroup

from turbovaed_cli import console
from turbovaed_cli.choices import check_choice, check_choices
from turbovaed_cli.errors import (
    CheckFailedError,
    DifferentRunError,
    InterruptedRunError,
    MissingWeightsError,
    OutputExistsError,
    SettingsError,
    TurboVaedError,
    UnwritableError,
)
from turbovaed_cli.files.places import UNWRITABLE, check_place
from turbovaed_cli.files.system import check_system
from turbovaed_cli.machine.launch import command_line, end_process, end_with_launcher, is_beside_another, launch
from turbovaed_cli.machine.signals import signals_handled_by
from turbovaed_cli.machine.streams import lost_output, open_standard_streams
from turbovaed_cli.registry.download import RemoteFile
from turbovaed_cli.registry.find import find_model, with_licence
from turbovaed_cli.registry.rows import DEFAULT_MODEL, MODELS
from turbovaed_cli.registry.specs import PUBLISHED_ON, ModelSpec
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import (
    APPLE_DEVICES,
    DEFAULT_RECIPE,
    DEVICES,
    DTYPES,
    FORMATS,
    LAYOUTS,
    OPTIMIZERS,
    PRECISIONS,
    RECIPES,
    TARGETS,
    BenchSettings,
    CacheSettings,
    DistillSettings,
    EvalSettings,
    ExportSettings,
    ReconstructSettings,
    check_device,
    check_dtype,
    check_reconstruct,
    check_video_name,
    read_recipe,
)
from turbovaed_cli.version import __version__

if TYPE_CHECKING:
    from turbovaed_cli.evaluation.scores import EvalResult
    from turbovaed_cli.latents.estimate import CacheEstimate
    from turbovaed_cli.latents.parts import Shard
    from turbovaed_cli.models.design import Design
    from turbovaed_cli.models.pair import Pair
    from turbovaed_cli.reconstruction.folder import FolderResult
    from turbovaed_cli.reconstruction.reconstruct import ReconstructResult
    from turbovaed_cli.training.distill import DistillResult
    from turbovaed_cli.training.estimate import DistillEstimate


class PlainHelp(TyperGroup):
    """A group whose help texts are no rich markup: `[[stages]]` is printed as it is written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for command in (self, *self.commands.values()):
            if command is self or not isinstance(command, PlainHelp):
                command.help = command.help and escape(command.help)
                for param in command.params:
                    if text := getattr(param, "help", None):
                        setattr(param, "help", escape(text))  # noqa: B010 - click's parameters have none in their type


app = typer.Typer(
    cls=PlainHelp,
    help="Distil the VAE decoders of video diffusion models into small ones that run anywhere, and use them.",
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(
    cls=PlainHelp, help="The registry: list it, show a row, pull its weights.", no_args_is_help=False, invoke_without_command=True
)
app.add_typer(models_app, name="models")

Command = TypeVar("Command", bound=Callable[..., None])
Result = TypeVar("Result")


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


# Common flags mean the same everywhere; sizes are WIDTHxHEIGHT for people, (height, width) inside.
Data = Annotated[Path, typer.Option("--data", help="A folder of videos, or one video.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Registry name, run folder, saved model folder, or weight file. Default: the embedded pair."),
]
ModelConfig = Annotated[str | None, typer.Option("--config", help="JSON config of a weight file given as --model.")]
Teacher = Annotated[str, typer.Option("--teacher", help="Registry name, or a local diffusers VAE folder.")]
TeacherOf = Annotated[
    str | None,
    typer.Option("--teacher", help="The teacher of --model, where it does not say itself: registry name or VAE folder."),
]
Frames = Annotated[int, typer.Option("--frames", help="Pixel frames per clip.")]
Size = Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT in pixels, or 720p, or one number for a square.")]
Device = Annotated[str, typer.Option("--device", help=f"{_one_of(DEVICES)}.")]
Dtype = Annotated[str, typer.Option("--dtype", help=f"{_one_of(DTYPES)}.")]
LatentsAre = Annotated[
    str,
    typer.Option(
        "--latents-are", help="What the latents file holds: raw, as a VAE encodes, or normalised, as pipelines compute."
    ),
]
LatentsShape = Annotated[
    str,
    typer.Option(
        "--latents-shape", help="Latent frames, rows, columns of packed latents, as LTX's pipeline gives them: 16,15,22."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")]
Params = Annotated[
    str | None, typer.Option("--params", help="Design the student: decoder parameters at most, such as 8M or 800k.")
]
Gflops = Annotated[
    float | None, typer.Option("--gflops", help="Design the student: GFLOPs at most for one decode of --frames at --size.")
]
_HDR_HELP = "HDR videos (PQ, HLG): tonemap shows them in SDR, refuse skips them."
Hdr = Annotated[str, typer.Option("--hdr", help=_HDR_HELP)]
_PRECISE_HELP = "Compute the teacher in full fp32 on NVIDIA GPUs too, which use TF32 for it by default."
Yes = Annotated[bool, typer.Option("--yes", help="Agree to downloads beforehand.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and plan, write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only results, warnings and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More notes.")]

_MOST_NAME_BYTES = 160  # of the data's name in the name of an evaluation
_NAMED_SIZES = {"480p": (480, 832), "720p": (704, 1280), "1080p": (1056, 1920)}


class _TerminatedError(BaseException):
    """SIGTERM, as an exception, so that half-written things are cleaned up on the way out."""


@contextmanager
def _signals_as_exceptions() -> Iterator[list[int]]:
    """The signals that came, as a list: what is raised for one inside of a library's native code may come out as something else."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _TerminatedError

    with signals_handled_by(handle):
        yield received


# What is left of a command that did not come to its end, by function. `distill` has its own words after a checkpoint.
NOTHING_WRITTEN = "nothing was written; run it again"
LOST_OUTPUT = "files that it names are whole; run it again for what it prints"
GOES_ON = "what was finished is kept; the same command goes on"
LEFT_BY = {
    "cache_latents": GOES_ON,
    "distill": GOES_ON,
    "models_pull": GOES_ON,
    "export": "what export.json lists is whole, nothing else was written; run it again for the rest",
}
# What takes less memory, by function: the options that help there.
LESS_MEMORY = {
    "cache_latents": "less memory: --batch-size 1, a smaller --size or --frames, or --device cpu",
    "distill": "less memory: --crop, --gradient-checkpointing, a smaller --batch-size, --dtype bf16, --perceptual ssim",
    "reconstruct": "less memory: --memory 4GB (smaller pieces), --dtype bf16, --window 17 with --compare, or --device cpu",
    "evaluate": "less memory: a smaller --size or --frames, --dtype bf16, or --device cpu",
    "export": "less memory: a smaller --size or --frames, or one --format at a time",
    "bench": "less memory: a smaller --size or --frames, --dtype bf16, --no-teacher, or --device cpu",
}


def command(function: Command) -> Command:
    """Turn our errors into one line, a hint and an exit code, and signals into theirs; expand ~ in what was given."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with _signals_as_exceptions() as received:
            try:
                function(*args, **{name: _expanded(value) for name, value in kwargs.items()})
            except typer.Exit:  # a RuntimeError by birth
                raise
            except BaseException as error:
                code = _say(error, received, function.__name__)
                if code is None or (os.environ.get("TURBOVAED_DEBUG") and code not in (130, 143)):
                    raise
                raise typer.Exit(code) from None

    return run  # type: ignore[return-value]


def _expanded(value: Any) -> Any:
    """The value of an option with ~ and ~user replaced, which shells leave alone in --data=~/videos."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))  # noqa: PTH111 - which leaves an unknown user's alone
    return value


def _out_of_memory(error: BaseException) -> str:
    """What to say of an error that means too little memory; "" of others."""
    if "torch" not in sys.modules:  # too early for all other errors of that kind
        return "out of memory" if isinstance(error, MemoryError) else ""
    from turbovaed_cli.machine.devices import is_out_of_memory, out_of_memory_in_words  # noqa: PLC0415 - help stays quick

    return out_of_memory_in_words(error) if is_out_of_memory(error) else ""


def _say(error: BaseException, received: Sequence[int], name: str) -> int | None:
    """Print what ended the command of the function `name`, and what is left of it; returns its exit code, None for a mistake of ours."""
    left = LEFT_BY.get(name, NOTHING_WRITTEN)
    if isinstance(error, TurboVaedError) and (not received or isinstance(error, InterruptedRunError)):
        console.print_error(error)
        return error.exit_code
    if received or isinstance(error, KeyboardInterrupt):
        number = received[0] if received else signal.SIGINT
        what = "interrupted" if number == signal.SIGINT else "terminated"
        console.print_error(TurboVaedError(what, left))
        return 128 + number
    if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is not None:
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else error.filename
        what = f"cannot read or write {where}: {UNWRITABLE[error.errno]}"
        console.print_error(TurboVaedError(what, "give another place, such as with --out, --report or --run"))
        return UnwritableError.exit_code
    if what := _out_of_memory(error):
        console.print_error(TurboVaedError(what, LESS_MEMORY.get(name, "close other programs, or take a smaller input")))
        return 1
    if isinstance(error, RuntimeError | OSError | UnicodeError):  # of a file name that is no text, UnicodeError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "TURBOVAED_DEBUG=1 shows where; please report it"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            hint = f"free some space; {left}"
        elif lines[0].startswith("[Errno 2] No usable temporary directory"):  # tempfile's words
            hint = "set TMPDIR to a folder that can be written"
        console.print_error(TurboVaedError(lines[0], hint))
        return 1
    return None


def parse_size(text: str) -> tuple[int, int]:
    """'1280x704', '720p' or '256' to (height, width); SettingsError for anything else."""
    if text in _NAMED_SIZES:
        return _NAMED_SIZES[text]
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() and len(part) <= 6 and int(part) > 0 for part in parts):
        width, height = int(parts[0]), int(parts[-1])
        return height, width
    raise SettingsError(
        f"--size {text} is not a size", f"WIDTHxHEIGHT such as 512x512, one number, or one of {', '.join(_NAMED_SIZES)}"
    )


def parse_count(text: str) -> int:
    """'8M', '0.8M', '800k' or '8000000' to a number; SettingsError for anything else."""
    digits, factor = (text[:-1], {"k": 1e3, "m": 1e6}[text[-1].lower()]) if text[-1:].lower() in ("k", "m") else (text, 1)
    if not digits.replace(".", "", 1).isdecimal() or len(digits) > 15 or round(float(digits) * factor) < 1:
        raise SettingsError(f"--params {text} is not a number of parameters", "such as 8M, 0.8M, 800k or 8000000")
    return round(float(digits) * factor)


def parse_bytes(text: str) -> int:
    """'4GB', '800MB' or '1.5 GiB' to bytes; SettingsError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt])(i?)b", text.strip().lower())
    if found is None or not float(found[1]):
        raise SettingsError(f"--memory {text} is not an amount of memory", "such as 4GB or 800MB")
    return round(float(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2]) + 1))


def format_size(size: tuple[int, int]) -> str:
    """(height, width) as people write it: WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


def _consent(yes: bool) -> Callable[[Sequence[RemoteFile], int], bool]:
    """Agree to a download because of --yes, or by asking on a terminal after saying the size; never otherwise."""

    def ask(files: Sequence[RemoteFile], total_bytes: int) -> bool:
        if not yes and not console.is_interactive():
            return False
        for file in files:
            console.note(f"{file.label}: {file.filename} from {file.repo}, licence {file.licence}")
        if yes:
            console.note(f"downloading {console.human_bytes(total_bytes)}")
            return True
        if not console.confirm(f"Download {console.human_bytes(total_bytes)}?"):
            raise MissingWeightsError(
                f"nothing was downloaded, as you chose; this needs {', '.join(dict.fromkeys(file.label for file in files))}",
                "run it again and answer y, or add --yes",
            )
        return True

    return ask


def _reporter(quiet: bool, verbose: bool) -> console.ConsoleReporter:
    console.be_quiet(quiet)
    return console.ConsoleReporter(quiet=quiet, verbose=verbose)


def _warn_of_old_ffmpeg() -> None:
    from turbovaed_cli.video.ffmpeg import warning_of_age  # noqa: PLC0415 - help stays quick

    if said := warning_of_age():
        console.warn(said)


def _model_or_default(model: str | None) -> str:
    if model is None:
        console.note(f"--model not given: using the embedded pair, {DEFAULT_MODEL}")
    return model or DEFAULT_MODEL


def _finish(skipped: list[Any], check: Callable[[], None] = lambda: None) -> None:
    """Name what was skipped, whatever `check` then raises, and end with 5 if anything was."""
    for item in skipped:
        console.warn(f"skipped: {item.path}: {item.reason_alone}")
    check()
    if skipped:
        raise typer.Exit(5)


def _check_file(path: Path, option: str, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or that is there already, before any work."""
    check_place(path, option)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already", "add --overwrite to replace it")


def _check_folder(place: str, option: str) -> None:
    """Refuse a local folder in which nothing can be written, before any work."""
    if "://" not in place:
        check_place(Path(place), option, folder=True)


def _check_system_for(data: Path | None, what: str) -> None:
    """Refuse to read videos on a system that cannot."""
    if data is not None:
        check_system(what)


def _show_version(*, json: bool) -> None:
    if json:
        console.print_json({"turbovaed": __version__})
    else:
        typer.echo(f"turbovaed {__version__}")


@app.callback()
@command
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Distil the VAE decoders of video diffusion models into small ones that run anywhere, and use them."""
    if version:
        _show_version(json=json)
        raise typer.Exit
    if json:
        raise SettingsError("--json is an option of commands", "write it after the command, as in: turbovaed models --json")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(SettingsError.exit_code)


@models_app.callback()
@command
def models_root(context: typer.Context, json: Json = False) -> None:
    """List the registry."""
    if context.invoked_subcommand is None:
        _list_models(json)


@models_app.command("list")
@command
def models_list(json: Json = False) -> None:
    """List every teacher and its student."""
    _list_models(json)


def _list_models(json: bool) -> None:
    if json:
        console.print_json({"models": [_describe(spec) for spec in MODELS.values()]})
        return
    rows = []
    for spec in MODELS.values():
        teacher = spec.teacher
        rows.append(
            (
                ", ".join((spec.name, *spec.aliases)),
                spec.title,
                f"{teacher.time_ratio}x{teacher.space_ratio}x{teacher.space_ratio}",
                str(teacher.frames),
                f"{teacher.decoder_params_m:.1f}",
                f"{spec.student.params_m:.1f}",
            )
        )
    console.print_table("Models", ["name", "teacher", "ratio", "frames", "decoder M", "student M"], rows)


@models_app.command("show")
@command
def models_show(
    name: Annotated[str, typer.Argument(help="Registry name, alias, or a local VAE folder.")], json: Json = False
) -> None:
    """Show one row: what the teacher needs, what the student is, where weights come from."""
    spec = find_model(name)
    description = _describe(spec)
    if json:
        console.print_json(description)
        return
    flat = [(f"{group} {key}", value) for group in ("teacher", "student") for key, value in description[group].items()]
    console.print_table(f"{spec.name}: {spec.title}", ["", ""], [(key, _in_words(value)) for key, value in flat])


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_in_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        separator = "\n" if value and isinstance(value[0], Mapping | str) else ", "
        return separator.join(_in_words(item).replace("\n", "; ") for item in value) or "none"
    return "none" if value is None else str(value)


def _describe(spec: ModelSpec) -> dict[str, Any]:
    teacher, student = spec.teacher, spec.student
    decoder, params = teacher.decoder_params_m, student.params_m
    if params is None:  # of a local folder, whose own networks are counted
        decoder, params = _counted(spec)
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "title": spec.title,
        "teacher": {
            "class": teacher.class_name,
            "weights": str(teacher.path)
            if teacher.path
            else f"{teacher.repo} {teacher.folder}/{teacher.weights_file}".replace(" /", " "),
            "size": console.human_bytes(teacher.num_bytes) if teacher.num_bytes is not None else "no weights in it",
            "latent channels": teacher.latent_channels,
            "ratio": f"{teacher.time_ratio}x{teacher.space_ratio}x{teacher.space_ratio} (time, height, width)",
            "frames": str(teacher.frames),
            "height and width": f"multiples of {teacher.space_ratio}",
            "decoder": f"{decoder} M parameters" if decoder is not None else "not known without its weights",
            "required settings": {setting.name: f"{setting.value} ({setting.why})" for setting in teacher.required},
            "licence": teacher.licence + (f"; {teacher.licence_note}" if teacher.licence_note else ""),
        },
        "student": {
            "parameters": f"{params} M",
            "recipe": f"{spec.recipe}: {RECIPES[spec.recipe].steps:,} steps, {RECIPES[spec.recipe].clips:,} clips",
            "aligned": [f"{p.student_block} -> {p.teacher_tap}" + (" (head)" if p.head else "") for p in student.pairs],
            "published results": {
                **{name: f"{ours:g} (teacher {theirs:g})" for name, (theirs, ours) in spec.published_results.items()},
                "measured on": PUBLISHED_ON,
            }
            if spec.published_results and teacher.repo
            else None,
            "published weights": f"{student.published.repo} {student.published.filename}, {student.published.licence}"
            if student.published
            else None,
            "config": {key: list(value) if isinstance(value, tuple) else value for key, value in student.config.items()},
        },
    }


def _counted(spec: ModelSpec) -> tuple[float | None, float]:
    """Millions of parameters: of a local teacher's decoder (None without its weights), and of its student."""
    from turbovaed_cli.models.design import cost_of  # noqa: PLC0415 - it imports torch, which rows of the registry do not need
    from turbovaed_cli.models.teacher import decoder_params_of  # noqa: PLC0415

    found = decoder_params_of(spec)
    return None if found is None else round(found / 1e6, 3), round(cost_of(spec.student.config, (1, 1, 1)).params / 1e6, 3)


@models_app.command("design")
@command
def models_design(
    name: Annotated[str, typer.Argument(help="Registry name, alias, or a local VAE folder.")],
    params: Params = None,
    gflops: Gflops = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Pixel frames of a decode. Default: 17 or a few more.")] = None,
    size: Size = format_size(DistillSettings.size),
    json: Json = False,
) -> None:
    """Show which student `distill` would build for a budget, and what it was chosen from."""
    from turbovaed_cli.models.design import Budget, design_student  # noqa: PLC0415 - help stays quick

    spec = find_model(name)
    frames = frames or spec.teacher.frames.at_least(DistillSettings.frames)
    design = design_student(spec, Budget(parse_count(params) if params else None, gflops, frames, parse_size(size)))
    if json:
        console.print_json(design)
    else:
        _show_design(design)


def _show_design(design: "Design", *, on_stderr: bool = False) -> None:
    """The candidates around the choice; on stderr where the result is another."""
    from turbovaed_cli.models.design import as_rows, as_sentence  # noqa: PLC0415 - help stays quick

    title = f"Students of {design.model} for {design.budget}"
    columns = ["channels", "layers", "M params", "GFLOPs", "of\npublished", "of\nteacher", "change", "in\nbudget"]
    console.print_table(title, columns, as_rows(design), on_stderr=on_stderr)
    console.note(as_sentence(design))


@models_app.command("pull")
@command
def models_pull(
    name: Annotated[str, typer.Argument(help="Registry name, or lpips-vgg, lpips-alex, i3d.")],
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download weights into the cache: says the size and asks first."""
    from turbovaed_cli.registry.download import pull  # noqa: PLC0415 - help stays quick

    result = pull(name, _consent(yes), _reporter(quiet, verbose))
    if json:
        console.print_json(result)
        return
    rows = [(Path(file.path).name, console.human_bytes(file.num_bytes), file.sha256[:16]) for file in result.files]
    console.print_table(f"{name} is in the cache", ["file", "size", "sha256"], rows)
    if name == "i3d":
        console.note(
            f"it is code: compare its sha256 with a source you trust, then turbovaed eval --i3d-sha256 {result.files[0].sha256}"
        )


@app.command("cache-latents")
@command
def cache_latents(
    out: Annotated[str, typer.Option("--out", help="The cache folder, or an fsspec URL; running again adds what is missing.")],
    data: Annotated[
        str | None, typer.Option("--data", help="A folder of videos, one video, or an fsspec URL such as s3://bucket/videos.")
    ] = None,
    teacher: Teacher = DEFAULT_MODEL,
    frames: Frames = CacheSettings.frames,
    size: Size = format_size(CacheSettings.size),
    stride: Annotated[int, typer.Option("--stride", help="Take every n-th frame.")] = CacheSettings.stride,
    hdr: Hdr = CacheSettings.hdr,
    clips_per_video: Annotated[
        int, typer.Option("--clips-per-video", help="At most this many, evenly spread; 0 takes all that fit.")
    ] = CacheSettings.clips_per_video,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Clips encoded at once.")] = CacheSettings.batch_size,
    shard_mb: Annotated[int, typer.Option("--shard-mb", help="Size at which a shard is closed.")] = CacheSettings.shard_mb,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="fp32, bf16 or fp16; bf16 moves latents by 5 % on the embedded teacher, others not measured."
        ),
    ] = CacheSettings.dtype,
    precise: Annotated[bool, typer.Option("--precise", help=_PRECISE_HELP)] = CacheSettings.precise,
    device: Device = CacheSettings.device,
    workers: Annotated[
        int,
        typer.Option("--workers", help="Videos read ahead of the encoder; 0 takes two, on CUDA one per core, up to eight."),
    ] = CacheSettings.workers,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", help="Take the share INDEX/COUNT, from 0/COUNT on. Default: as Slurm, torchrun or Kubernetes say."
        ),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", help="End with 4 when more videos and clips than this cannot be read.")
    ] = CacheSettings.max_failures,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Look again at what could not be read before.")
    ] = CacheSettings.retry_failed,
    status: Annotated[
        bool, typer.Option("--status", help="Show how far the cache is, from any machine, and do nothing.")
    ] = False,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", help="Copy this cache into --out, and do nothing else; repeat.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look into some videos, time some clips, say what it would take, write nothing.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode clips once: posterior mean and std, and the pixels they were made from. Any number of machines at once."""
    check_dtype(dtype)
    check_device(device)
    if not status:
        check_system("cache-latents")
        _check_folder(out, "--out")
    from turbovaed_cli.latents.caching import cache_latents as run  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.latents.parts import parse_shard, shard_from_environment  # noqa: PLC0415
    from turbovaed_cli.machine.devices import device_of_rank  # noqa: PLC0415

    if sum(map(bool, (status, merge, dry_run))) > 1 or (merge and data is not None):
        raise SettingsError("--status, --merge and --dry-run each do one thing", "give one of them; --merge without --data")
    if status or merge:
        _show_cache(out, merge or [], json=json, report=_reporter(quiet, verbose))
        return
    if data is None:
        raise SettingsError("--data is missing", "give a folder of videos, or --status to look at the cache")
    _warn_of_old_ffmpeg()
    share, why = (parse_shard(shard), "") if shard is not None else shard_from_environment(os.environ)
    if why and share is None:
        raise SettingsError(why)
    if why:
        console.note(why)
        device = device_of_rank(device, os.environ)
    if share is None and "://" in out:
        console.warn("nothing keeps other workers away behind a URL: start one, or give each its --shard")
    settings = CacheSettings(
        frames,
        parse_size(size),
        stride,
        clips_per_video,
        batch_size,
        shard_mb,
        dtype,
        device,
        workers,
        max_failures,
        retry_failed,
        hdr=hdr,
        precise=precise,
    )
    report = _reporter(quiet, verbose)
    if dry_run:
        _show_estimate(find_model(teacher), data, out, settings, share, json=json, report=report)
        return
    result = run(find_model(teacher), data, out, settings, shard=share, consent=_consent(yes), report=report)
    if json:
        console.print_json(result)
    else:
        busy = None if result.encoder_busy is None else f"{100 * result.encoder_busy:.0f} %"
        console.print_table(
            "Latent cache",
            ["encoded", "already there", "skipped", "encoder busy", "folder", *(["shard"] if share else [])],
            [(result.encoded, result.found, len(result.skipped), busy, out, *([share] if share else []))],
        )
        for other in result.left_to_others:
            console.note(f"{other} is at work on the rest; turbovaed cache-latents --status --out {out} shows how far")
        if not result.left_to_others and share is None:
            console.note(f"next: turbovaed distill --teacher {teacher} --latents {out}")
    _finish(result.skipped)


def _show_cache(out: str, merge: Sequence[Path], *, json: bool, report: console.ConsoleReporter) -> None:
    """`cache-latents --status` and `--merge`."""
    from turbovaed_cli.latents.merge import merge_caches  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.latents.status import cache_status  # noqa: PLC0415 - help stays quick

    if "://" in out:
        raise SettingsError("--status and --merge look at local folders", "give a folder, or copy what lies behind the URL")
    if merge:
        merged = merge_caches(merge, Path(out), report)
        if json:
            console.print_json(merged)
        else:
            columns = ["clips", "shards copied", "already there", "folder"]
            console.print_table("Merged", columns, [(merged.clips, merged.copied_shards, merged.found_shards, out)])
        return
    found = cache_status(Path(out))
    if json:
        console.print_json(found)
        return
    share = f" of {found.videos}, {100 * found.done / found.videos:.1f} %" if found.videos else ""
    rows = [
        ("videos", f"{found.done}{share}"),
        ("clips", f"{found.clips}, {console.human_bytes(found.bytes)}"),
        ("at work", "; ".join(found.working) or "nobody"),
    ]
    if found.tf32_clips:
        rows.append(("in TF32", f"{found.tf32_clips} of {found.clips} clips"))
    if found.clips_per_s is not None:
        rows.append(("speed", f"{found.clips_per_s:.3g} clips/s over the last ten minutes"))
    if found.seconds_left is not None:
        rows.append(("left", console.human_span(found.seconds_left)))
    console.print_table(f"Latent cache {out}", ["", ""], rows)
    for item in found.failed:
        console.warn(f"failed: {item.path}: {item.reason}")
    if found.failed:
        console.note("the same command with --retry-failed looks at them again")


def _show_estimate(
    spec: ModelSpec,
    data: str,
    out: str,
    settings: CacheSettings,
    shard: "Shard | None",
    *,
    json: bool,
    report: console.ConsoleReporter,
) -> None:
    """`cache-latents --dry-run`."""
    from turbovaed_cli.latents.estimate import estimate_cache  # noqa: PLC0415 - help stays quick

    found = estimate_cache(spec, data, out, settings, shard=shard, report=report)
    if json:
        console.print_json(found)
    else:
        about = "" if found.looked_into == found.videos else "about "
        rows = [
            ("videos", f"{found.videos}, {found.looked_into} of them looked into"),
            ("clips to encode", f"{about}{found.clips}"),
            ("disk", f"{about}{console.human_bytes(found.disk_bytes)}{_free_in_words(found)}"),
            ("time", _time_in_words(found)),
            ("memory", f"{found.peak_mb:.0f} MB" if found.peak_mb else "not measured"),
            ("download", _download_in_words(found)),
        ]
        console.print_table("It would take", ["", ""], rows)
        _warn_of_room(found, out)
    _finish(found.skipped)


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


def _time_in_words(found: "CacheEstimate | DistillEstimate") -> str:
    if found.seconds is None:
        return "not measured"
    return f"about {console.human_span(found.seconds)} on this {found.device}" if found.seconds else "nothing is left to do"


def _download_in_words(found: "CacheEstimate | DistillEstimate") -> str:
    return console.human_bytes(found.download_bytes) if found.download_bytes else "nothing"


def _free_in_words(found: "CacheEstimate | DistillEstimate") -> str:
    return "" if found.free_bytes is None else f" of {console.human_bytes(found.free_bytes)} free"


def _warn_of_room(found: "CacheEstimate | DistillEstimate", place: str) -> None:
    if found.free_bytes is not None and (found.disk_bytes or 0) > found.free_bytes:
        console.warn(f"{place} has room for {console.human_bytes(found.free_bytes)}")


@app.command("distill")
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
    hdr: Annotated[str | None, typer.Option("--hdr", help=_HDR_HELP)] = None,
    crop: Annotated[
        str | None, typer.Option("--crop", help="Learn from random crops of this size, WIDTHxHEIGHT, in every stage.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate, in every stage.")] = None,
    lr_schedule: Annotated[str | None, typer.Option("--lr-schedule", help="constant or cosine.")] = None,
    warmup_steps: Annotated[int | None, typer.Option("--warmup-steps", help="Steps of linear warm-up.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help=f"{_one_of(OPTIMIZERS)}.")] = None,
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
    precise: Annotated[bool | None, typer.Option("--precise", help=_PRECISE_HELP)] = None,
    device: Annotated[str | None, typer.Option("--device", help=f"{_one_of(DEVICES)}.")] = None,
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
        _check_folder(folder, "--run")
    settings = read_recipe(_recipe_named(recipe, spec, folder))
    check_choice("--dtype", dtype or "auto", (*DTYPES, "auto"))
    check_choice("--optimizer", optimizer or settings.optimizer, OPTIMIZERS)
    check_device(device or "auto")
    if nproc != 1 and not dry_run:
        _launch(nproc)
    from turbovaed_cli.evaluation.evaluate import as_document  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.metrics.table import as_tables  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.models.design import Budget, design_student  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.models.loading import read_config  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.runs.rundir import RunDir  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.training.distill import distill as teach  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.training.distill import estimate_distill  # noqa: PLC0415
    from turbovaed_cli.video import list_videos  # noqa: PLC0415 - help stays quick

    if data is not None:
        _warn_of_old_ffmpeg()

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
    report = _reporter(quiet, verbose)
    design = None
    if params is not None or gflops is not None:
        if student_config is not None or init is not None:
            raise SettingsError(
                "--params and --gflops design a student, --student-config and --init bring one", "leave out one of the two"
            )
        budget = Budget(parse_count(params) if params else None, gflops, settings.frames, settings.size)
        design = design_student(spec, budget)
        if not quiet and (verbose or not RunDir.is_run(Path(folder))):  # a resume has shown it before
            _show_design(design, on_stderr=True)
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
        consent=_consent(yes),
        report=report,
    )
    measured = _measure_run(spec, folder, val, latents, settings, report) if val is not None else None
    if json:
        extras = {"design": design, "evaluation": measured and as_document(measured)}
        console.print_json(asdict(result) | {name: value for name, value in extras.items() if value is not None})
    else:
        _show_distilled(result)
        for table in as_tables([measured], val) if measured and val else ():
            console.print_table(table.title, table.columns, table.rows)
        console.note(f"next: turbovaed eval --model {folder} --data DIR; turbovaed reconstruct IN.mp4 --model {folder}")
    _finish(result.skipped)


def _recipe_named(recipe: str, spec: "ModelSpec", run: str) -> str:
    """The name of a recipe or file: for `default` that of a run that is there, or the teacher's. Older runs have other names."""
    from turbovaed_cli.runs.rundir import RunDir  # noqa: PLC0415 - help stays quick

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
            ("time", _time_in_words(found)),
            (
                "disk",
                "not measured"
                if found.disk_bytes is None
                else f"at most {console.human_bytes(found.disk_bytes)}{_free_in_words(found)}",
            ),
            ("download", _download_in_words(found)),
        ]
        console.print_table("It would take", ["", ""], facts)
        _warn_of_room(found, found.run)
    _finish(found.skipped)


def _measure_run(
    spec: ModelSpec, run: str, val: Path, latents: str | None, settings: DistillSettings, report: console.ConsoleReporter
) -> "EvalResult":
    """`eval` of a finished run on clips of the shape it learnt from; kept in the run folder, with its page."""
    from turbovaed_cli.evaluation.evaluate import evaluate as measure  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.latents.cache import LatentCache  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.machine.ranks import join_ranks  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.runs.rundir import open_run  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.training.distill import trained_pair  # noqa: PLC0415 - help stays quick

    ranks = join_ranks(settings.device)
    shape = LatentCache(latents) if latents is not None else settings
    eval_settings = EvalSettings(frames=shape.frames, size=shape.size, device=settings.device, hdr=settings.hdr)
    nowhere = nullcontext((Path(run), lambda: None))
    with ranks.together(), open_run(run, checkpoints=False) if ranks.is_first else nowhere as (folder, _):
        pair = trained_pair(folder, spec, ranks)
        result = measure(pair, val, eval_settings, ranks=ranks, report=report)
        if ranks.is_first:
            _keep(result, pair, eval_settings, val)
    return result


@app.command("reconstruct")
@command
def reconstruct(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A video, a latents file (.safetensors, .latent, .pt), or a folder of them (then --out is one too).",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The video to write, or a folder for it. Default: INPUT-turbovaed.mp4 in this folder."),
    ] = None,
    model: Model = None,
    config: ModelConfig = None,
    teacher: TeacherOf = None,
    compare: Annotated[bool, typer.Option("--compare", help="Source, teacher and student side by side.")] = False,
    memory: Annotated[
        str, typer.Option("--memory", help="Keep to so much memory, such as 4GB. Default: seven tenths of what is free.")
    ] = "",
    fast: Annotated[
        bool, typer.Option("--fast/--no-fast", help="Decode in the fast form, or with nothing but its layout.")
    ] = ReconstructSettings.fast,
    window: Annotated[
        int, typer.Option("--window", help="Frames that --compare takes at once; 0 chooses by the frame's size.")
    ] = ReconstructSettings.window,
    overlap: Annotated[
        int, typer.Option("--overlap", help="Frames that its windows share and fade over.")
    ] = ReconstructSettings.overlap,
    fps: Annotated[
        float, typer.Option("--fps", help="Frame rate for latents and for folders of frames, which have none.")
    ] = ReconstructSettings.fps,
    latents_are: LatentsAre = ReconstructSettings.latents_are,
    latents_shape: LatentsShape = "",
    codec: Annotated[
        str, typer.Option("--codec", help="h264 or h265 (.mp4, .mov, .mkv), prores (.mov, .mkv), or ffv1 (.mkv, lossless).")
    ] = ReconstructSettings.codec,
    bits: Annotated[int | None, typer.Option("--bits", help="Bits per channel: 8 or 10. Default: 8; of prores 10.")] = None,
    crf: Annotated[
        int | None, typer.Option("--crf", help="Quality of h264 and h265, 0 (best) to 51. Default: 16.")
    ] = ReconstructSettings.crf,
    sound: Annotated[str, typer.Option("--sound", help="Sound tracks of the video: keep or drop.")] = ReconstructSettings.sound,
    dtype: Dtype = ReconstructSettings.dtype,
    device: Device = ReconstructSettings.device,
    hdr: Hdr = ReconstructSettings.hdr,
    overwrite: Overwrite = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Video in, video out, through the teacher's encoder and the student's decoder, in bounded memory."""
    check_system("reconstruct")
    settings = ReconstructSettings(
        memory=parse_bytes(memory) if memory else 0, fast=fast, compare=compare, window=window, overlap=overlap, fps=fps, hdr=hdr,
        codec=codec, bits=_given(bits, "bits"), crf=crf, sound=sound, dtype=dtype, device=device,
        latents_are=latents_are, latents_shape=_latents_shape(latents_shape),
    )  # fmt: skip
    check_reconstruct(settings)
    if not source.exists():
        raise SettingsError(f"{source} is not there", "give a video, a latents file, or a folder of them")
    if out is not None and not os.path.isdir(out) and not source.is_dir():  # noqa: PTH112 - of a name that is too long, no error yet
        check_video_name(out)
        _check_file(out, "--out", overwrite=overwrite)
    from turbovaed_cli.latents.latent_files import is_latents_file  # noqa: PLC0415
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.models.pair import load_pair  # noqa: PLC0415
    from turbovaed_cli.reconstruction.folder import plan_folder, reconstruct_folder  # noqa: PLC0415
    from turbovaed_cli.reconstruction.reconstruct import check_settings, output_path  # noqa: PLC0415
    from turbovaed_cli.reconstruction.reconstruct import reconstruct as run  # noqa: PLC0415
    from turbovaed_cli.video import frames_in  # noqa: PLC0415

    report = _reporter(quiet, verbose)
    _warn_of_old_ffmpeg()
    place = output_path(source, out, settings)
    is_folder = source.is_dir() and not frames_in(source)
    if is_folder:
        if out is None:
            raise SettingsError(f"{source} is a folder: name the folder to write to", "--out FOLDER")
        needs_teacher = not all(is_latents_file(path) for path in plan_folder(source, out, settings))
    else:
        check_settings(settings, place)
        _check_file(place, "--out", overwrite=overwrite)
        needs_teacher = not is_latents_file(source)
        if out is None:
            console.note(f"--out not given: writing {place.absolute()}")
    on, precision = resolve_device(device, report), resolve_dtype(dtype)
    warn_of_cudnn(on, precision, report)
    pair = load_pair(
        _model_or_default(model),
        teacher,
        config=config,
        with_teacher=needs_teacher,
        device=on,
        dtype=precision,
        consent=_consent(yes),
    )
    if is_folder:
        _show_folder(reconstruct_folder(source, out or Path(), pair, settings, overwrite=overwrite, report=report), json)
        return
    result = run(source, place, pair, settings, overwrite=overwrite, report=report)
    if json:
        console.print_json({**asdict(result), "fps": float(result.fps)})
        return
    console.print_table("Reconstructed", ["file", "frames", "size", "fps"], [_row_of(result)])


def _given(number: int | None, name: str) -> int:
    """An optional number above 0, of which 0 inside means that it was not given."""
    if number is not None and number < 1:
        raise SettingsError(f"--{name} is {number}; it must be at least 1")
    return number or 0


def _row_of(result: "ReconstructResult") -> tuple[object, ...]:
    return result.out, result.num_frames, f"{result.width}x{result.height}", f"{float(result.fps):.3f}"


def _show_folder(result: "FolderResult", json: bool) -> None:
    """A record or a row for every input; exit code 5 if any failed."""
    if json:
        items = [
            {"path": item.path, "out": item.out, "status": item.status}
            | ({"reason": item.reason} if item.reason else {})
            | ({**asdict(item.result), "fps": float(item.result.fps)} if item.result else {})
            for item in result.items
        ]
        console.print_json({"out": result.out, "inputs": items})
    else:
        rows = [_row_of(item.result) if item.result else (item.out, "", "", item.status) for item in result.items]
        console.print_table("Reconstructed", ["file", "frames", "size", "fps"], rows)
    from turbovaed_cli.video.usable import Skipped  # noqa: PLC0415 - help stays quick

    _finish([Skipped(str(item.path), item.reason) for item in result.of_status("failed")])


@app.command("eval")
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
        _check_file(report, "--report", overwrite=overwrite)
    for name in filter(None, (model, *(compare or ()), *(more or ()))):
        _check_run_folder(Path(name))
    from turbovaed_cli.evaluation.evaluate import (  # noqa: PLC0415 - help stays quick
        SPEED_REPEATS,
        as_document,
        check_settings,
        evaluate_all,
        find_misses,
        met_thresholds,
        parse_thresholds,
    )
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.metrics.table import as_tables  # noqa: PLC0415
    from turbovaed_cli.models.pair import load_pair  # noqa: PLC0415

    _warn_of_old_ffmpeg()

    thresholds = parse_thresholds(fail_under or [])
    settings = EvalSettings(
        frames, parse_size(size), stride, clips_per_video, protocol, dtype, device, tuple(filter(None, metrics.split(","))),
        tuple(lpips_weights or ()), i3d, i3d_sha256, dataset, SPEED_REPEATS if speed else 0, hdr=hdr
    )  # fmt: skip
    check_settings(settings)
    reporter = _reporter(quiet, verbose)
    on, precision, consent = resolve_device(device, reporter), resolve_dtype(dtype), _consent(yes)
    warn_of_cudnn(on, precision, reporter)
    others = [*(compare or ()), *(more or ())]
    if others and not compare:
        raise SettingsError(f"unexpected: {' '.join(others)}", f"--model {others[0]}, or --compare A B for several models")
    names = [model, *others] if model or not others else others
    pairs = [
        load_pair(
            _model_or_default(name),
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
        documents = [as_document(result) for result in results]
        console.print_json(documents[0] | ({"comparisons": documents[1:]} if others else {}))
    else:
        for table in as_tables(results, data, every_clip=verbose):
            console.print_table(table.title, table.columns, table.rows)
    for pair, result in zip(pairs, results, strict=True):
        _keep(result, pair, settings, data, report)
    misses = [miss for result in results for miss in find_misses(result, thresholds)]
    for line in met_thresholds(results, thresholds):
        console.note(line)

    def check() -> None:
        if misses:
            raise CheckFailedError(
                "; ".join(str(miss) for miss in misses),
                "docs/METRICS.md says what is compared; the clips to look at are in the table",
            )

    _finish(results[0].skipped, check)


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


def _keep(result: "EvalResult", pair: "Pair", settings: EvalSettings, data: Path, report: Path | None = None) -> None:
    """Into the run folder, where the model is one: the document and report.html; the page to `report` too."""
    from turbovaed_cli.evaluation.evaluate import as_document, clip_frames  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.files.whole import write_json  # noqa: PLC0415
    from turbovaed_cli.report.run_page import report_of_eval, write_report  # noqa: PLC0415

    if pair.run is not None:
        name = f"{_short(data.name) or 'data'}-{settings.frames}x{format_size(settings.size)}-{settings.protocol}.json"
        write_json(pair.run.eval / name, as_document(result))
        console.note(f"kept in {pair.run.eval / name}")
    pages = [page for page in (report, pair.run.report if pair.run else None) if page is not None]
    if pages:
        page = report_of_eval(result, pair, functools.partial(clip_frames, pair, settings=settings), settings, data)
        write_report(pages, page)
        console.note(f"to look at: {', '.join(map(str, pages))}")


@app.command("export")
@command
def export(
    out: Annotated[Path, typer.Option("--out", help="The artefact to write, or a folder for several.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}; several by commas. Default: onnx.",
        ),
    ] = None,
    model: Model = None,
    config: ModelConfig = None,
    teacher: TeacherOf = None,
    frames: Frames = ExportSettings.frames,
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT, 720p, or a number; several by commas.")] = format_size(
        ExportSettings.sizes[0]
    ),
    dtype: Annotated[
        str, typer.Option("--dtype", help=f"{', '.join(PRECISIONS)}; several by commas. Default: each format's own.")
    ] = "",
    layout: Annotated[str, typer.Option("--layout", help=f"{_one_of(LAYOUTS)}.")] = ExportSettings.layout,
    chunk: Annotated[
        int, typer.Option("--chunk", help="Also write a graph of so many latent frames, which decodes any length piece by piece.")
    ] = ExportSettings.chunk,
    states: Annotated[
        bool, typer.Option("--states", help="With --chunk: Core ML keeps the frames between two chunks itself (iOS 18).")
    ] = ExportSettings.states,
    data: Annotated[
        Path | None, typer.Option("--data", help="Videos, whose latents artefacts are calibrated and checked on.")
    ] = None,
    hdr: Hdr = ExportSettings.hdr,
    latents: Annotated[Path | None, typer.Option("--latents", help="A latents file to calibrate and check on instead.")] = None,
    latents_are: LatentsAre = ExportSettings.latents_are,
    latents_shape: LatentsShape = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the random latents it is checked on otherwise.")] = ExportSettings.seed,
    overwrite: Overwrite = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the student for other runtimes, and check each written file right away as far as this machine can."""
    _check_system_for(data, "export --data")
    names = _listed(formats or ["onnx"])
    precisions = _listed([dtype])
    check_choices("--format", names, FORMATS)
    check_choices("--dtype", precisions, PRECISIONS)
    check_choice("--layout", layout, LAYOUTS)
    settings = ExportSettings(
        frames, tuple(parse_size(part) for part in size.split(",")), precisions, layout, chunk,
        states, seed=seed, latents=latents, data=data, overwrite=overwrite,
        latents_are=latents_are, latents_shape=_latents_shape(latents_shape), hdr=hdr,
    )  # fmt: skip
    check_place(out, folder=None, longest_suffix=".unverified" if out.suffix else "")  # what a missed check adds
    from turbovaed_cli.export.export import export_student, next_commands, raise_for_misses  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.models.pair import load_pair  # noqa: PLC0415

    pair = load_pair(_model_or_default(model), teacher, config=config, with_teacher=data is not None, consent=_consent(yes))
    result = export_student(pair.student, names, out, settings, _reporter(quiet, verbose), teacher=pair.teacher)
    if json:
        console.print_json(result)
    else:
        rows = [
            (
                item.path.name,
                f"{item.size_mb:.1f}",
                item.precision,
                "-" if item.max_abs is None else f"{item.max_abs:.1e}",
                "-" if item.psnr_db is None else f"{item.psnr_db:.1f}",
                item.status,
            )
            for item in result.artifacts
        ]
        console.print_table("Exported", ["file", "MB", "dtype", "max abs", "PSNR", "checked"], rows)
    checked_on = next((item.checked_on for item in result.artifacts if item.checked_on), "nothing: none of it runs here")
    console.note(f"checked on {checked_on}; {result.document} has it all")
    if not result.missed:
        for line in next_commands(result, model or DEFAULT_MODEL):
            console.note(f"next: {line}")
    _finish(result.skipped, lambda: raise_for_misses(result))


@app.command("bench")
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
    _check_system_for(data, "bench --data")
    names = _listed(target) or BenchSettings.targets
    check_choices("--target", names, (*TARGETS, "all"))
    check_choices("--dtype", _listed([dtype]), PRECISIONS)
    check_choices("--layout", _listed([layout]), LAYOUTS)
    if device.partition(":")[0] not in APPLE_DEVICES:
        check_device(device, APPLE_DEVICES)
    if report is not None:
        _check_file(report, "--report", overwrite=overwrite)
    if ios_project is not None:
        check_place(ios_project, "--ios-project", folder=True)
        check_place(ios_project.parent, "--ios-project", folder=True)  # where the old and the new one change places
    from turbovaed_cli.benchmarking import results  # noqa: PLC0415
    from turbovaed_cli.benchmarking.bench import bench as run  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.benchmarking.bench import write_ios_project  # noqa: PLC0415

    least, earlier = results.thresholds(_listed(fail_under)), [results.read_document(path) for path in compare or []]
    settings = BenchSettings(
        TARGETS if "all" in names else names, frames, parse_size(size), _listed([dtype]), _listed([layout]), warmup,
        repeats, threads, device, apple_team, not no_teacher, compiled, data, latents, seed=seed,
        memory_frames=_lengths(memory_frames), latents_are=latents_are, latents_shape=_latents_shape(latents_shape), hdr=hdr,
    )  # fmt: skip
    if ios_project is not None:
        skipped = write_ios_project(
            ios_project,
            _model_or_default(model),
            settings,
            teacher=teacher,
            config=config,
            overwrite=overwrite,
            consent=_consent(yes),
            report=_reporter(quiet, verbose),
        )
        console.note(f"next: {ios_project / 'README.md'} says how to run it")
        _finish(skipped)
        return
    result = run(
        _model_or_default(model),
        settings,
        teacher=teacher,
        config=config,
        consent=_consent(yes),
        report=_reporter(quiet, verbose),
    )
    compared = results.changes(result.rows, earlier[0]["rows"]) if earlier else []
    if json:
        console.print_json(results.as_document(result, compared))
    else:
        console.note(result.header)
        console.note(f"decoding {result.latents}; load average before and after: {_loads(result.load_average)}")
        for title, columns, rows in results.tables(result, compared):
            console.print_table(title, columns, rows)
        if result.no_estimate:
            console.note(result.no_estimate)
        console.note(f"runtimes: {', '.join(dict.fromkeys(row.runtime for row in result.rows if row.measured)) or 'none'}")
        for line in dict.fromkeys(f"{row.target}: {line}" for row in result.rows for line in results.said(row)):
            console.note(line)
    if earlier and not compared:
        console.warn(f"{compare[0] if compare else ''} has no row that this run measured too")
    if earlier and not results.same_machine(earlier[0]["machine"], result.header):
        console.warn(f"the earlier run is from another machine: {earlier[0]['machine']}")
    if report is not None:
        from turbovaed_cli.report.bench_page import write_page  # noqa: PLC0415 - needed with --report alone

        write_page(report, [results.as_document(result), *earlier])
        console.note(f"to look at: {report}")

    def check() -> None:
        for failure in result.failures:
            raise failure
        results.raise_for_thresholds(result, least)

    _finish(result.skipped, check)


def _short(name: str) -> str:
    """The beginning of a file's name, which leaves room for more in a name of 255 bytes."""
    while len(os.fsencode(name)) > _MOST_NAME_BYTES:
        name = name[:-1]
    return name


def _listed(items: Sequence[str] | None) -> tuple[str, ...]:
    """Of an option that is repeated, or takes several by commas."""
    return tuple(name for item in items or () for name in item.split(",") if name)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise SettingsError(f"--memory-frames {text} is no list of numbers", "such as 17,33,65") from None


def _latents_shape(text: str) -> tuple[int, ...]:
    parts = text.lower().replace("x", ",").split(",") if text else []
    if text and not (len(parts) == 3 and all(part.strip().isdecimal() and len(part) <= 9 and int(part) for part in parts)):
        raise SettingsError(f"--latents-shape {text} is not three numbers", "latent frames, rows and columns, such as 16,15,22")
    return tuple(map(int, parts))


def _loads(loads: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {before:.1f} and {after:.1f}" for name, (before, after) in loads.items()) or "not known"


@app.command("runs")
@command
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder that holds the runs.")] = Path("runs"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List runs: how far each came, its best figure, and when it last gave a sign of life."""
    from turbovaed_cli.runs.listing import list_runs  # noqa: PLC0415 - help stays quick

    console.be_quiet(quiet)
    found = list_runs(folder)
    if json:
        console.print_json({"runs": found})
        return
    figures = {"psnr": "PSNR {:.2f} dB", "l1": "L1 {:.4g}"}
    rows = [
        (
            run.name,
            run.status,
            f"{run.step}/{run.steps}" if run.steps is not None else "",
            run.stage,
            figures[run.metric].format(run.best) if run.metric else "",
            console.human_age(run.age_s) if run.age_s is not None else "",
        )
        for run in found
    ]
    console.print_table(f"Runs in {folder}", ["run", "status", "step", "stage", "best", "age"], rows)
    for run in found:
        if run.status == "broken":
            console.warn(f"{run.name}: {run.reason}")
        elif run.status in ("stopped", "unfinished"):
            console.note(f"{run.name}: {run.reason}")


@app.command("env")
@command
def env(json: Json = False) -> None:
    """Versions and hardware: a block to paste into a bug report."""
    from turbovaed_cli.machine.devices import environment, resolve_device  # noqa: PLC0415 - help stays quick
    from turbovaed_cli.video.ffmpeg import version as ffmpeg_version  # noqa: PLC0415

    facts = environment(resolve_device("auto", _reporter(quiet=False, verbose=False))) | {"ffmpeg": ffmpeg_version()}
    if json:
        console.print_json(facts)
        return
    packages = facts.pop("packages")
    rows = [(key, "none" if value is None else str(value)) for key, value in [*facts.items(), *packages.items()]]
    console.print_table("Environment", ["", ""], rows)


@app.command("help")
def show_help(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="A command, such as distill or models show.")
    ] = None,
) -> None:
    """Show the help of a command, as its --help does."""
    app([*(names or ()), "--help"], prog_name="turbovaed", standalone_mode=False)


@app.command("version")
@command
def show_version(json: Json = False) -> None:
    """Print the version, as --version does."""
    _show_version(json=json)


def main() -> None:
    """The `turbovaed` executable: the app, with its usage errors in our two lines."""
    open_standard_streams()
    # torch's words about an NVIDIA driver that is too old, which any import may bring up: --device has ours (gpus.py).
    warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
    if sys.argv[1:2] == ["distill"]:
        end_with_launcher()
        if is_beside_another():
            console.leave_it_to_another()
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:  # before the command began
        code = 130
    except Exception as error:
        # Typer carries its own click, which is not ours to import: its usage errors are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        where = getattr(getattr(error, "ctx", None), "command_path", "turbovaed")
        console.print_error(SettingsError(error.format_message(), f"{where} --help"))
        code = 2
    code = code if isinstance(code, int) else 0
    if (lost := lost_output()) is not None:
        console.print_error(TurboVaedError(f"stdout could not be written: {(lost.strerror or str(lost)).lower()}", LOST_OUTPUT))
        code = code or TurboVaedError.exit_code
    end_process(code)
