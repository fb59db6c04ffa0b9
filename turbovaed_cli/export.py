"""`export`: write a student for other runtimes, and check each written file before anybody relies on it."""

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import CheckFailedError, CorruptFileError, OutputExistsError, SettingsError
from turbovaed_cli.exporters import Exporter, Graph, exporters, size_mb
from turbovaed_cli.exporters.cost import Cost, cost
from turbovaed_cli.exporters.readme import LATENTS_FILE, MARK, decoding_page, loading_instructions
from turbovaed_cli.files.documents import check_fields, plain_name
from turbovaed_cli.files.places import check_place, hidden_name
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import sha256_of, whole_folder, write_json, write_whole
from turbovaed_cli.latents.latent_files import LatentsFile, LatentSpace, read_latents
from turbovaed_cli.machine.devices import environment
from turbovaed_cli.models.chunks import UNKNOWN_END, ChunkDecoder, ChunkPlan, StatefulChunkDecoder
from turbovaed_cli.models.export_form import FoldedDecoder, export_form
from turbovaed_cli.models.fp16_range import keep_in_range
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import LAYOUTS, ExportSettings
from turbovaed_cli.version import __version__
from turbovaed_cli.video import VideoInfo, read_clip
from turbovaed_cli.video.usable import Skipped, usable_videos

if TYPE_CHECKING:
    from turbovaed_cli.models.teacher import Teacher

MAX_ABS_FP32 = 1e-3  # of a range of 2
# Against the fp32 student, on the latents it was checked with: least PSNR of [-1, 1] by precision.
MIN_PSNR_DB = {"fp16": 55.0, "bf16": 40.0, "int8": 32.0, "6bit": 28.0}
CHECKED_ON_RANDOM = "random latents of the usual spread"
_WRITTEN_BY = "turbovaed export"
_KEPT_BYTES = 2**30  # of videos that were decoded to compare with


@dataclass(frozen=True)
class Artifact:
    """One written file (or package) and how it compares with the fp32 student; `status` says what was run to know."""

    format: str
    path: Path
    verified: bool | str  # "converted only" where nothing here can run it
    precision: str
    graph: str  # "clip", or "chunk"
    shapes: list[tuple[int, ...]]  # of the latents it was checked on
    size_mb: float
    status: str
    checked_on: str = ""
    psnr_db: float | None = None  # over all shapes; the range is 2
    max_abs: float | None = None
    mean_abs: float | None = None
    layout: str = ""
    sha256: str = ""  # of a package: of its files' names and hashes
    first_non_finite: str | None = None  # operator; None where all values were finite
    operators: dict[str, int] = field(default_factory=dict)
    num_conv3d: int = 0
    max_rank: int | None = None
    gmacs: float = 0.0  # of the first shape
    peak_activation_mb: float = 0.0  # of the first shape, run in order, without weights
    chunk: ChunkPlan | None = None
    functions: list[str] = field(default_factory=list)  # of a Core ML package of several sizes, by their names
    seconds: float = 0.0  # to write and to check it


@dataclass(frozen=True)
class ExportResult:
    """Every artefact of one call."""

    artifacts: list[Artifact]
    document: Path  # export.json
    skipped: list[Skipped] = field(default_factory=list)  # videos that could not be read; others took their places

    @property
    def missed(self) -> list[Artifact]:
        """Those that are not what the student is; kept as `.unverified`."""
        return [item for item in self.artifacts if item.verified is False]


@dataclass(frozen=True)
class _Job:
    """One artefact to make."""

    row: Exporter
    precision: str
    path: Path
    sizes: tuple[tuple[int, int], ...]
    chunk: int  # latent frames; 0: whole clips


