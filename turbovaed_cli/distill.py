"""`distill`: teach a small decoder to do what a frozen teacher's decoder does. Source: arXiv:2508.09136."""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from turbovaed_cli import __version__
from turbovaed_cli.devices import autocast, environment, resolve_device, resolve_dtype
from turbovaed_cli.errors import CheckFailedError, InterruptedRunError, NonFiniteError, SettingsError
from turbovaed_cli.latents import Batch, LatentCache
from turbovaed_cli.models.student import StudentDecoder, build_student, load_strictly, load_student, num_params
from turbovaed_cli.models.teacher import Teacher, decoder_params, hash_of_state, load_teacher
from turbovaed_cli.registry import AlignmentPair, ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import RunDir, whole_folder, write_whole
from turbovaed_cli.settings import RESUMABLE_CHANGES, DistillSettings
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.data import Skipped, VideoClips, random_crop, read_ahead, usable_videos
from turbovaed_cli.training.losses import Losses, PerceptualLoss, perceptual_loss, reconstruction_losses, resolve_perceptual
from turbovaed_cli.training.samples import write_strip
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.weights import Consent, no_consent

MIN_LOSS_SCALE = 2.0**-8  # it starts at 2 ** 16


class ClipStream(Protocol):
    """An endless stream of batches, each a function of (seed, index): a latent cache or plain videos."""

    damaged: dict[str, str]  # videos that could not be read after all, and why

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its clips in pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the data does."""
        ...

    def batch_at(self, seed: int, index: int, batch_size: int) -> Batch:
        """Batch number `index`."""
        ...

    @property
    def frames(self) -> int:
        """Frames of its clips."""
        ...


@dataclass(frozen=True)
class DistillResult:
    """What a distillation came to."""

    run: Path
    model: Path
    step: int
    resumed_from: int | None  # step of the checkpoint it went on from
    losses: dict[str, float]  # of the last step; empty when there was nothing left to do
    student_params: int
    teacher_decoder_params: int
    skipped: list[Skipped] = field(default_factory=list)


def distill(
    spec: ModelSpec,
    run: Path,
    *,
    data: Path | None = None,
    latents: Path | None = None,
    settings: DistillSettings = DistillSettings(),  # noqa: B008 - frozen
    student_config: Mapping[str, Any] | None = None,
    init: str | None = None,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> DistillResult:
    """Distil `spec`'s teacher into a student, from videos (`data`, encoded on the way) or a latent cache (`latents`).

    `init` names a student (as load_student takes it) to start from instead of random weights.
    Calling it again with the same arguments resumes `run` where its newest checkpoint lies, bit for bit. Raises
    SettingsError or RunFolderError before anything is written, NonFiniteError before an optimizer step that would spread
    NaN, InterruptedRunError after a checkpoint when a signal asked it to stop.
    """
    if (data is None) == (latents is None):
        raise SettingsError(
            "distill learns from videos or from cached latents: one of the two", "give --data DIR or --latents DIR"
        )
    _check_settings(settings)
    device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
    folder = RunDir(run)
    teacher = load_teacher(spec, device=device, consent=consent)
    settings = replace(settings, perceptual=_perceptual_of(folder, settings, report))
    perceptual = perceptual_loss(settings.perceptual, device)
    if settings.crop is not None:
        spec.teacher.check_size(*settings.crop)
    if latents is None:
        assert data is not None
        spec.teacher.check_frames(settings.frames)
        spec.teacher.check_size(*settings.size)
        videos, skipped = usable_videos(data, (settings.frames - 1) * settings.stride + 1, report)
        stream: ClipStream = VideoClips(videos, settings.frames, settings.size, settings.stride)
    else:
        stream, skipped = _cache_of(latents, teacher), []
    _check_crop(settings, stream)

    torch.manual_seed(settings.seed)
    student = build_student(_complete_config(student_config or spec.student.config, spec, teacher))
    if init is not None:
        load_strictly(student, load_student(init, consent=consent).state_dict(), Path(init))
    _check_ratios(student, spec)
    heads = build_heads(student.to(device), teacher, spec.student.pairs if settings.feature_weight else ())
    report.note(
        f"teacher {spec.name}: {decoder_params(teacher) / 1e6:.3f} M in its decoder; student {num_params(student) / 1e6:.3f} M; "
        f"on {device.type}, {settings.dtype}"
    )
    state = TrainingState(student, heads, settings, device)
    with folder.lock():
        config = {
            "command": "distill",
            "settings": asdict(settings),
            "model": spec.name,
            "teacher": {
                **teacher.identity(),
                "where": str(spec.teacher.path.resolve()) if spec.teacher.path and not spec.embedded else spec.name,
            },
            "student_config": _published_config(student),
            "init_sha256": hash_of_state(student) if init is not None else None,
            "data_fingerprint": stream.fingerprint,
        }
        folder.snapshot(config, environment(), RESUMABLE_CHANGES)
        folder.clean_leftovers()
        resumed_from = _resume(folder, state)
        if resumed_from:
            report.note(f"resumed from step {resumed_from}")
        trainer = Trainer(teacher, state, stream, perceptual, settings, spec.student.pairs, device, dtype)
        losses = _train(trainer, folder, report)
        _write_model(folder, trainer, spec, config)
    skipped += [Skipped(path, reason) for path, reason in stream.damaged.items()]
    return DistillResult(
        run, folder.model, state.step, resumed_from, losses, num_params(student), decoder_params(teacher), skipped=skipped
    )


@dataclass
class Trainer:
    """One optimizer step, in terms of everything it needs."""

    teacher: Teacher
    state: TrainingState
    stream: ClipStream
    perceptual: PerceptualLoss | None
    settings: DistillSettings
    pairs: tuple[AlignmentPair, ...]
    device: torch.device
    dtype: torch.dtype

    def batch_at(self, index: int) -> Batch:
        """Forward pass number `index` of the whole run; `settings.accumulation` of them make a step."""
        batch = self.stream.batch_at(self.settings.seed, index, self.settings.batch_size)
        if self.settings.crop is None:
            return batch
        return random_crop(batch, self.settings.crop, self.teacher.spec.space_ratio, self.settings.seed, index)

    def learn(self, batches: Iterator[tuple[int, Batch]]) -> dict[str, float]:
        """Take the next `accumulation` batches, make one optimizer step, and return the mean losses."""
        settings, state = self.settings, self.state
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for _ in range(settings.accumulation):
            index, batch = next(batches)
            losses = self.losses(batch, index)
            _check_finite(losses, state.step + 1, index)
            state.scaler.scale(losses.total / settings.accumulation).backward()
            for name, value in [("loss", losses.total), *losses.parts.items()]:
                sums[name] = sums.get(name, 0.0) + value.item() / settings.accumulation
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm(p.grad for p in state.named_parameters.values() if p.grad is not None)
        if not state.scaler.is_enabled():  # the scaler skips a step whose gradients overflowed, by design
            _check_gradients(state, norm)
        if settings.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(state.named_parameters.values(), settings.clip_grad_norm, norm)
        rate = learning_rate(settings, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.scaler.step(state.optimizer)
        state.scaler.update()
        _check_scale(state)
        state.step += 1
        state.update_ema(settings.ema_decay)
        return sums | {"grad_norm": norm.item(), "lr": rate}

    def losses(self, batch: Batch, index: int) -> Losses:
        """The losses of one batch; the posterior's noise depends on (seed, index) alone."""
        settings = self.settings
        source = batch.video.to(self.device)
        with autocast(self.device, self.dtype):
            latents = self.latents_of(batch, source, index)
            blocks = [pair.student_block for pair in self.state.heads.pairs]
            decoded, learnt = self.state.student.features(latents, blocks)
            features = {}
            if blocks:
                taught = self.teacher.features(latents, [pair.teacher_tap for pair in self.state.heads.pairs])
                features = self.state.heads(learnt, taught)
        assert decoded is not None
        return reconstruction_losses(
            decoded, source, features, self.perceptual, settings.perceptual_weight, settings.feature_weight
        )

    def latents_of(self, batch: Batch, source: Tensor, index: int) -> Tensor:
        """Latents (B, C, t, h, w) to decode: sampled from the posterior, or its mean."""
        if batch.mean is not None and batch.std is not None:
            mean, std = batch.mean.to(self.device), batch.std.to(self.device)
        else:
            posterior = self.teacher.encode(source)
            mean, std = posterior.mean.float(), posterior.std.float()
        if self.settings.posterior == "mean":
            return mean
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + index) % 2**63)
        return mean + std * torch.randn(mean.shape, generator=generator).to(self.device)


