"""One optimizer step: batches, losses and gradients, with checks for non-finite values. Source: arXiv:2508.09136."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from turbovaed_cli.errors import NonFiniteError
from turbovaed_cli.latents.batch import Batch, Crop
from turbovaed_cli.machine.devices import autocast
from turbovaed_cli.machine.ranks import Ranks, alone
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.reporting import Reporter
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.batches import ClipStream, DeviceCopies
from turbovaed_cli.training.discriminator import adaptive_weight, discriminator_loss, generator_loss
from turbovaed_cli.training.first_clips import NUM_CLIPS, first_clips
from turbovaed_cli.training.fitted_start import are_flat, can_fit, fit_start
from turbovaed_cli.training.losses import (
    Losses,
    PerceptualLoss,
    reconstruction_losses,
)
from turbovaed_cli.training.pruned_start import prune_start
from turbovaed_cli.training.schedule import learning_rate, position_at
from turbovaed_cli.training.state import TrainingState

MIN_LOSS_SCALE = 2.0**-8  # it starts at 2 ** 16
_MOST_NAMES = 4  # of clips in a message
_NO_NORM = 1e-6  # added to a norm that is divided by, as in torch.nn.utils.clip_grad_norm_


@dataclass
class Trainer:
    """Everything that an optimizer step needs, and the step itself."""

    teacher: Teacher
    state: TrainingState
    streams: Sequence[ClipStream]  # of each stage
    crops: Sequence[Crop | None]  # of each stage
    perceptual: Mapping[str, PerceptualLoss | None]
    settings: DistillSettings
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks = field(default_factory=lambda: alone(torch.device("cpu")))
    begins: str = "plain"  # what a new run does with the student's weights: nothing, or they are "fitted" or "pruned"

    def __post_init__(self) -> None:
        self.copies = DeviceCopies(self.device)
        features = self.state.student.features
        self.student_features = _compiled(features) if self.settings.compile else features

    def batch_at(self, which: tuple[int, int]) -> Batch:
        """Return the batch of (stage, number of the forward pass over the whole run), on the device, with its noise.

        It may be called from any thread. The posterior's noise depends on (seed, number of the forward pass) only. Each of
        several ranks gets its part of a batch that does not depend on their number.
        """
        index, number = which
        stage, seed = self.settings.stages[index], self.settings.seed
        part = self.ranks.part(stage.batch_size)
        batch = self.streams[index].batch_at(seed, number, stage.batch_size, self.crops[index], part)
        if stage.posterior == "sample":
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
            shape = (stage.batch_size, *self.latent_shape(batch)[1:])
            batch = replace(batch, noise=torch.randn(shape, generator=generator)[part])
        frames = batch.video.shape[2]
        if stage.perceptual_frames and stage.perceptual_frames < frames:
            drawn = random.Random(f"frames/{seed}/{number}").sample(range(frames), stage.perceptual_frames)  # noqa: S311
            batch = replace(batch, looked_at=tuple(sorted(drawn)))
        return self.copies.send(batch)

    def names_at(self, which: tuple[int, int]) -> str:
        """Return the names of the clips of that batch, for messages."""
        index, number = which
        batch_size = self.settings.stages[index].batch_size
        names = self.streams[index].names_at(self.settings.seed, number, batch_size, self.ranks.part(batch_size))
        return ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")

    def latent_shape(self, batch: Batch) -> torch.Size:
        """Return the shape (B, C, t, h, w) of a batch's latents, whether encoded or not."""
        if batch.mean is not None:
            return batch.mean.shape
        clips, _, frames, height, width = batch.video.shape
        spec = self.teacher.spec
        return torch.Size(
            (clips, spec.latent_channels, spec.latent_frames(frames), height // spec.space_ratio, width // spec.space_ratio)
        )

    def set_start(self, report: Reporter) -> None:
        """Fit the fresh student to the first clips, or cut it from its teacher, in fp32, and restart its average from there.

        If all of them show the same flat colour, the random weights of a student to be fitted stay, with a warning.
        """
        if self.begins == "pruned":
            report.note("cutting the student from its teacher's decoder")
            prune_start(self._own_student, self.teacher, first_clips(self.teacher, self.streams[0], self.settings.seed))
        elif self.begins != "fitted" or not self._fit_start(report):
            return
        self.state.forget_average()

    @property
    def _own_student(self) -> StudentDecoder:
        return cast(StudentDecoder, self.state.student)

    def _fit_start(self, report: Reporter) -> bool:
        """Fit the fresh student to the first clips, if that is possible, and return whether it was."""
        if not can_fit(self.state.student):
            text = (
                f"a student of the family {self.state.student.family} has no fitted start: its weights are random (`start` plain)"
            )
            report.note(text)
            return False
        report.note("fitting the start to some clips")
        clips = first_clips(self.teacher, self.streams[0], self.settings.seed)
        if are_flat([source for _, source in clips]):
            text = f"the first {NUM_CLIPS} clips show one flat colour: the start cannot be fitted to them and is random (`start` plain)"
            report.note(text, warning=True)
            return False
        fit_start(self._own_student, clips)
        return True

    def learn(self, batches: Iterator[tuple[tuple[int, int], Batch]]) -> dict[str, float]:
        """Take the next batches, make one optimizer step of the current stage, and return the mean losses.

        Raises NonFiniteError before the step if a loss or gradient is not finite; in fp16, after too many overflows.
        """
        settings, state = self.settings, self.state
        at = position_at(settings.stages, state.step)
        stage = at.stage
        for optimizer in state.optimizers(stage):
            optimizer.zero_grad(set_to_none=True)
        state.student.checkpoint_blocks(enable=stage.gradient_checkpointing)
        passes: dict[tuple[int, int], dict[str, Tensor]] = {}
        for _ in range(stage.accumulation):
            which, batch = next(batches)
            losses = self.losses(self.copies.take(batch), stage)
            state.scaler.scale(losses.total / stage.accumulation).backward()
            if losses.discriminator is not None:
                state.scaler.scale(losses.discriminator / stage.accumulation).backward()
            passes[which] = {name: value.detach() for name, value in (("loss", losses.total), *losses.parts.items())}
        sums = self.mean_of(passes)
        self.ranks.mean_gradients(state.stepping_parameters(stage))  # before the scaler's check: all ranks see an overflow
        state.scaler.unscale_(state.optimizer)
        gradients = [p.grad for p in state.named_parameters.values() if p.grad is not None]
        norm = _norm(gradients)
        if not state.scaler.is_enabled():  # the scaler skips a step whose gradients overflowed, by design
            _check_gradients(state, norm, "; ".join(map(self.names_at, passes)))
        if settings.clip_grad_norm:
            torch._foreach_mul_(gradients, (settings.clip_grad_norm / (norm + _NO_NORM)).clamp(max=1.0))
        rate = learning_rate(stage, state.step - at.first_step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        for optimizer in state.optimizers(stage):
            state.scaler.step(optimizer)
        state.scaler.update()
        _check_scale(state)
        state.step += 1
        state.update_ema(settings.ema_decay)
        return sums | {"grad_norm": norm.item(), "lr": rate}

    def mean_of(self, passes: Mapping[tuple[int, int], Mapping[str, Tensor]]) -> dict[str, float]:
        """Return the mean losses (scalars) of a step's forward passes over all ranks, copied from the device at once.

        Raises NonFiniteError with the first loss that is not finite, and its clips.
        """
        own = torch.stack([value for losses in passes.values() for value in losses.values()])
        whole = self.ranks.mean([own])[0].tolist()
        names = list(next(iter(passes.values())))
        if not all(map(math.isfinite, whole)):
            self._raise_non_finite(list(passes), names, own.tolist())
        rows = [dict(zip(names, whole[first:], strict=False)) for first in range(0, len(whole), len(names))]
        return {name: sum(row[name] / len(passes) for row in rows) for name in names}

    def _raise_non_finite(self, passes: Sequence[tuple[int, int]], names: Sequence[str], values: Sequence[float]) -> None:
        order = [*(name for name in names if name != "loss"), "loss"]  # the part that broke before the sum
        found = [
            ((number, order.index(name)), name, value, self.names_at((index, number)))
            for (index, number), first in zip(passes, range(0, len(values), len(names)), strict=True)
            for name, value in zip(names, values[first:], strict=False)
            if not math.isfinite(value)
        ]
        (number, _), name, value, clips = min((one for some in self.ranks.gather(found) for one in some), key=lambda one: one[0])
        raise NonFiniteError(
            f"{name} is {value} at step {self.state.step + 1} (forward pass {number}), of {clips}; "
            "the weights are as they were before this step",
            "look at those clips, lower `lr`, or use `dtype` fp32; the same command goes on from the last checkpoint",
        )

    def losses(self, batch: Batch, stage: Stage) -> Losses:
        """Return the losses of one batch on the device, as scalars."""
        source = batch.video
        pairs = self.state.heads.pairs if stage.feature_weight else ()
        taps, blocks = [pair.teacher_tap for pair in pairs], [pair.student_block for pair in pairs]
        features: dict[str, Tensor] = {}
        taught = None
        latents = self.latents_of(batch)  # in fp32, as rounding would change the latents
        with autocast(self.device, self.dtype):
            decoded, learnt = self.student_features(latents, blocks)
            if stage.teacher_weight:
                with torch.autocast(self.device.type, enabled=False):  # pixels to learn from are not rounded either
                    taught, known = self.teacher.decode_with_features(latents, taps)
                features = self.state.heads(learnt, known) if taps else {}
            elif taps:
                features = self.state.heads(learnt, self.teacher.features(latents, taps))
        assert decoded is not None
        decoded, source = batch.counted(decoded), batch.counted(source)
        taught = None if taught is None else batch.counted(taught)
        losses = reconstruction_losses(
            decoded, source, stage, features, self.perceptual_of(stage), taught, batch.looked_at, self.teacher.spec.space_ratio
        )
        return self.judged(losses, decoded, source, stage) if stage.adversarial_weight else losses

    def perceptual_of(self, stage: Stage) -> PerceptualLoss | None:
        """Return the perceptual distance of a stage; None if it has no weight."""
        return self.perceptual[stage.perceptual if stage.perceptual_weight else "none"]

    def judged(self, losses: Losses, decoded: Tensor, source: Tensor, stage: Stage) -> Losses:
        """Return the losses with the adversarial one, and the discriminator's own, for videos (B, 3, T, H, W) in [-1, 1]."""
        discriminator = self.state.discriminator
        assert discriminator is not None
        with autocast(self.device, self.dtype):
            discriminator.requires_grad_(False)  # its gradients come from its own loss alone
            adversarial = generator_loss(discriminator(decoded))
            discriminator.requires_grad_(True)
            judgement = discriminator_loss(discriminator(source), discriminator(decoded.detach()))
        weight = adaptive_weight(losses.total, adversarial, self.state.student.last_weight, self.ranks.mean)
        parts = {"adversarial": adversarial, "adaptive_weight": weight, "discriminator": judgement}
        total = losses.total + stage.adversarial_weight * weight * adversarial
        return Losses(total, {**losses.parts, **parts}, judgement)

    def data_of(self, index: int) -> dict[str, int]:
        """Return the data of one optimizer step of a stage: clips, and their frames, height and width in pixels."""
        stage, stream = self.settings.stages[index], self.streams[index]
        crop = self.crops[index]
        height, width = stream.size if crop is None else crop.pixels
        return {"clips": stage.batch_size * stage.accumulation, "frames": stream.frames, "height": height, "width": width}

    def latents_of(self, batch: Batch) -> Tensor:
        """Return latents (B, C, t, h, w) to decode: sampled from the posterior if the batch has noise, else its mean."""
        mean, std = batch.mean, batch.std
        if mean is None or std is None:
            posterior = self.teacher.encode(batch.video)
            mean, std = posterior.mean.float(), posterior.std.float()
        return mean if batch.noise is None else mean + std * batch.noise


def _compiled(features: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled forward pass of the student. Only the function is compiled, so that state dicts keep their keys."""
    functorch_config.donated_buffer = False  # the adaptive weight goes back through the graph more than once
    from torch._inductor import config as inductor_config  # noqa: PLC0415 - takes a second, and is needed only for --compile

    inductor_config.deterministic = True  # otherwise it tunes reductions by timing, and the order of sums may vary
    return torch.compile(features, dynamic=False)


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all numbers in `tensors` together, a scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _check_gradients(state: TrainingState, norm: Tensor, clips: str) -> None:
    judging = [p.grad for p in state.discriminator_parameters.values() if p.grad is not None]
    if torch.isfinite(norm + _norm(judging) if judging else norm):
        return
    parameters = state.named_parameters | {f"discriminator {name}": p for name, p in state.discriminator_parameters.items()}
    name = next((name for name, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()), "their norm")
    raise NonFiniteError(
        f"the gradient of {name} is not finite at step {state.step + 1}, of {clips}; the weights are as they were before this step",
        "look at those clips, lower `lr`, or use `dtype` fp32; the same command goes on from the last checkpoint",
    )


def _check_scale(state: TrainingState) -> None:
    """Raise NonFiniteError if the loss scale is too low. Each overflow lowers it and skips a step, so nothing is learnt then."""
    if state.scaler.is_enabled() and state.scaler.get_scale() < MIN_LOSS_SCALE:
        raise NonFiniteError(
            f"fp16 gradients overflow at every step; the loss scale has fallen below {MIN_LOSS_SCALE} at step {state.step + 1}",
            "use `dtype` bf16 or fp32; the same command goes on from the last checkpoint",
        )