def export_student(
    student: StudentDecoder,
    formats: tuple[str, ...],
    out: Path,
    settings: ExportSettings = ExportSettings(),  # noqa: B008 - frozen
    report: Reporter = quiet,
    *,
    teacher: "Teacher | None" = None,
    latents: tuple[dict[tuple[int, int], list[Tensor]], str] | None = None,
) -> ExportResult:
    """Write `student` in each of `formats` and compare each written artefact with it, on as much as this machine can run.

    `out` is the artefact, or a folder for several; export.json, a README with loading code and the latents that were checked
    with are written beside. One that misses
    (fp32: max abs above 1e-3; others below MIN_PSNR_DB) is kept as `.unverified` and is in `missed`. `settings.data` is
    encoded by `teacher`; `latents` (by size, and what they are) take the place of both. Raises ShapeError
    for sizes the student cannot make, SettingsError for what cannot be written.
    """
    jobs = _plan(student, tuple(dict.fromkeys(formats)), out, settings)
    folder = out if jobs[0].path != out else out.parent
    readme = folder / "README.md" if folder == out else out.with_name(f"{out.name}.README.md")
    beside = folder / LATENTS_FILE if folder == out else out.with_name(f"{out.name}.{LATENTS_FILE}")
    check_place(folder, folder=True)
    _refuse_to_replace(jobs, [readme, *([folder / "index.html"] if folder == out else [])], beside, settings)
    if (folder / "export.json").is_file():
        _earlier(folder / "export.json")  # one that cannot be added to says so before the work, not behind it
    student = student.float().cpu().eval()
    videos, skipped = first_videos(settings, report) if latents is None else ([], [])
    found, checked_on = latents or latents_for(student, settings, teacher, videos, report)
    reference = _Reference(student, found, checked_on)
    made, known = [], []
    for job in report.track(jobs, "exporting"):
        made.append(_make(job, reference, settings, report))
        known = _beside(folder / "export.json", made)  # after each, so that one that fails leaves the others with their record
        write_json(folder / "export.json", _document(student, known))
    example = _example(student, found[settings.sizes[0]][0])
    write_whole(beside, lambda temporary: save_file(example, temporary, metadata={"written_by": _WRITTEN_BY}))
    if folder == out:
        html = decoding_page(known)
        if html is not None:
            write_whole(folder / "index.html", lambda temporary: temporary.write_text(html, encoding="utf-8"))
    text = loading_instructions([item for item in known if folder == out or item["path"] == made[0].path.name], beside.name)
    write_whole(readme, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return ExportResult(made, folder / "export.json", skipped)


def _example(student: StudentDecoder, latents: Tensor) -> dict[str, Tensor]:
    """Latents, and what makes those of a pipeline such ones."""
    mean, std = (value.float().cpu() for value in (student.latents_mean, student.latents_std))
    return {
        "latents": latents,
        "latents_mean": mean,
        "latents_std": std,
        "scaling_factor": torch.tensor(student.config.scaling_factor or 1.0),
    }


def raise_for_misses(result: ExportResult) -> None:
    """CheckFailedError where an artefact is not what the student is."""
    if not result.missed:
        return
    parts = []
    for item in result.missed:
        assert item.max_abs is not None and item.psnr_db is not None, "what was not run has not missed"
        where = f", first not finite: {item.first_non_finite}" if item.first_non_finite else ""
        parts.append(
            f"{item.format} {item.precision}: max abs {item.max_abs:.2g}, {item.psnr_db:.1f} dB{where}; kept as {item.path.name}"
        )
    raise CheckFailedError("; ".join(parts), _what_helps(result.missed))


def _what_helps(missed: Sequence[Artifact]) -> str:
    if any(item.precision in ("int8", "6bit") for item in missed):
        return "--dtype fp16 keeps more; int8 gets better with more --data that looks like what it will decode"
    return "--dtype fp32 is exact; --layout 4d-cat keeps fp16 within its range, calibrated on --data or --latents"


# --- what to write ------------------------------------------------------------------------------------------------


def _check(student: StudentDecoder, formats: tuple[str, ...], settings: ExportSettings) -> None:
    """Raise SettingsError for what makes no sense or cannot be written."""
    table = exporters()
    if not formats:
        raise SettingsError("--format names no format", f"one of: {', '.join(table)}")
    if settings.chunk < 0:
        raise SettingsError("--chunk must be at least 1 latent frame", "0, the default, writes no chunk graph")
    if settings.chunk and settings.layout == "5d":
        raise SettingsError("chunk graphs are of rank 4", "--layout 4d-cat or 4d-sum")
    if settings.states and not (settings.chunk and any(table[name].stateful for name in formats if name in table)):
        raise SettingsError("--states is for chunk graphs of coreml", "--format coreml --chunk N --states")
    if settings.data is not None and settings.latents is not None:
        raise SettingsError("--data and --latents both say what to check on", "give one of them")
    if len(set(settings.sizes)) < len(settings.sizes):
        raise SettingsError("--size names one size twice")
    for size in settings.sizes:
        student.latent_shape(settings.frames, size)
    for name in formats:
        check_choice("--format", name, table)
        table[name].check_installed()
        if settings.layout in LAYOUTS and settings.layout not in table[name].layouts:
            raise SettingsError(
                f"{name} does not take --layout {settings.layout}", f"--layout {' or '.join(table[name].layouts)}"
            )
        for precision in settings.precisions:
            _check_precision(table[name], precision, settings)


def _check_precision(row: Exporter, precision: str, settings: ExportSettings) -> None:
    if precision not in row.precisions:
        raise SettingsError(f"{row.name} cannot be written in {precision}", f"--dtype {' or '.join(row.precisions)}")
    if precision in row.calibrated and not (settings.data or settings.latents):
        raise SettingsError(
            f"{precision} is calibrated on real latents, and there are none", "give --data DIR of videos, or --latents FILE"
        )
    if settings.states and row.stateful and precision == "fp32":
        raise SettingsError("Core ML's states are fp16", "--dtype fp16, or without --states")
    if settings.chunk and precision in ("int8", "6bit"):
        raise SettingsError(f"chunk graphs are not written in {precision}", "an export without --chunk, then one of fp16 chunks")


def _plan(student: StudentDecoder, formats: tuple[str, ...], out: Path, settings: ExportSettings) -> list[_Job]:
    _check(student, formats, settings)
    table = exporters()
    wanted: list[tuple[Exporter, str, tuple[tuple[int, int], ...], int]] = []
    for row in (table[name] for name in formats):
        one_each = [(size,) for size in settings.sizes]
        together = row.dynamic or (row.multisize and len(settings.sizes) > 1)
        for precision in settings.precisions or row.precisions[:1]:
            wanted += [(row, precision, sizes, 0) for sizes in ([settings.sizes] if together else one_each)]
            if settings.chunk and row.is_graph:
                wanted += [(row, precision, sizes, settings.chunk) for sizes in one_each]
    if len(wanted) == 1 and out.name.endswith(wanted[0][0].suffix):
        ((row, precision, sizes, chunk),) = wanted
        return [_Job(row, precision, out, sizes, chunk)]
    if out.name.endswith(tuple(row.suffix for row in table.values())):
        raise SettingsError(
            f"{out.name} is no name for {wanted[0][0].name}"
            if len(wanted) == 1
            else f"{len(wanted)} artefacts do not fit in {out.name}",
            f"it ends in {wanted[0][0].suffix}; for several artefacts give a folder",
        )
    return [
        _Job(row, precision, out / _name(row, precision, sizes, chunk, settings), sizes, chunk)
        for row, precision, sizes, chunk in wanted
    ]


def _name(row: Exporter, precision: str, sizes: tuple[tuple[int, int], ...], chunk: int, settings: ExportSettings) -> str:
    """student, and what sets it apart from its neighbours."""
    parts = ["student"]
    parts += [precision] if len(settings.precisions or row.precisions[:1]) > 1 or precision != row.precisions[0] else []
    parts += [f"chunk{chunk}" + ("-states" if settings.states and row.stateful else "")] if chunk else []
    parts += [f"{sizes[0][1]}x{sizes[0][0]}"] if len(settings.sizes) > 1 and len(sizes) == 1 else []
    return "-".join(parts) + row.suffix


def _refuse_to_replace(jobs: Sequence[_Job], pages: Sequence[Path], latents: Path, settings: ExportSettings) -> None:
    for job in jobs:
        check_place(job.path, folder=None if job.row.is_package else False)  # a folder of somebody's is no artefact to replace
        if job.path.exists() and not settings.overwrite:
            raise OutputExistsError(f"{job.path} is there already", "add --overwrite to replace it")
    for page in pages:
        if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
            raise OutputExistsError(f"{page} is there and not of an export", "give a folder of its own as --out")
    if latents.exists() and not _is_of_an_export(latents):
        raise OutputExistsError(f"{latents} is there and not of an export", "give a folder of its own as --out")


def _is_of_an_export(latents: Path) -> bool:
    """Whether a latents file is one that an export wrote: by its header, or (earlier versions) by the record beside it."""
    try:
        with safe_open(latents, framework="pt") as file:
            return (file.metadata() or {}).get("written_by") == _WRITTEN_BY or latents.with_name("export.json").is_file()
    except (SafetensorError, OSError):
        return False


# --- what to check on ---------------------------------------------------------------------------------------------


def first_videos(settings: ExportSettings, report: Reporter = quiet) -> tuple[list[VideoInfo], list[Skipped]]:
    """The first `settings.clips` usable videos of `settings.data`, and those that were passed over; none of either without it."""
    if settings.data is None:
        return [], []
    return usable_videos(settings.data, settings.frames, report, first=settings.clips, hdr=settings.hdr)


def latents_for(
    student: StudentDecoder,
    settings: ExportSettings,
    teacher: "Teacher | None" = None,
    videos: Sequence[VideoInfo] = (),
    report: Reporter = quiet,
) -> tuple[dict[tuple[int, int], list[Tensor]], str]:
    """Latents (1, C, t, h, w) by size: of `videos`, of the given files cut to it, or random ones; and what they are."""
    shapes = {size: student.latent_shape(settings.frames, size) for size in settings.sizes}
    if settings.data is not None:
        assert teacher is not None, "videos are encoded by the teacher"
        return {
            size: _encoded(teacher, videos, settings.frames, size, report) for size in shapes
        }, f"latents of {settings.data.resolve().name}"
    if settings.latents is not None:
        read = read_latents(
            settings.latents,
            LatentSpace.of(student),
            latents_are=settings.latents_are,
            shape=settings.latents_shape,
            expected=shapes[settings.sizes[0]][1:],
            report=report,
        )
        return {size: [_cut(read, shape)] for size, shape in shapes.items()}, f"latents of {settings.latents.name}"
    mean, std = (value.float().cpu().view(1, -1, 1, 1, 1) for value in (student.latents_mean, student.latents_std))
    random = {}
    for size, shape in shapes.items():
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(settings.seed))
        random[size] = [noise * std + mean]
    return random, CHECKED_ON_RANDOM


