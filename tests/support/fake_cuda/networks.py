"""The registry's networks at full size on the fake device, and trainers of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest import mock

import torch
from torch import nn

from fake_cuda.device import device, kind
from turbovaed_cli.latents.batch import ALL_CLIPS, Batch, Crop
from turbovaed_cli.machine.devices import resolve_dtype
from turbovaed_cli.metrics.lpips import Lpips
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.backbones import TRUNKS
from turbovaed_cli.registry.find import read_diffusers_config
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.losses import perceptual_loss
from turbovaed_cli.training.schedule import crop_of
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trainer import Trainer


def teacher_of(spec: ModelSpec) -> Teacher:
    """A teacher of full size, on the device."""
    teacher = spec.teacher
    config = dict(teacher.config) if teacher.path is None else read_diffusers_config(teacher.path / "config.json")
    vae: Any = teacher.family.build(config)
    return Teacher(vae.to(device()), teacher)


def lpips(backbone: str = "vgg") -> Lpips:
    """LPIPS without contents, on the CPU, where its weights are read to."""
    trunk, state = TRUNKS[backbone], {}
    for index, inputs, outputs, kernel, *_ in trunk.convolutions:
        state |= {
            f"features.{index}.weight": torch.zeros(outputs, inputs, kernel, kernel),
            f"features.{index}.bias": torch.zeros(outputs),
        }
    taps = [outputs for index, _, outputs, *_ in trunk.convolutions if index in trunk.taps]
    return Lpips(trunk, state, {f"lin{i}.model.1.weight": torch.zeros(1, width, 1, 1) for i, width in enumerate(taps)})


@dataclass
class Clips:
    """A stream of clips without contents, as from videos or, `is_encoded`, from a latent cache."""

    spec: ModelSpec
    frames: int
    size: tuple[int, int]
    is_encoded: bool
    fingerprint: str = ""

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = ALL_CLIPS) -> Batch:
        height, width = self.size if crop is None else crop.pixels
        teacher = self.spec.teacher
        shape = (
            batch_size,
            teacher.latent_channels,
            teacher.latent_frames(self.frames),
            height // teacher.space_ratio,
            width // teacher.space_ratio,
        )
        video = torch.zeros(batch_size, 3, self.frames, height, width)
        return Batch(video, torch.zeros(shape), torch.zeros(shape)) if self.is_encoded else Batch(video)

    def names_at(self, *_: Any) -> list[str]:
        return ["a clip"]


def student_of(name: str, dtype: torch.dtype = torch.float32) -> StudentDecoder:
    """A student of full size, on the device."""
    return cast(StudentDecoder, nn.Module.to(build_student(MODELS[name].student.config), device(), dtype)).eval()


def trainer_of(name: str, settings: DistillSettings, *, cached: bool = False, teacher: Teacher | None = None) -> Trainer:
    """A trainer as `distill` makes it, on clips of the settings' frames and size."""
    spec = MODELS[name]
    teacher = teacher or teacher_of(spec)
    settings = replace(settings, device=kind(), frames=spec.teacher.frames.at_least(settings.frames))
    student = build_student(spec.student.config)
    aligned = any(stage.feature_weight for stage in settings.stages)
    heads = build_heads(student.to(device()), teacher, spec.student.pairs if aligned else ())
    state = TrainingState(student, heads, settings, device())
    dtype = resolve_dtype(settings.dtype)
    with mock.patch("turbovaed_cli.training.losses.load_lpips", lambda _: lpips()):
        wanted = {stage.perceptual for stage in settings.stages} | {"none"}
        perceptual = {name: perceptual_loss(name, device(), dtype) for name in wanted}
    streams = [Clips(spec, settings.frames, stage.size or settings.size, cached) for stage in settings.stages]
    crops = [crop_of(stage, spec.teacher, stream.size) for stage, stream in zip(settings.stages, streams, strict=True)]
    if cached:
        teacher.drop_encoder()
    return Trainer(teacher, state, cast(Any, streams), crops, perceptual, settings, device(), dtype, begins=settings.start)


def batches(trainer: Trainer, stage: int = 0) -> Iterator[tuple[tuple[int, int], Batch]]:
    """The batches of a stage, without end, each made when it is asked for."""
    number = 0
    while True:
        yield (stage, number), trainer.batch_at((stage, number))
        number += 1
