"""`turbovaed export`."""

from pathlib import Path
from typing import Annotated

import typer

from turbovaed_cli.choices import check_choice, check_choices
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
    TeacherOf,
    Verbose,
    Yes,
    check_system_for,
    consent_of,
    listed,
    model_or_default,
    one_of,
    reporter_of,
    shape_of_latents,
)
from turbovaed_cli.files.places import check_place
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.settings import FORMATS, LAYOUTS, PRECISIONS, ExportSettings
from turbovaed_cli.units import format_size, parse_size


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
    layout: Annotated[str, typer.Option("--layout", help=f"{one_of(LAYOUTS)}.")] = ExportSettings.layout,
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
    check_system_for(data, "export --data")
    names = listed(formats or ["onnx"])
    precisions = listed([dtype])
    check_choices("--format", names, FORMATS)
    check_choices("--dtype", precisions, PRECISIONS)
    check_choice("--layout", layout, LAYOUTS)
    settings = ExportSettings(
        frames, tuple(parse_size(part) for part in size.split(",")), precisions, layout, chunk,
        states, seed=seed, latents=latents, data=data, overwrite=overwrite,
        latents_are=latents_are, latents_shape=shape_of_latents(latents_shape), hdr=hdr,
    )  # fmt: skip
    check_place(out, folder=None, longest_suffix=".unverified" if out.suffix else "")  # what a missed check adds
    from turbovaed_cli.export.export import export_student, next_commands, raise_for_misses
    from turbovaed_cli.models.pair import load_pair

    pair = load_pair(model_or_default(model), teacher, config=config, with_teacher=data is not None, consent=consent_of(yes))
    result = export_student(pair.student, names, out, settings, reporter_of(quiet, verbose), teacher=pair.teacher)
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
    finish(result.skipped, lambda: raise_for_misses(result))