def _cut(read: LatentsFile, shape: tuple[int, ...]) -> Tensor:
    found = read.latents
    if found.shape[0] != shape[0] or any(have < want for have, want in zip(found.shape[1:], shape[1:], strict=True)):
        raise SettingsError(
            f"{read.path} holds {tuple(found.shape)}; {shape} are needed", "choose --frames and --size that fit inside"
        )
    return found[None, :, : shape[1], : shape[2], : shape[3]].contiguous()


@torch.no_grad()
def _encoded(
    teacher: "Teacher", videos: Sequence[VideoInfo], frames: int, size: tuple[int, int], report: Reporter
) -> list[Tensor]:
    """One clip of each video."""
    clips = []
    for info in report.track(videos, "encoding"):
        clips.append(teacher.encode(read_clip(info, frames, size)[None]).mean.float().contiguous())
    return clips


# --- one artefact -------------------------------------------------------------------------------------------------


def _make(job: _Job, reference: "_Reference", settings: ExportSettings, report: Reporter) -> Artifact:
    """Write it beside its destination, run what was written, and move it there under the name it deserves."""
    row, began = job.row, time.monotonic()
    student, latents = reference.student, reference.latents
    what = f"{row.name} {job.precision}{' chunk' if job.chunk else ''}"
    report.note(f"{what}: converting")
    graphs, plan = _graphs(job, student, latents, settings)
    samples = [item for size in job.sizes for item in latents[size]]
    # Converted inside a folder of its own: what a kill leaves half-done has another name.
    aside = job.path.with_name(hidden_name(job.path, "export"))
    with whole_folder(aside, overwrite=True) as folder:
        written = folder / job.path.name
        spent = cost(graphs[0], 4 if job.precision == "fp32" else 2)  # before a writer turns the module into halves
        row.write(graphs, written, job.precision, _metadata(student, settings, plan), samples)
        report.note(f"{what}: checking what was written")
        artifact = _inspected(job, written, spent, _compared(job, written, graphs, plan, reference))
    _take_place(aside / job.path.name, artifact.path)
    return replace(artifact, layout=settings.layout, seconds=time.monotonic() - began)


