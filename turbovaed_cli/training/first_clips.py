"""The first clips of a run's data with their latents: starts are fitted to them, and unknown statistics measured on them."""

from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.batches import ClipStream
from turbovaed_cli.training.schedule import crop_of

NUM_CLIPS = 10
SIDE = 256  # pixels of the longest side of these clips
_LEAST_SPREAD = 1e-6  # standard deviation of a channel: less is a channel that is not used
_DIGITS = 6  # of a statistic: those after them depend on the machine


def first_clips(teacher: Teacher, stream: ClipStream, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return NUM_CLIPS pairs of latents (1, C, t, h, w), the means of posteriors, and their video (1, 3, T, H, W) in [-1, 1]."""
    crop = crop_of(Stage("", crop_latents=max(SIDE // teacher.spec.space_ratio, 2)), teacher.spec, stream.size)
    clips = []
    for number in range(NUM_CLIPS):
        batch = stream.batch_at(seed, number, 1, crop)
        source = batch.video.to(teacher.device)
        mean = batch.mean.to(teacher.device) if batch.mean is not None else teacher.encode(source).mean.float()
        clips.append((mean, source))
    return clips


def measured_statistics(teacher: Teacher, stream: ClipStream, seed: int) -> dict[str, Any]:
    """Return latents_mean and latents_std, a number for each channel, of the first clips' latents."""
    latents = torch.cat([mean[0].flatten(1) for mean, _ in first_clips(teacher, stream, seed)], dim=1).double()  # (C, N)
    spread = latents.std(dim=1)
    spread = torch.where(spread < _LEAST_SPREAD, 1.0, spread)
    mean, std = ([float(f"{one:.{_DIGITS}g}") for one in values.tolist()] for values in (latents.mean(dim=1), spread))
    return {"latents_mean": mean, "latents_std": std}
