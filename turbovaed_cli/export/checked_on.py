"""The latents that artefacts are checked on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.latents.latent_files import LatentsFile, read_latents_for
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import latent_shape
from turbovaed_cli.models.memory import fit_encoder
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ExportSettings
from turbovaed_cli.video import VideoInfo, read_clip
from turbovaed_cli.video.usable import Skipped, usable_videos

if TYPE_CHECKING:
    from turbovaed_cli.models.teacher import Teacher


CHECKED_ON_RANDOM = "random latents of the usual spread"


def first_videos(settings: ExportSettings, report: Reporter = quiet) -> tuple[list[VideoInfo], list[Skipped]]:
    """Return the first `settings.clips` usable videos of `settings.data`, and the skipped ones; empty lists without `data`."""
    if settings.data is None:
        return [], []
    return usable_videos(settings.data, settings.frames, report, first=settings.clips, hdr=settings.hdr)


def latents_for(
    student: Decoder,
    settings: ExportSettings,
    teacher: "Teacher | None" = None,
    videos: Sequence[VideoInfo] = (),
    report: Reporter = quiet,
) -> tuple[dict[tuple[int, int], list[Tensor]], str]:
    """Return latents (1, C, t, h, w) by size (height, width), and a description of them.

    They are those of `videos`, those of the given file cut to each size, or random ones. Raises SettingsError if the file's
    latents are smaller than a size.
    """
    shapes = {size: latent_shape(student, settings.frames, size) for size in settings.sizes}
    if settings.data is not None:
        assert teacher is not None, "videos are encoded by the teacher"
        return {
            size: _encoded(teacher, videos, settings, size, report) for size in shapes
        }, f"latents of {settings.data.resolve().name}"
    if settings.latents is not None:
        read = read_latents_for(
            settings.latents,
            student,
            latents_are=settings.latents_are,
            shape=settings.latents_shape,
            expected=shapes[settings.sizes[0]][1:],
            report=report,
        )
        return {size: [_cut(read, shape)] for size, shape in shapes.items()}, f"latents of {settings.latents.name}"
    mean, std = (value.view(1, -1, 1, 1, 1) for value in _statistics(student))
    random = {}
    for size, shape in shapes.items():
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(settings.seed))
        random[size] = [noise * std + mean]
    return random, CHECKED_ON_RANDOM


def _statistics(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of the latents that a decoder takes; 0 and 1 if they are not known."""
    space = decoder.space
    if space is None or decoder.latents == "normalised":
        return torch.zeros(decoder.latent_channels), torch.ones(decoder.latent_channels)
    return torch.tensor(space.mean), torch.tensor(space.std)


def _cut(read: LatentsFile, shape: tuple[int, ...]) -> Tensor:
    found = read.latents
    if found.shape[0] != shape[0] or any(have < want for have, want in zip(found.shape[1:], shape[1:], strict=True)):
        raise SettingsError(
            f"{read.path} holds {tuple(found.shape)}; {shape} are needed", "choose `frames` and `size` that fit inside"
        )
    return found[None, :, : shape[1], : shape[2], : shape[3]].contiguous()


@torch.no_grad()
def _encoded(
    teacher: "Teacher", videos: Sequence[VideoInfo], settings: ExportSettings, size: tuple[int, int], report: Reporter
) -> list[Tensor]:
    """Encode the first clip of each video to latents (1, C, t, h, w), in tiles if the memory asks for it."""
    clips, frames = [], settings.frames
    fit_encoder(teacher, frames, size, budget=settings.memory, report=report)
    for info in report.track(videos, "encoding"):
        clips.append(teacher.encode(read_clip(info, frames, size)[None]).mean.float().contiguous())
    return clips