def _graphs(
    job: _Job, student: StudentDecoder, latents: dict[tuple[int, int], list[Tensor]], settings: ExportSettings
) -> tuple[list[Graph], ChunkPlan | None]:
    if not job.row.is_graph:
        return [Graph(student, {"latents": latents[size][0]}) for size in job.sizes], None
    form = export_form(student, settings.layout)
    if job.precision != "fp32" and isinstance(form, FoldedDecoder):
        keep_in_range(form, [item for size in job.sizes for item in latents[size]])
    if not job.chunk:
        return [Graph(form, {"latents": latents[size][0]}) for size in job.sizes], None
    assert isinstance(form, FoldedDecoder)
    _, channels, _, height, width = latents[job.sizes[0]][0].shape
    decoder = ChunkDecoder(form, (channels, job.chunk, height, width))
    piece = latents[job.sizes[0]][0][:, :, : job.chunk]
    piece = torch.cat([piece] + [piece[:, :, -1:]] * (job.chunk - piece.shape[2]), dim=2)
    inputs = {"latents": piece, "window": torch.tensor([0, UNKNOWN_END], dtype=torch.int32)}
    if settings.states and job.row.stateful:
        stateful = StatefulChunkDecoder(decoder)
        return [Graph(stateful.eval(), inputs, tuple(stateful.plan.output_names), stateful=True)], stateful.plan
    inputs |= decoder.plan.beginning()
    return [Graph(decoder.eval(), inputs, tuple(decoder.plan.output_names))], decoder.plan