def learning_rate(settings: DistillSettings, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` others: a linear warm-up, then constant or cosine to 2 %."""
    rate = settings.lr * min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    if settings.lr_schedule == "cosine":
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1.0)))
    return rate


def _train(trainer: Trainer, folder: RunDir, report: Reporter) -> dict[str, float]:
    """Run the steps that are left, logging and saving; returns the last step's losses."""
    settings, state = trainer.settings, trainer.state
    losses: dict[str, float] = {}
    first = state.step
    indices = range(first * settings.accumulation, settings.steps * settings.accumulation)
    batches = read_ahead(trainer.batch_at, indices, settings.workers)
    clips_per_step = settings.batch_size * settings.accumulation
    with _stop_requests() as stop:
        for step in report.track(range(first, settings.steps), "distilling", total=settings.steps, start=first):
            started = time.monotonic()
            losses = trainer.learn(batches)
            seconds = time.monotonic() - started
            finite = {name: value if math.isfinite(value) else None for name, value in losses.items()}  # JSON knows no infinity
            _append(folder.metrics, json.dumps({"step": step + 1, **finite, "seconds": seconds}))
            report.note(loss=losses["loss"], l1=losses["l1"], clips_per_s=clips_per_step / seconds)
            last = state.step == settings.steps
            if settings.sample_every and (state.step % settings.sample_every == 0 or last):
                _draw_sample(trainer, folder)
            asked_to_stop = list(stop)  # read once: what comes later belongs to the next step
            if state.step % settings.save_every == 0 or last or asked_to_stop:
                folder.save_checkpoint(state.step, state.save, settings.keep_checkpoints)
                _append(folder.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} saved step {state.step}, loss {losses['loss']:.5f}")
            if asked_to_stop and not last:
                hint = "the same command goes on from there"
                raise InterruptedRunError(f"stopped after step {state.step} of {settings.steps}", asked_to_stop[0], hint)
    return losses


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM put their number in, so that the step at hand can end; a second signal ends at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resume(folder: RunDir, state: TrainingState) -> int | None:
    """Load the newest checkpoint; forget what the metrics say of steps behind it. Returns its step."""
    path = folder.latest_checkpoint()
    if path is not None:
        state.load(path)
    if folder.metrics.exists():
        lines = [line for line in folder.metrics.read_text().splitlines() if _step_of(line) <= state.step]
        write_whole(
            folder.metrics, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        )
    return state.step if path is not None else None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # the torn last line of a killed process


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _check_settings(settings: DistillSettings) -> None:
    for name in ("steps", "batch_size", "accumulation", "frames", "stride", "save_every", "keep_checkpoints"):
        if getattr(settings, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")
    if settings.lr <= 0:
        raise SettingsError(f"--lr is {settings.lr}; it must be above 0")
    choices = {"lr_schedule": ("constant", "cosine"), "posterior": ("sample", "mean")}
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise SettingsError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} is unknown", f"one of: {', '.join(allowed)}"
            )


def _perceptual_of(folder: RunDir, settings: DistillSettings, report: Reporter) -> str:
    """What `auto` means: on a resume what it meant at the start, else what this machine has."""
    if settings.perceptual == "auto" and RunDir.is_run(folder.root):
        return str(json.loads(folder.config.read_text())["settings"]["perceptual"])
    return resolve_perceptual(settings.perceptual, report)


def _cache_of(latents: Path, teacher: Teacher) -> LatentCache:
    cache = LatentCache(latents)
    made_with = cache.manifest.get("teacher", {}).get("weights_sha256")
    if made_with != teacher.identity()["weights_sha256"]:
        raise SettingsError(f"the latents in {latents} were made by another teacher", "cache them again with this --teacher")
    return cache


def _check_crop(settings: DistillSettings, stream: ClipStream) -> None:
    if settings.crop is not None and (settings.crop[0] > stream.size[0] or settings.crop[1] > stream.size[1]):
        raise SettingsError(
            f"--crop {settings.crop[1]}x{settings.crop[0]} is larger than the clips ({stream.size[1]}x{stream.size[0]})",
            "lower --crop",
        )


def _complete_config(config: Mapping[str, Any], spec: ModelSpec, teacher: Teacher) -> dict[str, Any]:
    """The student's config with what it inherits from this teacher: latent channels, scaling and statistics."""
    inherited: dict[str, Any] = {"latent_channels": spec.teacher.latent_channels, "teacher": spec.name}
    for name in ("latents_mean", "latents_std"):
        value = dict(teacher.vae.named_buffers()).get(name)
        if isinstance(value, Tensor):
            inherited[name] = value.float().cpu().tolist()
    scaling = getattr(teacher.vae.config, "scaling_factor", None)
    if scaling is not None:
        inherited["scaling_factor"] = scaling
    return {**config, **inherited}


def _published_config(student: StudentDecoder) -> dict[str, Any]:
    return {name: value for name, value in student.config.items() if not name.startswith("_")}


def _check_ratios(student: StudentDecoder, spec: ModelSpec) -> None:
    made = (student.temporal_compression_ratio, student.spatial_compression_ratio)
    wanted = (spec.teacher.time_ratio, spec.teacher.space_ratio)
    if made != wanted:
        raise SettingsError(
            f"this student upsamples {made[0]}x in time and {made[1]}x in space, the teacher compresses {wanted[0]}x and {wanted[1]}x"
        )


def _check_finite(losses: Losses, step: int, index: int) -> None:
    for name, value in [*losses.parts.items(), ("loss", losses.total)]:
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value.item()} at step {step} (forward pass {index}); the weights are as they were before this step",
                "lower --lr, or use --dtype fp32; the same command goes on from the last checkpoint",
            )


def _check_gradients(state: TrainingState, norm: Tensor) -> None:
    if torch.isfinite(norm):
        return
    name = next(
        (name for name, p in state.named_parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()),
        "their norm",
    )
    raise NonFiniteError(
        f"the gradient of {name} is not finite at step {state.step + 1}; the weights are as they were before this step",
        "lower --lr, or use --dtype fp32; the same command goes on from the last checkpoint",
    )


def _check_scale(state: TrainingState) -> None:
    """An overflow lowers the scale and skips a step; a scale that only falls means that nothing is learnt any more."""
    if state.scaler.is_enabled() and state.scaler.get_scale() < MIN_LOSS_SCALE:
        raise NonFiniteError(
            f"fp16 gradients overflow at every step; the loss scale has fallen below {MIN_LOSS_SCALE} at step {state.step + 1}",
            "use --dtype bf16 or fp32; the same command goes on from the last checkpoint",
        )


@torch.no_grad()
def _draw_sample(trainer: Trainer, folder: RunDir) -> None:
    """samples/step_N.png: teacher | student (EMA) | source of one fixed clip."""
    batch = trainer.stream.batch_at(0, 0, 1)
    source = batch.video.to(trainer.device)
    mean = batch.mean.to(trainer.device) if batch.mean is not None else trainer.teacher.encode(source).mean
    student = ema_student(trainer)
    columns = {"teacher": trainer.teacher.decode(mean)[0], "student": student(mean.float())[0], "source": source[0]}
    write_strip(folder.samples / f"step_{trainer.state.step:07d}.png", columns)


def ema_student(trainer: Trainer) -> StudentDecoder:
    """A copy of the student with the averaged weights, in eval mode."""
    student = StudentDecoder.from_config(trainer.state.student.config)
    student.load_state_dict(trainer.state.ema)
    return student.to(trainer.device).eval()


def _write_model(folder: RunDir, trainer: Trainer, spec: ModelSpec, config: Mapping[str, Any]) -> None:
    """model/: the EMA student for from_pretrained, with a card that carries the teacher's licence."""
    student = ema_student(trainer)
    if not all(torch.isfinite(value).all() for value in student.state_dict().values()):
        raise CheckFailedError("the averaged weights are not finite; model/ was not written")
    with whole_folder(folder.model, overwrite=True) as temporary:
        student.cpu().save_pretrained(temporary)
        (temporary / "README.md").write_text(card(spec, trainer, config), encoding="utf-8")


def card(spec: ModelSpec, trainer: Trainer, config: Mapping[str, Any]) -> str:
    """The model card: what it is, of what, trained how, under whose licence."""
    settings, teacher = trainer.settings, spec.teacher
    note = f" Note: {teacher.licence_note}." if teacher.licence_note else ""
    origin = teacher.repo or ("embedded in turbovaed" if spec.embedded else "a local folder")
    height, width = settings.crop or trainer.stream.size
    return f"""---
license: other
license_name: {teacher.licence}
tags: [turbo-vaed, video, vae, decoder]
---
# Student decoder of {spec.title}

A Turbo-VAED decoder (arXiv:2508.09136), distilled with turbovaed {__version__} from the decoder of {teacher.class_name}
({origin}, weights sha256 `{config["teacher"]["weights_sha256"]}`).

- Parameters: {num_params(trainer.state.student):,}; the teacher's decoder has {decoder_params(trainer.teacher):,}.
- Latents (B, {teacher.latent_channels}, t, h, w) in the teacher's raw latent space; pixels in [-1, 1]; {teacher.time_ratio}x in time, {teacher.space_ratio}x in space.
- Trained for {trainer.state.step:,} steps of {settings.batch_size * settings.accumulation} clips, {trainer.stream.frames} frames of {width}x{height}{" (random crops)" if settings.crop else ""};
  L1 + {settings.perceptual_weight} {settings.perceptual} + {settings.feature_weight} feature alignment; AdamW {settings.lr}, EMA {settings.ema_decay}.

Licence: a student carries the **teacher's** licence: {teacher.licence}.{note}

    from turbovaed_cli import load_student
    student = load_student("path/to/this/folder")
    video = student.decode(latents).sample
"""
