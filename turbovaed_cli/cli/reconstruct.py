"""The command `turbovaed reconstruct`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import Against, ComparedModel, MoreModels, Overwrite, Show, check_file, option, warn_of_old_ffmpeg
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.settings import ReconstructSettings, check_reconstruct, check_video_name

if TYPE_CHECKING:
    from turbovaed_cli.reconstruction.folder import FolderResult
    from turbovaed_cli.reconstruction.reconstruct import ReconstructResult


EXAMPLES = """\
turbovaed reconstruct in.mp4
turbovaed reconstruct long.mp4 --model ltx --memory 4GB --out long-ltx.mp4
turbovaed reconstruct in.mp4 --compare --window 17 --out compare.mp4"""
Source = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A video, a latents file (.safetensors, .latent, .pt), or a folder of them.",
        rich_help_panel="Input and output",
        show_default=False,
    ),
]


@command
def reconstruct(
    *,
    source: Source,
    more: MoreModels = None,
    out: Annotated[
        Path | None,
        option("--out", "Video to write; a folder for a folder.", "Input and output", shown="INPUT-turbovaed.mp4 here"),
    ] = None,
    overwrite: Overwrite = False,
    model: ComparedModel,
    against: Against,
    settings: ReconstructSettings,
    show: Show,
) -> None:
    """Video in, video out, through the teacher's encoder and the student's decoder, in bounded memory."""
    check_system("reconstruct")
    others = against.with_more(more)
    check_reconstruct(settings, side_by_side=bool(others))
    _check_timestep(model, settings)
    if not source.exists():
        raise SettingsError(f"{source} is not there", "give a video, a latents file, or a folder of them")
    if out is not None and not os.path.isdir(out) and not source.is_dir():  # noqa: PTH112 - of a name that is too long, no error yet
        check_video_name(out)
        check_file(out, "`out`", overwrite=overwrite)
    from turbovaed_cli.latents.latent_files import is_latents_file
    from turbovaed_cli.machine.devices import resolve_device, resolve_dtype, warn_of_cudnn
    from turbovaed_cli.reconstruction.folder import plan_folder, reconstruct_folder
    from turbovaed_cli.reconstruction.reconstruct import check_reconstruct_settings, output_path
    from turbovaed_cli.reconstruction.reconstruct import reconstruct as run
    from turbovaed_cli.video import frames_in

    warn_of_old_ffmpeg()
    place = output_path(source, out, settings)
    is_folder = source.is_dir() and not frames_in(source)
    if is_folder:
        if out is None:
            raise SettingsError(f"{source} is a folder: name the folder to write to", "`out=FOLDER`")
        planned = plan_folder(source, out, settings, side_by_side=bool(others))
        needs_teacher = not all(map(is_latents_file, planned))
    else:
        check_reconstruct_settings(settings, place, side_by_side=bool(others))
        check_file(place, "`out`", overwrite=overwrite)
        needs_teacher = not is_latents_file(source)
        if out is None:
            console.note(f"`out` not given: writing {place.absolute()}")
    device, dtype = resolve_device(settings.device, show.report), resolve_dtype(settings.dtype)
    warn_of_cudnn(device, dtype, show.report)
    pair = model.load(with_teacher=needs_teacher, against=others, device=device, dtype=dtype)
    if is_folder:
        _show_folder(
            reconstruct_folder(source, out or Path(), pair, settings, overwrite=overwrite, report=show.report), show.json
        )
    else:
        _show_video(run(source, place, pair, settings, overwrite=overwrite, report=show.report), show.json)


def _check_timestep(model: ComparedModel, settings: ReconstructSettings) -> None:
    if model.decode_timestep is not None and not settings.compare:
        raise SettingsError(
            "`decode_timestep` is for `compare`: nothing else decodes with the teacher", "leave it out, or add `compare=True`"
        )


def _show_video(result: "ReconstructResult", json: bool) -> None:
    if json:
        console.print_json({**asdict(result), "fps": float(result.fps)})
    else:
        print_table("Reconstructed", ["file", "frames", "size", "fps"], [_row_of(result)])


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
        print_table("Reconstructed", ["file", "frames", "size", "fps"], rows)
    from turbovaed_cli.video.usable import Skipped

    finish([Skipped(str(item.path), item.reason) for item in result.of_status("failed")])