def _metadata(student: StudentDecoder, settings: ExportSettings, plan: ChunkPlan | None) -> dict[str, str]:
    """What an artefact says of itself."""
    config = {name: value for name, value in student.config.items() if not name.startswith("_")}
    return {
        "turbovaed": __version__,
        "config": json.dumps(config),
        **_conventions(student),
        "layout": settings.layout,
        **({"chunk": json.dumps(asdict(plan))} if plan else {}),
    }


def _conventions(student: StudentDecoder) -> dict[str, str]:
    teacher = student.config.teacher
    return {
        "latents": "(1, C, t, h, w) in the raw latent space of the teacher's VAE, as its encode() returns them",
        "video": "(1, 3, T, H, W) in [-1, 1], not clamped",
        "teacher": str(teacher),
        "licence": MODELS[teacher].teacher.licence if teacher in MODELS else "that of the teacher",
    }


class _Reference:
    """The latents an artefact is checked on, and the fp32 student's video of each: decoded once, while they fit."""

    def __init__(self, student: StudentDecoder, latents: dict[tuple[int, int], list[Tensor]], checked_on: str) -> None:
        self.student, self.latents, self.checked_on = student, latents, checked_on
        self._videos: dict[tuple[tuple[int, int], int], Tensor] = {}

    def items(self, size: tuple[int, int], *, other_sizes: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """(latents, video) of one size and, with `other_sizes`, of a part of the first one."""
        items = list(self.latents[size])
        _, _, frames, height, width = items[0].shape
        if other_sizes and frames > 1:
            items.append(items[0][:, :, : max(2, frames - 1), : max(1, height // 2), : max(1, width // 2 + 1)].contiguous())
        for number, item in enumerate(items):
            yield item, self._video(size, number, item)

    @torch.no_grad()
    def _video(self, size: tuple[int, int], number: int, item: Tensor) -> Tensor:
        known = self._videos.get((size, number))
        if known is not None:
            return known
        video = self.student(item)
        if sum(other.nbytes for other in self._videos.values()) + video.nbytes < _KEPT_BYTES:
            self._videos[size, number] = video
        return cast(Tensor, video)


def _compared(job: _Job, written: Path, graphs: Sequence[Graph], plan: ChunkPlan | None, reference: _Reference) -> Artifact:
    """Run what was written on every size's latents and, where it takes any, on another size."""
    row = job.row
    worst, total, squares, count, shapes = 0.0, 0.0, 0.0, 0, []
    unchecked = Artifact(
        row.name, job.path, "converted only", job.precision, "chunk" if plan else "clip",
        [tuple(reference.latents[size][0].shape) for size in job.sizes], size_mb(written), row.verified_by(), chunk=plan,
    )  # fmt: skip
    if row.load is None:
        return unchecked
    for size, graph in zip(job.sizes, graphs, strict=True):
        decode = row.load(written, graph)
        for item, wanted in reference.items(size, other_sizes=row.dynamic and plan is None):
            video = plan.decode(decode, item) if plan else decode({"latents": item})["video"]
            error = (video.float() - wanted).double()
            shapes.append(tuple(item.shape))
            worst = max(worst, error.abs().max().item() if bool(torch.isfinite(error).all()) else math.inf)
            total, squares, count = total + error.abs().sum().item(), squares + error.square().sum().item(), count + error.numel()
    psnr_db = psnr_of(squares, count)
    good = worst <= MAX_ABS_FP32 if job.precision == "fp32" else psnr_db >= MIN_PSNR_DB[job.precision]
    return replace(
        unchecked,
        path=job.path if good else job.path.with_name(f"{job.path.name}.unverified"),
        verified=good,
        shapes=list(dict.fromkeys(shapes)),
        status=row.verified_by() if good else f"MISSED ({row.verified_by()})",
        checked_on=reference.checked_on,
        psnr_db=psnr_db,
        max_abs=worst,
        mean_abs=total / count,
        first_non_finite=None if math.isfinite(worst) else row.first_non_finite(written, graphs[0]) or "unknown",
    )


def psnr_of(squares: float, count: int) -> float:
    """In dB, of values in a range of 2: 200 for no error, 0 for one that is not finite."""
    return min(-10 * math.log10(squares / count / 4), 200.0) if 0 < squares < math.inf else (200.0 if squares == 0 else 0.0)


def _inspected(job: _Job, written: Path, spent: Cost, artifact: Artifact) -> Artifact:
    inside = job.row.anatomy(written)
    return replace(
        artifact,
        sha256=_sha256(written),
        operators=dict(inside.operators.most_common()),
        num_conv3d=inside.num_conv3d,
        max_rank=inside.max_rank if inside.max_rank is not None else spent.max_rank,
        gmacs=spent.gmacs,
        peak_activation_mb=spent.peak_activation_bytes / 1e6,
        functions=inside.functions,
    )


def _sha256(path: Path) -> str:
    """Of a file; of a package, of the list of its files."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _take_place(written: Path, path: Path) -> None:
    """Move a checked artefact, file or package, to where it was asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    if written.is_file():
        written.chmod(0o644)  # some writers let nobody else read
    written.replace(path)
    shutil.rmtree(written.parent)


# --- what lies beside ---------------------------------------------------------------------------------------------


def _beside(document: Path, made: Sequence[Artifact]) -> list[dict[str, Any]]:
    """The new artefacts as records, and those of earlier exports that still lie there."""
    names = {item.path.name.removesuffix(".unverified") for item in made}
    earlier = _earlier(document) if document.is_file() else []
    kept = [
        item
        for item in earlier
        if item["path"].removesuffix(".unverified") not in names and (document.parent / item["path"]).exists()
    ]
    return kept + [{**asdict(item), "path": item.path.name} for item in made]


_TIME = 2  # of a chunk's latents: which dimension
# What the README says of an artefact.
_RECORD = {
    **dict.fromkeys(("path", "format", "precision", "graph", "status"), str),
    **dict.fromkeys(("psnr_db", "max_abs"), float | None),
    "verified": bool | str,
    "size_mb": float,
    "checked_on": str | None,
    "chunk": dict[str, Any] | None,
    "functions": list[str] | None,
    "shapes": list[list[int]],
}


def _earlier(document: Path) -> list[dict[str, Any]]:
    found = read_json(document)
    check_fields(found, {"artifacts": list[dict[str, Any]]}, document)
    for number, item in enumerate(found["artifacts"]):
        check_fields(item, _RECORD, document, f"artifacts.{number}.")
        for name in ("max_abs", "psnr_db", "checked_on"):
            item.setdefault(name, None)
        chunk = item.get("chunk") or {"latents": [0, 0, 0]}
        check_fields(chunk, {"latents": list[int]}, document, f"artifacts.{number}.chunk.")
        whole = (item["psnr_db"] is None) == (item["max_abs"] is None) and item["shapes"] and len(chunk["latents"]) > _TIME
        if not whole:
            raise CorruptFileError(f"{document}: artifacts.{number} is no record of an export", "export to another --out")
        if not plain_name(item["path"]):
            raise CorruptFileError(
                f"{document} names {item['path']!r}, which is no file of its folder", "export to another --out"
            )
    return list(found["artifacts"])


def _document(student: StudentDecoder, records: list[dict[str, Any]]) -> dict[str, Any]:
    here = environment()
    return {
        "schema_version": 1,
        "versions": {"turbovaed": here["turbovaed"], "python": here["python"], **here["packages"]},
        "machine": f"{platform.system()} {platform.machine()}",
        **_conventions(student),
        "artifacts": records,
    }


def next_commands(result: ExportResult, model: str) -> list[str]:
    """What people do with the artefacts of `model` next."""
    alone = result.artifacts[0].path
    readme = alone.with_name(f"{alone.name}.README.md")
    lines = [f"{readme if readme.is_file() else result.document.with_name('README.md')} has the lines of code that load it"]
    timed = dict.fromkeys(item.format for item in result.artifacts if item.format in ("onnx", "executorch", "litert"))
    if timed:
        lines.append(f"turbovaed bench --model {model} --target {','.join(timed)}")
    if any(item.format == "coreml" for item in result.artifacts):
        lines.append(f"on a Mac: open the .mlpackage in Xcode, or turbovaed bench --model {model} --target coreml")
    return lines
