"""`export`: write a student for other runtimes, and check each written file before it is used."""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from turbovaed_cli.errors import CheckFailedError
from turbovaed_cli.export.checked_on import first_videos, latents_for
from turbovaed_cli.export.chunks import UNKNOWN_END, ChunkDecoder, ChunkPlan, StatefulChunkDecoder
from turbovaed_cli.export.compare import Artifact, Reference, compared
from turbovaed_cli.export.cost import Cost, cost
from turbovaed_cli.export.export_form import FoldedDecoder, export_form
from turbovaed_cli.export.format import Graph
from turbovaed_cli.export.fp16_range import keep_in_range
from turbovaed_cli.export.plan import WRITTEN_BY, Job, plan_jobs, refuse_to_replace
from turbovaed_cli.export.readme import LATENTS_FILE, decoding_page, loading_instructions
from turbovaed_cli.export.record import conventions, export_document, read_records, records_beside
from turbovaed_cli.files.places import check_place, hidden_name
from turbovaed_cli.files.whole import sha256_of, whole_folder, write_json, write_whole
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import module_of
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.network import DERIVED_KEYS
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ExportSettings
from turbovaed_cli.version import __version__
from turbovaed_cli.video.usable import Skipped

if TYPE_CHECKING:
    from turbovaed_cli.models.teacher import Teacher


@dataclass(frozen=True)
class ExportResult:
    """Every artefact of one call."""

    artifacts: list[Artifact]
    document: Path  # export.json
    skipped: list[Skipped] = field(default_factory=list)  # videos that could not be read; other videos took their places

    @property
    def missed(self) -> list[Artifact]:
        """The artefacts that differ too much from the student; they are kept as `.unverified`."""
        return [item for item in self.artifacts if item.verified is False]


