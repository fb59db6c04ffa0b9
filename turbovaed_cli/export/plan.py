"""Which artefacts an export writes, and their names; settings that cannot be written are refused before any work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import OutputExistsError, SettingsError
from turbovaed_cli.export.format import Exporter
from turbovaed_cli.export.formats.table import exporters
from turbovaed_cli.export.readme import MARK
from turbovaed_cli.files.places import check_place
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import latent_shape
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.settings import LAYOUTS, ExportSettings

WRITTEN_BY = "turbovaed export"
ANY_DECODER = ("onnx", "torch-export")  # formats that take a decoder of any family


@dataclass(frozen=True)
class Job:
    """One artefact to make."""

    row: Exporter
    precision: str
    path: Path
    sizes: tuple[tuple[int, int], ...]
    chunk: int  # latent frames; 0: whole clips


def _check_other(decoder: Decoder, formats: tuple[str, ...], settings: ExportSettings) -> None:
    """Raise SettingsError for what only a student can be written as: a decoder of another family has no export form."""
    what = f"this decoder ({decoder.family}) is no student, so it"
    for name in formats:
        if name in exporters() and name not in ANY_DECODER:
            raise SettingsError(f"{what} cannot be written as {name}", f"`format` {', '.join(ANY_DECODER)}")
    if settings.chunk:
        raise SettingsError(f"{what} has no chunk graph", "leave out `chunk`")
    if settings.layout not in (ExportSettings.layout, "5d"):
        raise SettingsError(
            f"{what} has no `layout` {settings.layout}", "leave out `layout`: its modules are written as they are"
        )
    for precision in settings.precisions:
        if precision in ("int8", "6bit"):
            raise SettingsError(f"{what} cannot be written in {precision}", "`dtype` fp32 or fp16")


def _check(student: Decoder, formats: tuple[str, ...], settings: ExportSettings) -> None:
    """Raise SettingsError for settings that make no sense or cannot be written."""
    table = exporters()
    if not isinstance(student, StudentDecoder):
        _check_other(student, formats, settings)
    if not formats:
        raise SettingsError("`format` names no format", f"one of: {', '.join(table)}")
    if settings.chunk < 0:
        raise SettingsError("`chunk` must be at least 1 latent frame", "0, the default, writes no chunk graph")
    if settings.chunk and settings.layout == "5d":
        raise SettingsError("chunk graphs are of rank 4", "`layout` 4d-cat or 4d-sum")
    if settings.states and not (settings.chunk and any(table[name].stateful for name in formats if name in table)):
        raise SettingsError("`states` is for chunk graphs of coreml", "`format` coreml `chunk` N `states`")
    if settings.data is not None and settings.latents is not None:
        raise SettingsError("`data` and `latents` cannot be combined: both choose the latents to check on", "give one of them")
    if len(set(settings.sizes)) < len(settings.sizes):
        raise SettingsError("`size` names one size twice")
    for size in settings.sizes:
        latent_shape(student, settings.frames, size)
    for name in formats:
        check_choice("`format`", name, table)
        table[name].check_installed()
        if settings.layout in LAYOUTS and settings.layout not in table[name].layouts:
            raise SettingsError(
                f"{name} does not take `layout` {settings.layout}", f"`layout` {' or '.join(table[name].layouts)}"
            )
        for precision in settings.precisions:
            _check_precision(table[name], precision, settings)


def _check_precision(row: Exporter, precision: str, settings: ExportSettings) -> None:
    if precision not in row.precisions:
        raise SettingsError(f"{row.name} cannot be written in {precision}", f"`dtype` {' or '.join(row.precisions)}")
    if precision in row.calibrated and not (settings.data or settings.latents):
        raise SettingsError(
            f"{precision} is calibrated on real latents, and there are none", "give `data` DIR of videos, or `latents` FILE"
        )
    if settings.states and row.stateful and precision == "fp32":
        raise SettingsError("Core ML's states are fp16", "`dtype` fp16, or without `states`")
    if settings.chunk and precision in ("int8", "6bit"):
        raise SettingsError(f"chunk graphs are not written in {precision}", "an export without `chunk`, then one of fp16 chunks")


def plan_jobs(student: Decoder, formats: tuple[str, ...], out: Path, settings: ExportSettings) -> list[Job]:
    """Return the artefacts to write of a student, or of a decoder of another family: one of each size then.

    Raises SettingsError for settings that cannot be written, ShapeError for sizes that the student cannot make, and
    UnavailableError if a package of a format is not installed.
    """
    _check(student, formats, settings)
    table = exporters()
    wanted: list[tuple[Exporter, str, tuple[tuple[int, int], ...], int]] = []
    for row in (table[name] for name in formats):
        one_each = [(size,) for size in settings.sizes]
        together = row.dynamic or (row.multisize and len(settings.sizes) > 1)
        together = together and isinstance(student, StudentDecoder)  # other decoders are written in fixed sizes
        for precision in settings.precisions or row.precisions[:1]:
            wanted += [(row, precision, sizes, 0) for sizes in ([settings.sizes] if together else one_each)]
            if settings.chunk and row.is_graph:
                wanted += [(row, precision, sizes, settings.chunk) for sizes in one_each]
    if len(wanted) == 1 and out.name.endswith(wanted[0][0].suffix):
        ((row, precision, sizes, chunk),) = wanted
        return [Job(row, precision, out, sizes, chunk)]
    if out.name.endswith(tuple(row.suffix for row in table.values())):
        raise SettingsError(
            f"{out.name} is no name for {wanted[0][0].name}"
            if len(wanted) == 1
            else f"{len(wanted)} artefacts do not fit in {out.name}",
            f"it ends in {wanted[0][0].suffix}; for several artefacts give a folder",
        )
    return [
        Job(row, precision, out / _name(_stem(student, row), row, precision, sizes, chunk, settings), sizes, chunk)
        for row, precision, sizes, chunk in wanted
    ]


def _stem(decoder: Decoder, row: Exporter) -> str:
    return row.stem if isinstance(decoder, StudentDecoder) else decoder.family


def _name(
    stem: str, row: Exporter, precision: str, sizes: tuple[tuple[int, int], ...], chunk: int, settings: ExportSettings
) -> str:
    """Return the name `stem` with the suffixes that tell it apart from the other artefacts of this export."""
    parts = [stem]
    parts += [precision] if len(settings.precisions or row.precisions[:1]) > 1 or precision != row.precisions[0] else []
    parts += [f"chunk{chunk}" + ("-states" if settings.states and row.stateful else "")] if chunk else []
    parts += [f"{sizes[0][1]}x{sizes[0][0]}"] if len(settings.sizes) > 1 and len(sizes) == 1 else []
    return "-".join(parts) + row.suffix


def refuse_to_replace(jobs: Sequence[Job], pages: Sequence[Path], latents: Path, settings: ExportSettings) -> None:
    """Raise OutputExistsError for existing files that may not be replaced, UnwritableError for places that cannot be written."""
    for job in jobs:
        check_place(job.path, folder=None if job.row.is_package else False)  # a user's folder must not be replaced by a file
        if job.path.exists() and not settings.overwrite:
            raise OutputExistsError(f"{job.path} is there already", "add `overwrite` to replace it")
    for page in pages:
        if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
            raise OutputExistsError(f"{page} is there and not of an export", "give another folder as `out`")
    if latents.exists() and not _is_of_an_export(latents):
        raise OutputExistsError(f"{latents} is there and not of an export", "give another folder as `out`")


def _is_of_an_export(latents: Path) -> bool:
    """Whether an export wrote a latents file: by its header, or (earlier versions) by the export.json next to it."""
    try:
        with safe_open(latents, framework="pt") as file:
            return (file.metadata() or {}).get("written_by") == WRITTEN_BY or latents.with_name("export.json").is_file()
    except (SafetensorError, OSError):
        return False
