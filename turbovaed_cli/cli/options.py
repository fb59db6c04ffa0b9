"""Options that mean the same in every command, and what their values are made into."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.errors import MissingWeightsError, OutputExistsError, SettingsError
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.system import check_system
from turbovaed_cli.registry.download import RemoteFile
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.settings import DEVICES, DTYPES
from turbovaed_cli.units import human_bytes


def one_of(names: Sequence[str]) -> str:
    """The names as a choice: "a, b or c"."""
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
Device = Annotated[str, typer.Option("--device", help=f"{one_of(DEVICES)}.")]
Dtype = Annotated[str, typer.Option("--dtype", help=f"{one_of(DTYPES)}.")]
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
HDR_HELP = "HDR videos (PQ, HLG): tonemap shows them in SDR, refuse skips them."
Hdr = Annotated[str, typer.Option("--hdr", help=HDR_HELP)]
PRECISE_HELP = "Compute the teacher in full fp32 on NVIDIA GPUs too, which use TF32 for it by default."
Yes = Annotated[bool, typer.Option("--yes", help="Agree to downloads beforehand.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only results, warnings and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More notes.")]


def consent_of(yes: bool) -> Callable[[Sequence[RemoteFile], int], bool]:
    """Agree to a download because of --yes, or by asking on a terminal after saying the size; never otherwise."""

    def ask(files: Sequence[RemoteFile], total_bytes: int) -> bool:
        if not yes and not console.is_interactive():
            return False
        for file in files:
            console.note(f"{file.label}: {file.filename} from {file.repo}, licence {file.licence}")
        if yes:
            console.note(f"downloading {human_bytes(total_bytes)}")
            return True
        if not console.confirm(f"Download {human_bytes(total_bytes)}?"):
            raise MissingWeightsError(
                f"nothing was downloaded, as you chose; this needs {', '.join(dict.fromkeys(file.label for file in files))}",
                "run it again and answer y, or add --yes",
            )
        return True

    return ask


def reporter_of(quiet: bool, verbose: bool) -> console.ConsoleReporter:
    """The reporter that -q and -v ask for."""
    console.be_quiet(quiet)
    return console.ConsoleReporter(quiet=quiet, verbose=verbose)


def warn_of_old_ffmpeg() -> None:
    """Warn of an ffmpeg that is older than what we know."""
    from turbovaed_cli.video.ffmpeg import warning_of_age

    if said := warning_of_age():
        console.warn(said)


def model_or_default(model: str | None) -> str:
    """The model that was named, or the embedded pair, with a note that names it."""
    if model is None:
        console.note(f"--model not given: using the embedded pair, {DEFAULT_MODEL}")
    return model or DEFAULT_MODEL


def check_file(path: Path, option: str, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or that is there already, before any work."""
    check_place(path, option)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already", "add --overwrite to replace it")


def check_folder(place: str, option: str) -> None:
    """Refuse a local folder in which nothing can be written, before any work."""
    if "://" not in place:
        check_place(Path(place), option, folder=True)


def check_system_for(data: Path | None, what: str) -> None:
    """Refuse to read videos on a system that cannot."""
    if data is not None:
        check_system(what)


def listed(items: Sequence[str] | None) -> tuple[str, ...]:
    """Of an option that is repeated, or takes several by commas."""
    return tuple(name for item in items or () for name in item.split(",") if name)


def lengths(text: str) -> tuple[int, ...]:
    """'17,33' to (17, 33); SettingsError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise SettingsError(f"--memory-frames {text} is no list of numbers", "such as 17,33,65") from None


def shape_of_latents(text: str) -> tuple[int, ...]:
    """'16,15,22' to (16, 15, 22); SettingsError for anything else."""
    parts = text.lower().replace("x", ",").split(",") if text else []
    if text and not (len(parts) == 3 and all(part.strip().isdecimal() and len(part) <= 9 and int(part) for part in parts)):
        raise SettingsError(f"--latents-shape {text} is not three numbers", "latent frames, rows and columns, such as 16,15,22")
    return tuple(map(int, parts))