def export_student(
    student: Decoder,
    formats: tuple[str, ...],
    out: Path,
    settings: ExportSettings = ExportSettings(),
    report: Reporter = quiet,
    *,
    teacher: "Teacher | None" = None,
    latents: tuple[dict[tuple[int, int], list[Tensor]], str] | None = None,
) -> ExportResult:
    """Write `student` in each of `formats` and compare each written artefact with it, as far as this machine can run it.

    `student` may be a decoder of another family too: it is written as its modules are, in fixed shapes, without chunks,
    quantisation and layouts.
    `out` is the artefact, or a folder for several. export.json, a README with loading code and the latents of the check are
    written next to it. An artefact that misses (fp32: max abs above 1e-3; other precisions: below MIN_PSNR_DB) is kept as
    `.unverified` and is in `missed`. `teacher` encodes the videos of `settings.data`. `latents` replace both: (1, C, t, h, w)
    by size (height, width), with their description. Raises ShapeError for sizes the student cannot make, SettingsError for
    settings that cannot be written, OutputExistsError for files in the way, UnavailableError for a package that is missing.
    """
    jobs = plan_jobs(student, tuple(dict.fromkeys(formats)), out, settings)
    folder = out if jobs[0].path != out else out.parent
    readme = folder / "README.md" if folder == out else out.with_name(f"{out.name}.README.md")
    beside = folder / LATENTS_FILE if folder == out else out.with_name(f"{out.name}.{LATENTS_FILE}")
    check_place(folder, folder=True)
    refuse_to_replace(jobs, [readme, *([folder / "index.html"] if folder == out else [])], beside, settings)
    if (folder / "export.json").is_file():
        read_records(folder / "export.json")  # a damaged one is an error before the work, not after it
    nn.Module.to(module_of(student).eval(), device="cpu", dtype=torch.float32)
    videos, skipped = first_videos(settings, report) if latents is None else ([], [])
    found, checked_on = latents or latents_for(student, settings, teacher, videos, report)
    reference = Reference(student, found, checked_on)
    made, known = [], []
    for job in report.track(jobs, "exporting"):
        made.append(_make(job, reference, settings, report))
        known = records_beside(
            folder / "export.json", made
        )  # after each, so that a failure leaves the finished ones with their records
        write_json(folder / "export.json", export_document(student, known))
    example = _example(student, found[settings.sizes[0]][0])
    write_whole(beside, lambda temporary: save_file(example, temporary, metadata={"written_by": WRITTEN_BY}))
    if folder == out:
        html = decoding_page(known)
        if html is not None:
            write_whole(folder / "index.html", lambda temporary: temporary.write_text(html, encoding="utf-8"))
    about = [item for item in known if folder == out or item["path"] == made[0].path.name]
    text = loading_instructions(about, beside.name, of_student=isinstance(student, StudentDecoder), facts=conventions(student))
    write_whole(readme, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return ExportResult(made, folder / "export.json", skipped)


def _example(decoder: Decoder, latents: Tensor) -> dict[str, Tensor]:
    """Return the tensors of the latents file: the latents, and the statistics that convert a pipeline's latents to raw ones.

    For a decoder that takes normalised latents they change nothing.
    """
    space, channels = decoder.space, decoder.latent_channels
    known = (
        space if space is not None and decoder.latents == "raw" else LatentSpace(channels, (0.0,) * channels, (1.0,) * channels)
    )
    return {
        "latents": latents,
        "latents_mean": torch.tensor(known.mean),
        "latents_std": torch.tensor(known.std),
        "scaling_factor": torch.tensor(known.scaling_factor),
    }


def raise_for_misses(result: ExportResult) -> None:
    """Raise CheckFailedError if an artefact differs too much from the student."""
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
        return "`dtype` fp16 is more accurate; int8 improves with more `data` that resembles the videos to decode"
    return "`dtype` fp32 is exact; `layout` 4d-cat keeps fp16 within its range, calibrated on `data` or `latents`"


# --- one artefact -------------------------------------------------------------------------------------------------


def _make(job: Job, reference: "Reference", settings: ExportSettings, report: Reporter) -> Artifact:
    """Write an artefact next to its destination, check it, and move it there; one that misses is named `.unverified`."""
    row, began = job.row, time.monotonic()
    student, latents = reference.student, reference.latents
    what = f"{row.name} {job.precision}{' chunk' if job.chunk else ''}"
    report.note(f"{what}: converting")
    graphs, plan = _graphs(job, student, latents, settings)
    samples = [item for size in job.sizes for item in latents[size]]
    # Converted inside a hidden folder, so that a kill leaves nothing half-written under the final name.
    aside = job.path.with_name(hidden_name(job.path, "export"))
    with whole_folder(aside, overwrite=True) as folder:
        written = folder / job.path.name
        spent = cost(graphs[0], 4 if job.precision == "fp32" else 2)  # before a writer turns the module into halves
        row.write(graphs, written, job.precision, _metadata(student, settings, plan), samples)
        report.note(f"{what}: checking what was written")
        artifact = _inspected(job, written, spent, compared(job, written, graphs, plan, reference))
    _take_place(aside / job.path.name, artifact.path)
    layout = settings.layout if isinstance(student, StudentDecoder) else ""
    return replace(artifact, layout=layout, seconds=time.monotonic() - began)


class _WholeClips(nn.Module):
    """A decoder of another family as a graph: latents (1, C, t, h, w) to video (1, 3, T, H, W)."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(module_of(decoder))  # writers turn it into halves

    def forward(self, latents: Tensor) -> Tensor:
        """Decode as the decoder's `decode` does."""
        return cast(Tensor, self.decoder.decode(latents, return_dict=False)[0])  # type: ignore[operator]  # torch's attributes


def _graphs(
    job: Job, student: Decoder, latents: dict[tuple[int, int], list[Tensor]], settings: ExportSettings
) -> tuple[list[Graph], ChunkPlan | None]:
    if not isinstance(student, StudentDecoder):
        return [Graph(_WholeClips(student).eval(), {"latents": latents[size][0]}, any_size=False) for size in job.sizes], None
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


def _metadata(student: Decoder, settings: ExportSettings, plan: ChunkPlan | None) -> dict[str, str]:
    """Return the metadata that is stored in an artefact."""
    if not isinstance(student, StudentDecoder):
        return {"turbovaed": __version__, **conventions(student)}
    config = {name: value for name, value in student.config.items() if not name.startswith("_") and name not in DERIVED_KEYS}
    return {
        "turbovaed": __version__,
        "config": json.dumps(config),
        **conventions(student),
        "layout": settings.layout,
        **({"chunk": json.dumps(asdict(plan))} if plan else {}),
    }


def _inspected(job: Job, written: Path, spent: Cost, artifact: Artifact) -> Artifact:
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
    """Return the sha256 of a file, or for a package that of the list of its files and their hashes."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _take_place(written: Path, path: Path) -> None:
    """Move a checked artefact, file or package, to its destination."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    if written.is_file():
        written.chmod(0o644)  # some writers make the file readable for its owner only
    written.replace(path)
    shutil.rmtree(written.parent)


# --- next steps ---------------------------------------------------------------------------------------------------


def next_commands(result: ExportResult, model: str) -> list[str]:
    """Return useful next commands for the artefacts of `model`, one a line."""
    alone = result.artifacts[0].path
    readme = alone.with_name(f"{alone.name}.README.md")
    lines = [f"{readme if readme.is_file() else result.document.with_name('README.md')} has the lines of code that load it"]
    timed = dict.fromkeys(item.format for item in result.artifacts if item.format in ("onnx", "executorch", "litert"))
    if timed:
        lines.append(f"turbovaed bench --model {model} --target {','.join(timed)}")
    if any(item.format == "coreml" for item in result.artifacts):
        lines.append(f"on a Mac: open the .mlpackage in Xcode, or turbovaed bench --model {model} --target coreml")
    if any(item.format == "comfyui" for item in result.artifacts):
        lines.append("ComfyUI: copy it to models/vae, and the folder comfyui/ of turbovaed to custom_nodes/turbovaed")
    return lines
