"""`export`: write a student for another runtime, and check the written file before anybody relies on it."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli import __version__
from turbovaed_cli.errors import CheckFailedError, OutputExistsError, SettingsError
from turbovaed_cli.exporters import Exporter, exporters, size_mb
from turbovaed_cli.models.export_form import export_form
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry import MODELS
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import whole_folder
from turbovaed_cli.settings import ExportSettings

MAX_ABS_FP32 = 1e-3  # of a range of 2
MIN_PSNR_FP16_DB = 55.0


@dataclass(frozen=True)
class Artifact:
    """One written file (or package) and how it compares with the fp32 student; `status` says what was run to know."""

    format: str
    path: Path
    size_mb: float
    precision: str
    shapes: list[tuple[int, ...]]  # of the latents it was checked on
    max_abs: float
    psnr_db: float
    status: str


@dataclass(frozen=True)
class ExportResult:
    """Every artefact of one call."""

    model: str | None
    artifacts: list[Artifact]


def export_student(
    student: StudentDecoder,
    formats: tuple[str, ...],
    out: Path,
    settings: ExportSettings = ExportSettings(),  # noqa: B008 - frozen
    report: Reporter = quiet,
) -> ExportResult:
    """Write `student` in each of `formats` and compare the written artefact with it, on as much as this machine can run.

    `out` is the artefact, or a folder for several. One that misses (fp32: max abs above 1e-3; fp16: below 55 dB) is kept as
    `.unverified` and CheckFailedError raised. Raises ShapeError for sizes the student cannot make.
    """
    rows = [_exporter(name, settings.precision) for name in dict.fromkeys(formats)]
    paths = [_path_of(row, out, len(rows)) for row in rows]
    for path in paths:
        if path.exists() and not settings.overwrite:
            raise OutputExistsError(f"{path} is there already", "add --overwrite to replace it")
    student = student.float().cpu().eval()
    latents = check_latents(student, settings)
    artifacts = []
    for row, path in report.track(list(zip(rows, paths, strict=True)), "exporting"):
        report.note(f"{row.name}: converting")
        module = export_form(student, settings.layout)
        # Converted inside a folder of its own, beside its destination: what a kill leaves half-done has another name.
        with whole_folder(path.with_name(f".{path.name}.export"), overwrite=True) as folder:
            written = folder / path.name
            row.write(module, latents, written, settings.precision, _metadata(student, settings))
            report.note(f"{row.name}: checking what was written")
            artifact = _compare(row, written, path, student, latents, settings)
        _take_place(path.with_name(f".{path.name}.export") / path.name, artifact.path)
        artifacts.append(artifact)
        if artifact.path != path:
            raise CheckFailedError(
                f"{row.name}: {artifact.status}: max abs {artifact.max_abs:.2g}, {artifact.psnr_db:.1f} dB; kept as {artifact.path.name}",
                "--dtype fp32 is exact; with fp16 the values of this student may exceed its range",
            )
    return ExportResult(student.config.teacher, artifacts)


def _exporter(name: str, precision: str) -> Exporter:
    table = exporters()
    if name not in table:
        raise SettingsError(f"--format {name} is unknown", f"one of: {', '.join(table)}")
    if precision not in table[name].precisions:
        raise SettingsError(f"{name} cannot be written in {precision}", f"--dtype {' or '.join(table[name].precisions)}")
    return table[name]


def _path_of(row: Exporter, out: Path, num_formats: int) -> Path:
    if out.suffix == row.suffix and num_formats == 1:
        return out
    if out.suffix in {other.suffix for other in exporters().values()}:
        raise SettingsError(
            f"{out.name} is no name for {row.name}", f"it ends in {row.suffix}; for several formats give a folder"
        )
    return out / f"student{row.suffix}"


def check_latents(student: StudentDecoder, settings: ExportSettings) -> Tensor:
    """Latents (1, C, t, h, w) to check on: the given ones, cut to the artefact's shape, or random ones of the usual spread."""
    from turbovaed_cli.latents import read_latents  # noqa: PLC0415 - exported files rarely come with latents

    shape = student.latent_shape(settings.frames, settings.size)
    if settings.latents is not None:
        found = read_latents(settings.latents)
        if found.shape[0] != shape[0] or any(have < want for have, want in zip(found.shape[1:], shape[1:], strict=True)):
            raise SettingsError(
                f"{settings.latents} holds {tuple(found.shape)}; {shape} are needed", "choose --frames and --size that fit inside"
            )
        return found[None, :, : shape[1], : shape[2], : shape[3]].contiguous()
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(settings.seed))
    mean, std = (value.float().cpu().view(1, -1, 1, 1, 1) for value in (student.latents_mean, student.latents_std))
    return noise * std + mean


def _metadata(student: StudentDecoder, settings: ExportSettings) -> dict[str, str]:
    """What an artefact says of itself."""
    teacher = student.config.teacher
    licence = MODELS[teacher].teacher.licence if teacher in MODELS else "that of the teacher"
    config = {name: value for name, value in student.config.items() if not name.startswith("_")}
    return {
        "turbovaed": __version__,
        "config": json.dumps(config),
        "latents": "(1, C, t, h, w) in the raw latent space of the teacher's VAE, as its encode() returns them",
        "video": "(1, 3, T, H, W) in [-1, 1], not clamped",
        "teacher": str(teacher),
        "licence": licence,
        "layout": settings.layout,
    }


def _compare(
    row: Exporter, written: Path, path: Path, student: StudentDecoder, latents: Tensor, settings: ExportSettings
) -> Artifact:
    """Run what was written on its own shape and, where it takes any, on another one."""
    checked = [latents]
    if row.dynamic and latents.shape[2] > 1:
        _, _, frames, height, width = latents.shape
        checked.append(latents[:, :, : max(2, frames - 1), : max(1, height // 2), : max(1, width // 2 + 1)].contiguous())
    worst, squares, count = 0.0, 0.0, 0
    for item in checked:
        with torch.no_grad():
            wanted = student(item)
        error = (row.run(written, item).float() - wanted).double()
        worst = max(worst, error.abs().max().item() if bool(torch.isfinite(error).all()) else math.inf)
        squares, count = squares + error.square().sum().item(), count + error.numel()
    psnr_db = min(-10 * math.log10(squares / count / 4), 200.0) if 0 < squares < math.inf else (200.0 if squares == 0 else 0.0)
    good = worst <= MAX_ABS_FP32 if settings.precision == "fp32" else psnr_db >= MIN_PSNR_FP16_DB
    final = path if good else path.with_name(f"{path.name}.unverified")
    status = row.verified_by() if good else f"MISSED ({row.verified_by()})"
    return Artifact(
        row.name, final, size_mb(written), settings.precision, [tuple(item.shape) for item in checked], worst, psnr_db, status
    )


def _take_place(written: Path, path: Path) -> None:
    """Move a checked artefact, file or package, to where it was asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    written.replace(path)
    shutil.rmtree(written.parent)


def next_commands(result: ExportResult) -> list[str]:
    """What people do with the artefacts next."""
    lines = []
    for item in result.artifacts:
        if item.format == "onnx":
            lines.append(f"python -c \"import onnxruntime as o; print(o.InferenceSession('{item.path}').get_inputs()[0].shape)\"")
            lines.append("turbovaed bench --target onnx")
        if item.format == "coreml":
            lines.append(f"copy {item.path} to a Mac, open it in Xcode, or there: turbovaed bench --target coreml")
    return lines
