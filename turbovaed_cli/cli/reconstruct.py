"""`turbovaed reconstruct`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import (
    Device,
    Dtype,
    Hdr,
    Json,
    LatentsAre,
    LatentsShape,
    Model,
    ModelConfig,
    Overwrite,
    Quiet,
    TeacherOf,
    Verbose,
    Yes,
    check_file,
    consent_of,
    model_or_default,
    reporter_of,
    shape_of_latents,
    warn_of_old_ffmpeg,
)
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.settings import ReconstructSettings, check_reconstruct, check_video_name
from turbovaed_cli.units import parse_bytes

if TYPE_CHECKING:
    from turbovaed_cli.reconstruction.folder import FolderResult
    from turbovaed_cli.reconstruction.reconstruct import ReconstructResult


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
        latents_are=latents_are, latents_shape=shape_of_latents(latents_shape),
    )  # fmt: skip
    check_reconstruct(settings)
    if not source.exists():
        raise SettingsError(f"{source} is not there", "give a video, a latents file, or a folder of them")
    if out is not None and not os.path.isdir(out) and not source.is_dir():  # noqa: PTH112 - of a name that is too long, no error yet
        check_video_name(out)
        check_file(out, "--out", overwrite=overwrite)
    from turbovaed_cli.latents.latent_files import is_latents_file
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn
    from turbovaed_cli.models.pair import load_pair
    from turbovaed_cli.reconstruction.folder import plan_folder, reconstruct_folder
    from turbovaed_cli.reconstruction.reconstruct import check_reconstruct_settings, output_path
    from turbovaed_cli.reconstruction.reconstruct import reconstruct as run
    from turbovaed_cli.video import frames_in

    report = reporter_of(quiet, verbose)
    warn_of_old_ffmpeg()
    place = output_path(source, out, settings)
    is_folder = source.is_dir() and not frames_in(source)
    if is_folder:
        if out is None:
            raise SettingsError(f"{source} is a folder: name the folder to write to", "--out FOLDER")
        needs_teacher = not all(is_latents_file(path) for path in plan_folder(source, out, settings))
    else:
        check_reconstruct_settings(settings, place)
        check_file(place, "--out", overwrite=overwrite)
        needs_teacher = not is_latents_file(source)
        if out is None:
            console.note(f"--out not given: writing {place.absolute()}")
    on, precision = resolve_device(device, report), resolve_dtype(dtype)
    warn_of_cudnn(on, precision, report)
    pair = load_pair(
        model_or_default(model),
        teacher,
        config=config,
        with_teacher=needs_teacher,
        device=on,
        dtype=precision,
        consent=consent_of(yes),
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
    from turbovaed_cli.video.usable import Skipped

    finish([Skipped(str(item.path), item.reason) for item in result.of_status("failed")])
