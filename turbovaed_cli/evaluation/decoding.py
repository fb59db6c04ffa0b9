"""Decode the clips that `eval` measures: as `reconstruct` writes them, or as the published script did."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli.evaluation import paper
from turbovaed_cli.evaluation.scores import ClipScores, DecodeTimes
from turbovaed_cli.machine.devices import wait_for
from turbovaed_cli.models.decoding import decode_without_gradients
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.reconstruction.columns import decoded_frames
from turbovaed_cli.reconstruction.reconstruct import reconstructed_frames
from turbovaed_cli.reconstruction.windows import check_finite, window_frames
from turbovaed_cli.settings import EvalSettings, ReconstructSettings
from turbovaed_cli.video import probe, read_clip_uint8, to_model

AS_RECONSTRUCT = ReconstructSettings()
ClipBatch = list[Tensor]  # clips of one batch, each (3, T, H, W) in the range of the protocol


def decode_rounded(frames: list[np.ndarray], pair: Pair, device: torch.device, *, with_teacher: bool) -> dict[str, ClipBatch]:
    """Decode each clip as `reconstruct` writes it: videos (3, T, H, W) in [-1, 1] on `device`."""
    decoded = [decode_clip(clip, pair, with_teacher=with_teacher) for clip in frames]
    return {
        "teacher": [to_model(teacher, device) for teacher, _ in decoded if teacher is not None],
        "student": [to_model(student, device) for _, student in decoded],
    }


def decode_clip(source: np.ndarray, pair: Pair, *, with_teacher: bool = True) -> tuple[np.ndarray | None, np.ndarray]:
    """Decode frames (T, H, W, 3) uint8 by the teacher (or None) and the student, as `reconstruct` writes them within rounding."""
    assert pair.teacher is not None
    length, height, width, _ = source.shape
    settings = replace(AS_RECONSTRUCT, compare=with_teacher)
    teacher = student = None
    is_short = length <= window_frames(pair.teacher.spec, height, width, settings.window, settings.overlap)
    if with_teacher or is_short:
        columns = np.stack(list(decoded_frames(iter(source), height, width, pair, settings)))
        student = columns[:, :, -width:]
        teacher = columns[:, :, width : 2 * width] if with_teacher else None  # (T, H, 3W, 3): source, teacher, student
    if student is None or not is_short:  # windows have seams; the student's stream has none
        made = reconstructed_frames(iter(source), height, width, pair, AS_RECONSTRUCT, num_frames=length)
        student = np.stack(list(made))
    return teacher, student


@torch.no_grad()
def decode_sampled(number: int, frames: list[np.ndarray], pair: Pair) -> dict[str, ClipBatch]:
    """Decode as the published script: a sample of the posterior, the whole clip at once, clamped, not rounded."""
    assert pair.teacher is not None
    decoded: dict[str, ClipBatch] = {"teacher": [], "student": []}
    for i, clip in enumerate(frames):
        posterior = pair.teacher.encode(to_model(clip, pair.device)[None])
        generator = torch.Generator().manual_seed(number * paper.BATCH_SIZE + i)  # the same noise for every model
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        latents = posterior.sample(noise)
        videos = {"teacher": pair.teacher.decode(latents), "student": decode_without_gradients(pair.student, latents)}
        check_finite(videos.values())
        for side, video in videos.items():
            decoded[side].append(video[0].float().clamp(-1, 1).cpu())
    return decoded


def clip_frames(pair: Pair, clip: ClipScores, settings: EvalSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the frames of an evaluated clip again: source, teacher and student, each (T, H, W, 3) uint8.

    `settings` are those of the evaluation. Under `--protocol paper` too, these are the frames that `reconstruct` would
    write. Raises VideoError if the video is gone.
    """
    source = read_clip_uint8(probe(Path(clip.path)), settings.frames, settings.size, start=clip.start, stride=settings.stride)
    teacher, student = decode_clip(source, pair)
    assert teacher is not None
    return source, teacher, student


def decode_times(pair: Pair, clip: np.ndarray | Tensor, repeats: int) -> DecodeTimes:
    """Time decodes of a clip by teacher and student in turns, after a warm-up of each; see `decode_times_of`."""
    return decode_times_of([pair], clip, repeats)[0]


@torch.no_grad()
def decode_times_of(pairs: Sequence[Pair], clip: np.ndarray | Tensor, repeats: int) -> list[DecodeTimes]:
    """Time decodes of a clip by every teacher and every student, all in turns, after a warm-up of each.

    `clip` is frames (T, H, W, 3) uint8, or raw latents (1, C, t, h, w). A teacher object that pairs share is timed once, so that
    other load on the machine meets all of them alike.
    """
    runs: dict[tuple[str, int], tuple[Callable[[Tensor], Tensor], Tensor]] = {}
    for number, pair in enumerate(pairs):
        teacher = pair.teacher
        assert teacher is not None
        if ("teacher", id(teacher)) not in runs:
            latents = clip if isinstance(clip, Tensor) else teacher.encode(to_model(clip)[None]).mean
            runs["teacher", id(teacher)] = teacher.decode_by_class, latents
        runs["student", number] = partial(decode_without_gradients, pair.student), runs["teacher", id(teacher)][1]
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    device = pairs[0].device
    for turn in range(repeats + 1):
        for key, (decode, latents) in runs.items():
            wait_for(device)
            began = time.perf_counter()
            decode(latents)
            wait_for(device)
            if turn:  # the first one allocates and chooses kernels
                seconds[key].append(time.perf_counter() - began)
    return [
        DecodeTimes(seconds["teacher", id(pair.teacher)], seconds["student", number], str(device))
        for number, pair in enumerate(pairs)
    ]
