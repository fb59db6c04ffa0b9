"""Run the written artefacts and compare them with the student."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from turbovaed_cli.export.chunks import ChunkPlan
from turbovaed_cli.export.format import Graph, size_mb
from turbovaed_cli.export.plan import Job
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.student import StudentDecoder

MAX_ABS_FP32 = 1e-3  # of a range of 2
# The lowest accepted PSNR against the fp32 student, by precision; the range is [-1, 1].
MIN_PSNR_DB = {"fp16": 55.0, "bf16": 40.0, "int8": 32.0, "6bit": 28.0}
_KEPT_BYTES = 2**30  # of the student's videos that are kept for comparison


@dataclass(frozen=True)
class Artifact:
    """One written file (or package) and how it compares with the fp32 student; `status` names the runtime that ran it."""

    format: str
    path: Path
    verified: bool | str  # "converted only" if nothing here can run it
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
    first_non_finite: str | None = None  # operator; None if all values were finite
    operators: dict[str, int] = field(default_factory=dict)
    num_conv3d: int = 0
    max_rank: int | None = None
    gmacs: float = 0.0  # of the first shape
    peak_activation_mb: float = 0.0  # of the first shape, run in order, without weights
    chunk: ChunkPlan | None = None
    functions: list[str] = field(default_factory=list)  # of a Core ML package of several sizes, by their names
    seconds: float = 0.0  # to write and check it
    fixed_size: bool = False  # whether it takes only the first shape, although its format could take others


class Reference:
    """The latents that artefacts are checked on, with the fp32 student's videos, which are decoded once while they fit."""

    def __init__(self, student: Decoder, latents: dict[tuple[int, int], list[Tensor]], checked_on: str) -> None:
        self.student, self.latents, self.checked_on = student, latents, checked_on
        self._videos: dict[tuple[tuple[int, int], int], Tensor] = {}

    def items(self, size: tuple[int, int], *, other_sizes: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (latents (1, C, t, h, w), video (1, 3, T, H, W)) of one size and, with `other_sizes`, of a smaller cut."""
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
        video = decoded(self.student, item)
        if sum(other.nbytes for other in self._videos.values()) + video.nbytes < _KEPT_BYTES:
            self._videos[size, number] = video
        return video


@torch.no_grad()
def decoded(decoder: Decoder, latents: Tensor) -> Tensor:
    """Decode latents (1, C, t, h, w) to video (1, 3, T, H, W), as the artefacts are compared with: a student by its modules."""
    found = decoder(latents) if isinstance(decoder, StudentDecoder) else decoder.decode(latents, return_dict=False)[0]
    return cast(Tensor, found)


def compared(job: Job, written: Path, graphs: Sequence[Graph], plan: ChunkPlan | None, reference: Reference) -> Artifact:
    """Run a written artefact on the latents of every size, and on a smaller size if it takes any; compare it with the student.

    The result is unchecked ("converted only") if nothing here can run the format.
    """
    row = job.row
    worst, total, squares, count, shapes = 0.0, 0.0, 0.0, 0, []
    unchecked = Artifact(
        row.name, job.path, "converted only", job.precision, "chunk" if plan else "clip",
        [tuple(reference.latents[size][0].shape) for size in job.sizes], size_mb(written), row.verified_by(), chunk=plan,
        fixed_size=not graphs[0].any_size,
    )  # fmt: skip
    if row.load is None:
        return unchecked
    for size, graph in zip(job.sizes, graphs, strict=True):
        decode = row.load(written, graph)
        for item, wanted in reference.items(size, other_sizes=row.dynamic and plan is None and graph.any_size):
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
    """Return the PSNR in dB of `count` squared errors by their sum, for a range of 2: 200 for no error, 0 if not finite."""
    return min(-10 * math.log10(squares / count / 4), 200.0) if 0 < squares < math.inf else (200.0 if squares == 0 else 0.0)
