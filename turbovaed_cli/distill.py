"""`distill`: teach a small decoder to do what a frozen teacher's decoder does. Source: arXiv:2508.09136."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from turbovaed_cli import __version__
from turbovaed_cli.devices import (
    auto_dtype,
    autocast,
    check_compiler,
    environment,
    forget_peak,
    peak_mb,
    resolve_dtype,
)
from turbovaed_cli.errors import CheckFailedError, InterruptedRunError, NonFiniteError, RunFolderError, SettingsError
from turbovaed_cli.html_report import ShownClip, model_facts, report_of_run, write_report
from turbovaed_cli.latents import WHOLE, Batch, Crop, LatentCache
from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.pair import Pair, load_pair
from turbovaed_cli.models.student import StudentDecoder, build_student, load_student, num_params
from turbovaed_cli.models.teacher import Teacher, decoder_params, hash_of_state, load_teacher
from turbovaed_cli.registry import ModelSpec
from turbovaed_cli.reporting import Reporter, WarningsOf, quiet
from turbovaed_cli.rundir import RunDir, metrics_row, whole_folder, write_manifest, write_whole
from turbovaed_cli.settings import DEFAULT_RECIPE, RECIPES, RESUMABLE_CHANGES, DistillSettings, Stage
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.data import DeviceCopies, Skipped, VideoClips, Waited, read_ahead, usable_videos
from turbovaed_cli.training.discriminator import adaptive_weight, discriminator_loss, generator_loss
from turbovaed_cli.training.losses import (
    PERCEPTUAL,
    Losses,
    PerceptualLoss,
    perceptual_loss,
    reconstruction_losses,
    resolve_perceptual,
)
from turbovaed_cli.training.ranks import Ranks, alone, join_ranks
from turbovaed_cli.training.samples import write_strip
from turbovaed_cli.training.schedule import crop_of, learning_rate, passes_from, position_at
from turbovaed_cli.training.start import NUM_CLIPS, STARTS, fit_start
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trackers import Trackers, check_trackers, trackers_of
from turbovaed_cli.video import to_model, to_uint8
from turbovaed_cli.weights import Consent, load_strictly, no_consent

MIN_LOSS_SCALE = 2.0**-8  # it starts at 2 ** 16
WORTH_SAYING = 0.1  # share of the steps' time
_MOST_NAMES = 4  # of clips in a message
FIT_PIXELS = 256  # a side of the clips that a fitted start looks at, at most


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

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Crop | None = None, part: slice = WHOLE) -> Batch:
        """`part` of batch number `index`, cut to `crop`."""
        ...

    def names_at(self, seed: int, index: int, batch_size: int, part: slice = WHOLE) -> list[str]:
        """The clips of that batch, for people."""
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
    settings: DistillSettings = RECIPES[DEFAULT_RECIPE],
    student_config: Mapping[str, Any] | None = None,
    init: str | None = None,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> DistillResult:
    """Distil `spec`'s teacher into a student, from videos (`data`, encoded on the way) or a latent cache (`latents`).

    `init` names a student (as load_student takes it) to start from instead of random weights.
    Calling it again with the same arguments resumes `run` where its newest checkpoint lies, bit for bit. Where several
    processes call it (training/ranks.py), `batch_size` is each one's, and the first alone reads and writes `run`. Raises
    SettingsError or RunFolderError before anything is written, NonFiniteError before an optimizer step that would spread
    NaN, InterruptedRunError after a checkpoint when a signal asked it to stop.
    """
    if (data is None) == (latents is None):
        raise SettingsError(
            "distill learns from videos or from cached latents: one of the two", "give --data DIR or --latents DIR"
        )
    _check_settings(settings)
    ranks = join_ranks(settings.device)
    if not ranks.is_first:
        report = WarningsOf(report, f"process {ranks.rank} of {ranks.count}")
    with ranks.together():
        return _distill(ranks, spec, RunDir(run), data, latents, settings, student_config, init, consent, report)


def _distill(
    ranks: Ranks,
    spec: ModelSpec,
    folder: RunDir,
    data: Path | None,
    latents: Path | None,
    settings: DistillSettings,
    student_config: Mapping[str, Any] | None,
    init: str | None,
    consent: Consent,
    report: Reporter,
) -> DistillResult:
    device = ranks.device
    if ranks.is_first:  # before anything is loaded or written
        check_trackers(settings.log)
    if settings.compile:
        check_compiler(device)
        report.note("--compile: the first step of every stage compiles, which takes from half a minute to several")
    teacher = ranks.first_of_each_machine_first(lambda: load_teacher(spec, device=device, consent=consent))
    settings = ranks.share(lambda: _settle(_over_all(settings, ranks), folder, device, report))
    dtype = resolve_dtype(settings.dtype)
    wanted = {stage.perceptual if stage.perceptual_weight else "none" for stage in settings.stages}
    perceptual = {name: perceptual_loss(name, device, dtype) for name in wanted | {"none"}}
    if latents is None:
        assert data is not None
        streams, skipped = _video_streams(data, spec, settings, ranks, report)
    else:
        cache = _cache_of(latents, teacher)
        _check_sizes(settings, cache)
        streams, skipped = [cache] * len(settings.stages), []
        ranks.check_same("the latent cache", cache.fingerprint)
    crops = [crop_of(stage, spec.teacher, stream.size) for stage, stream in zip(settings.stages, streams, strict=True)]

    torch.manual_seed(settings.seed)
    student = build_student(_complete_config(student_config or spec.student.config, spec, teacher))
    if init is not None and ranks.is_first:  # the others get every weight from it
        load_strictly(student, load_student(init, consent=consent).state_dict(), Path(init))
    _check_ratios(student, spec)
    aligned = any(stage.feature_weight for stage in settings.stages)
    heads = build_heads(student.to(device), teacher, spec.student.pairs if aligned else ())
    report.note(
        f"teacher {spec.name}: {decoder_params(teacher) / 1e6:.3f} M in its decoder; student {num_params(student) / 1e6:.3f} M; "
        f"on {device.type}, {settings.dtype}" + (f", {ranks.count} processes" if ranks.count > 1 else "")
    )
    state = TrainingState(student, heads, settings, device)
    ranks.check_same("the teacher", str(teacher.identity()))
    with folder.lock() if ranks.is_first else nullcontext():
        config = ranks.share(lambda: _begin(folder, ranks, spec, teacher, student, streams[0], settings, init))
        if latents is not None:
            teacher.drop_encoder()  # behind the snapshot, which tells the teacher by all its weights
        trainer = Trainer(teacher, state, streams, crops, perceptual, settings, device, dtype, ranks)
        resumed_from = ranks.share(lambda: _resume_or_start(folder, trainer, report, fits=init is None))
        if ranks.count > 1:
            state.take(ranks.broadcast(state.tables()))
        with trackers_of(settings.log if ranks.is_first else (), folder, config, state.step, report) as trackers:
            losses = _train(trainer, folder, trackers, report)
        if ranks.is_first:
            _write_model(folder, trainer, spec, config)
            if losses or not folder.report.exists():
                _write_report(folder, trainer, [_training_clip(trainer)] if settings.sample_every else [])
        damaged = {path: reason for found in ranks.gather(streams[0].damaged) for path, reason in found.items()}
    skipped += [Skipped(path, reason) for path, reason in damaged.items()]
    return DistillResult(
        folder.root, folder.model, state.step, resumed_from, losses, num_params(student), decoder_params(teacher), skipped=skipped
    )


def trained_pair(run: Path, spec: ModelSpec, ranks: Ranks) -> Pair:
    """The student of a finished run and its teacher, on every rank; the first alone needs the run folder."""
    pair = load_pair(str(run), device=ranks.device) if ranks.is_first else None
    config = ranks.share(lambda: pair and dict(pair.student.config))
    if pair is None:
        student = nn.Module.to(StudentDecoder.from_config(config), ranks.device).eval()
        pair = Pair(student, load_teacher(spec, device=ranks.device), spec, str(run), None)
    if ranks.count > 1:
        pair.student.load_state_dict(ranks.broadcast({"student": pair.student.state_dict()})["student"])
    return pair


def _over_all(settings: DistillSettings, ranks: Ranks) -> DistillSettings:
    """The settings with the clips of a forward pass on all ranks, as config.json has them, where those of one were given."""
    return replace(settings, stages=tuple(replace(stage, batch_size=stage.batch_size * ranks.count) for stage in settings.stages))


def _begin(
    folder: RunDir,
    ranks: Ranks,
    spec: ModelSpec,
    teacher: Teacher,
    student: StudentDecoder,
    stream: ClipStream,
    settings: DistillSettings,
    init: str | None,
) -> dict[str, Any]:
    """Record what this run is, or check that it is the same run, and clear away what a killed one left; returns config.json."""
    config = {
        "command": "distill",
        "settings": asdict(settings),
        "ranks": ranks.count,
        "model": spec.name,
        "teacher": {
            **teacher.identity(),
            "where": str(spec.teacher.path.resolve()) if spec.teacher.path and not spec.embedded else spec.name,
        },
        "student_config": _published_config(student),
        "init_sha256": hash_of_state(student) if init is not None else None,
        "data_fingerprint": stream.fingerprint,
    }
    _check_finished_stages(folder, settings)
    _check_clips_per_pass(folder, settings, ranks)
    folder.snapshot(config, environment(), RESUMABLE_CHANGES)
    folder.clean_leftovers()
    return config


def _resume_or_start(folder: RunDir, trainer: "Trainer", report: Reporter, *, fits: bool) -> int | None:
    """Go on from the newest checkpoint and return its step; without one, make the fresh student ready."""
    resumed_from = _resume(folder, trainer.state)
    if resumed_from:
        report.note(f"resumed from step {resumed_from}")
    elif trainer.settings.start == "fitted" and fits:
        trainer.fit_start(report)
    return resumed_from


@dataclass
class Trainer:
    """One optimizer step, in terms of everything it needs."""

    teacher: Teacher
    state: TrainingState
    streams: Sequence[ClipStream]  # of each stage
    crops: Sequence[Crop | None]  # of each stage
    perceptual: Mapping[str, PerceptualLoss | None]
    settings: DistillSettings
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks = field(default_factory=lambda: alone(torch.device("cpu")))

    def __post_init__(self) -> None:
        self.copies = DeviceCopies(self.device)
        features = self.state.student.features
        self.student_features = _compiled(features) if self.settings.compile else features

    def batch_at(self, which: tuple[int, int]) -> Batch:
        """The batch of (stage, number of the forward pass over the whole run), on the device, with its noise; from any thread.

        The posterior's noise depends on (seed, number of the forward pass) alone. Of several ranks each has its part of a
        batch that is the same however many they are.
        """
        index, number = which
        stage, seed = self.settings.stages[index], self.settings.seed
        part = self.ranks.part(stage.batch_size)
        batch = self.streams[index].batch_at(seed, number, stage.batch_size, self.crops[index], part)
        if stage.posterior == "sample":
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
            shape = (stage.batch_size, *self.latent_shape(batch)[1:])
            batch = replace(batch, noise=torch.randn(shape, generator=generator)[part])
        return self.copies.send(batch)

    def names_at(self, which: tuple[int, int]) -> str:
        """The clips of that batch, for people."""
        index, number = which
        batch_size = self.settings.stages[index].batch_size
        names = self.streams[index].names_at(self.settings.seed, number, batch_size, self.ranks.part(batch_size))
        return ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")

    def latent_shape(self, batch: Batch) -> torch.Size:
        """(B, C, t, h, w) of a batch's latents, encoded already or not."""
        if batch.mean is not None:
            return batch.mean.shape
        clips, _, frames, height, width = batch.video.shape
        spec = self.teacher.spec
        return torch.Size(
            (clips, spec.latent_channels, spec.latent_frames(frames), height // spec.space_ratio, width // spec.space_ratio)
        )

    def fit_start(self, report: Reporter) -> None:
        """Fit the fresh student to the first clips, in fp32; its average starts there too."""
        clips = []
        side = Stage("", crop_latents=max(FIT_PIXELS // self.teacher.spec.space_ratio, 2))
        crop = crop_of(side, self.teacher.spec, self.streams[0].size)
        report.note("fitting the start to some clips")
        for number in range(NUM_CLIPS):
            batch = self.streams[0].batch_at(self.settings.seed, number, 1, crop)
            source = batch.video.to(self.device)
            mean = batch.mean.to(self.device) if batch.mean is not None else self.teacher.encode(source).mean.float()
            clips.append((mean, source))
        fit_start(self.state.student, clips)
        self.state.forget_average()

    def learn(self, batches: Iterator[tuple[tuple[int, int], Batch]]) -> dict[str, float]:
        """Take the next batches, make one optimizer step of the stage that is on, and return the mean losses."""
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
        self.ranks.mean_gradients(state.stepping_parameters(stage))  # before the scaler looks at them: all see an overflow
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm(p.grad for p in state.named_parameters.values() if p.grad is not None)
        if not state.scaler.is_enabled():  # the scaler skips a step whose gradients overflowed, by design
            _check_gradients(state, norm, "; ".join(map(self.names_at, passes)))
        if settings.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(state.named_parameters.values(), settings.clip_grad_norm, norm)
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
        """The mean losses of a step's forward passes over all ranks, brought over at once: the device waits for no figure.

        Raises NonFiniteError naming the first that is none, and the clips it is of.
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
            "look at those clips, lower --lr, or use --dtype fp32; the same command goes on from the last checkpoint",
        )

    def losses(self, batch: Batch, stage: Stage) -> Losses:
        """The losses of one batch on the device."""
        source = batch.video
        pairs = self.state.heads.pairs if stage.feature_weight else ()
        taps, blocks = [pair.teacher_tap for pair in pairs], [pair.student_block for pair in pairs]
        features: dict[str, Tensor] = {}
        taught = None
        latents = self.latents_of(batch)  # in fp32: rounded, they are other latents
        with autocast(self.device, self.dtype):
            decoded, learnt = self.student_features(latents, blocks)
            if stage.teacher_weight:
                with torch.autocast(self.device.type, enabled=False):  # as are pixels to learn from
                    taught, known = self.teacher.decode_with_features(latents, taps)
                features = self.state.heads(learnt, known) if taps else {}
            elif taps:
                features = self.state.heads(learnt, self.teacher.features(latents, taps))
        assert decoded is not None
        decoded, source = batch.counted(decoded), batch.counted(source)
        taught = None if taught is None else batch.counted(taught)
        losses = reconstruction_losses(decoded, source, stage, features, self.perceptual_of(stage), taught)
        return self.judged(losses, decoded, source, stage) if stage.adversarial_weight else losses

    def perceptual_of(self, stage: Stage) -> PerceptualLoss | None:
        """The perceptual distance of a stage, None where it has no weight."""
        return self.perceptual[stage.perceptual if stage.perceptual_weight else "none"]

    def judged(self, losses: Losses, decoded: Tensor, source: Tensor, stage: Stage) -> Losses:
        """The losses with the adversarial one, and the discriminator's own on the same batch."""
        discriminator = self.state.discriminator
        assert discriminator is not None
        with autocast(self.device, self.dtype):
            discriminator.requires_grad_(False)  # its gradients come from its own loss alone
            adversarial = generator_loss(discriminator(decoded))
            discriminator.requires_grad_(True)
            judgement = discriminator_loss(discriminator(source), discriminator(decoded.detach()))
        weight = adaptive_weight(losses.total, adversarial, self.state.student.conv_out.conv.weight, self.ranks.mean)
        parts = {"adversarial": adversarial, "adaptive_weight": weight, "discriminator": judgement}
        total = losses.total + stage.adversarial_weight * weight * adversarial
        return Losses(total, {**losses.parts, **parts}, judgement)

    def data_of(self, index: int) -> dict[str, int]:
        """What one optimizer step of a stage sees: clips, and their frames, height and width in pixels."""
        stage, stream = self.settings.stages[index], self.streams[index]
        crop = self.crops[index]
        height, width = stream.size if crop is None else crop.pixels
        return {"clips": stage.batch_size * stage.accumulation, "frames": stream.frames, "height": height, "width": width}

    def latents_of(self, batch: Batch) -> Tensor:
        """Latents (B, C, t, h, w) to decode: sampled from the posterior where the batch has noise, else its mean."""
        mean, std = batch.mean, batch.std
        if mean is None or std is None:
            posterior = self.teacher.encode(batch.video)
            mean, std = posterior.mean.float(), posterior.std.float()
        return mean if batch.noise is None else mean + std * batch.noise


def _train(trainer: Trainer, folder: RunDir, trackers: Trackers, report: Reporter) -> dict[str, float]:
    """Run the steps that are left, logging and saving; returns the last step's losses."""
    settings, state, ranks = trainer.settings, trainer.state, trainer.ranks
    losses: dict[str, float] = {}
    first, spent = state.step, 0.0

    def say_stalled(which: tuple[int, int], seconds: float) -> None:
        text = f"no batch for {seconds:.0f} s; being read: {trainer.names_at(which)}"
        report.note(text, warning=True)
        if ranks.is_first:
            _log(folder, f"warning: {text}")

    batches = Waited(
        read_ahead(
            trainer.batch_at,
            passes_from(settings.stages, first),
            settings.workers,
            patience_s=settings.stall_seconds,
            stalled=say_stalled,
        )
    )
    with _stop_requests() as stop:
        for step in report.track(range(first, settings.steps), "distilling", total=settings.steps, start=first):
            at = position_at(settings.stages, step)
            if ranks.is_first and step in (first, at.first_step):
                _announce(trainer, at.index, at.first_step, folder, report)
            forget_peak(trainer.device)
            started, waited = time.perf_counter(), batches.seconds
            losses = trainer.learn(batches)
            seconds = time.perf_counter() - started
            spent += seconds
            last = state.step == settings.steps
            waited, peak = ranks.most([batches.seconds - waited, peak_mb(trainer.device) or 0.0])
            if ranks.is_first:
                clips_per_s = at.stage.batch_size * at.stage.accumulation / seconds
                figures = {"seconds": seconds, "clips_per_s": clips_per_s, "data_seconds": waited, "peak_mb": peak or None}
                _log_step(trainer, at.index, losses, figures, folder)
                trackers.log(state.step, {**losses, **figures})
                report.note(loss=losses["loss"], l1=losses["l1"], clips_per_s=clips_per_s)
                if settings.sample_every and (state.step % settings.sample_every == 0 or last):
                    _draw_sample(trainer, folder)
            # Read once: what comes later belongs to the next step.
            asked_to_stop = int(ranks.most([max(list(stop), default=0)])[0])
            if state.step % settings.save_every == 0 or last or asked_to_stop:
                if ranks.count > 1:
                    ranks.check_same(f"the state behind step {state.step}", state.digest())
                if ranks.is_first:
                    folder.save_checkpoint(state.step, state.save, settings.keep_checkpoints)
                    _write_report(folder, trainer)
                    _log(folder, f"saved step {state.step}, loss {losses['loss']:.5f}")
            if asked_to_stop and not last:
                hint = "the same command goes on from there"
                raise InterruptedRunError(f"stopped after step {state.step} of {settings.steps}", asked_to_stop, hint)
    if waits := _waits_in_words(batches.seconds, spent, settings.workers):
        report.note(waits)
    return losses


def _log_step(
    trainer: Trainer, index: int, losses: Mapping[str, float], figures: Mapping[str, float | None], folder: RunDir
) -> None:
    """One line of metrics.jsonl."""
    finite = {name: value if math.isfinite(value) else None for name, value in losses.items()}  # JSON knows no infinity
    stage = trainer.settings.stages[index].name
    line = {"step": trainer.state.step, "stage": stage, **finite, "data": trainer.data_of(index), **figures}
    _append(folder.metrics, json.dumps(line))


def _waits_in_words(waited_s: float, spent_s: float, workers: int) -> str:
    """What to say of steps that waited for data; nothing where they hardly did."""
    if waited_s <= WORTH_SAYING * spent_s:
        return ""
    share = f"steps waited {waited_s / spent_s:.0%} of their time for data"
    return f"{share}; --workers {max(2 * workers, 2)} reads more ahead, and cache-latents decodes no video while it trains"


def _announce(trainer: Trainer, index: int, first_step: int, folder: RunDir, report: Reporter) -> None:
    """Say what a stage does, to train.log and to whoever watches."""
    stage, data = trainer.settings.stages[index], trainer.data_of(index)
    text = (
        f"stage {stage.name} ({index + 1} of {len(trainer.settings.stages)}): steps {first_step + 1} to {first_step + stage.steps}, "
        f"{data['clips']} clips of {data['frames']} frames {data['width']}x{data['height']}, {losses_in_words(stage)}, lr {stage.lr} {stage.lr_schedule}"
    )
    if stage.crop_latents and min(data["height"], data["width"]) < stage.crop_latents * trainer.teacher.spec.space_ratio:
        text += f" (whole clips: {stage.crop_latents} latents are more)"
    _log(folder, text)
    report.note(text)


def losses_in_words(stage: Stage) -> str:
    """What a stage minimises: "L1 + 1.0 ssim + 1.0 features"."""
    weighted = {
        stage.perceptual: stage.perceptual_weight if stage.perceptual != "none" else 0,
        "features": stage.feature_weight,
        "teacher L1": stage.teacher_weight,
        "adversarial": stage.adversarial_weight,
    }
    return " + ".join(["L1", *(f"{weight} {name}" for name, weight in weighted.items() if weight)])


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
        lines = [line for line in folder.metrics_lines() if (row := metrics_row(line)) is not None and row["step"] <= state.step]
        write_whole(
            folder.metrics, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        )
    return state.step if path is not None else None


def _log(folder: RunDir, text: str) -> None:
    _append(folder.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _check_settings(settings: DistillSettings) -> None:
    if not settings.stages:
        raise SettingsError("the schedule has no stage", "give at least one")
    names = [stage.name for stage in settings.stages]
    if len(set(names)) < len(names):
        raise SettingsError(f"two stages are called {max(names, key=names.count)}", "give each its own name")
    if not 0 < settings.stall_seconds < math.inf:
        raise SettingsError(f"stall_seconds is {settings.stall_seconds}; it must be above 0")
    _check_counts(settings, ("frames", "stride", "save_every", "keep_checkpoints", "discriminator_channels"))
    if settings.discriminator_channels % 4:
        raise SettingsError(f"discriminator_channels is {settings.discriminator_channels}; it must be a multiple of 4")
    if not 0 <= settings.ema_decay < 1:
        raise SettingsError(f"--ema-decay is {settings.ema_decay}; it must be at least 0 and below 1")
    _check_choices(settings, {"optimizer": ("adamw", "muon"), "start": STARTS})
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise SettingsError(f"betas are {settings.betas}; each must be at least 0 and below 1")
    _check_not_negative(settings, ("eps", "weight_decay", "clip_grad_norm", "discriminator_lr"))
    for stage in settings.stages:
        _check_counts(stage, ("steps", "batch_size", "accumulation"))
        weights = ("perceptual_weight", "feature_weight", "teacher_weight", "adversarial_weight")
        _check_not_negative(stage, ("lr", "lr_end", "warmup_steps", "crop_latents", "crop_margin", *weights))
        if stage.lr == 0:
            raise SettingsError(f"--lr is {stage.lr}; it must be above 0")
        choices = {"lr_schedule": ("constant", "cosine"), "posterior": ("sample", "mean"), "perceptual": PERCEPTUAL}
        _check_choices(stage, choices)


def _check_counts(settings: object, names: Sequence[str]) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")


def _check_not_negative(settings: object, names: Sequence[str]) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:  # nor NaN
            raise SettingsError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 0")


def _check_choices(settings: object, choices: Mapping[str, Sequence[str]]) -> None:
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise SettingsError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} is unknown", f"one of: {', '.join(allowed)}"
            )


def _settle(settings: DistillSettings, folder: RunDir, device: torch.device, report: Reporter) -> DistillSettings:
    """Settings without `auto`: on a resume what it meant at the start, else what this machine has, said out loud."""
    before = folder.read_config()["settings"] if RunDir.is_run(folder.root) else {}
    dtype = settings.dtype
    if dtype == "auto":
        dtype = before.get("dtype") or auto_dtype(device, report)
    known = [stage.get("perceptual") or "none" for stage in before.get("stages") or []]
    if not known and any(stage.perceptual == "auto" and stage.perceptual_weight for stage in settings.stages):
        known = [resolve_perceptual("auto", report)] * len(settings.stages)
    stages = [
        replace(stage, perceptual=known[index] if index < len(known) else "none") if stage.perceptual == "auto" else stage
        for index, stage in enumerate(settings.stages)
    ]
    return replace(settings, stages=tuple(stages), dtype=dtype)


def _check_finished_stages(folder: RunDir, settings: DistillSettings) -> None:
    """Steps may change on a resume, but not so that the checkpoint comes to lie elsewhere in the schedule."""
    done = folder.steps()[-1] if folder.steps() else 0
    if not done or not folder.config.exists():
        return
    lengths = [stage["steps"] for stage in folder.read_config()["settings"].get("stages") or []]
    if len(lengths) != len(settings.stages):
        return  # the snapshot names it
    before = tuple(replace(stage, steps=steps) for stage, steps in zip(settings.stages, lengths, strict=True))
    old, new = position_at(before, done), position_at(settings.stages, done)
    if (old.index, old.first_step) != (new.index, new.first_step) or settings.steps < done:
        wanted = ", ".join(f"{stage.name} {stage.steps}" for stage in settings.stages)
        raise RunFolderError(
            f"{folder.root} is at step {done}, in stage {old.stage.name} of {', '.join(map(str, lengths))} steps; not in {wanted}",
            "repeat the first command to resume, or give another --run",
        )


def _check_clips_per_pass(folder: RunDir, settings: DistillSettings, ranks: Ranks) -> None:
    """A run goes on with other ranks exactly where a forward pass has the same clips on all of them together."""
    before = folder.read_config() if folder.config.exists() else {}
    clips = [stage["batch_size"] for stage in before.get("settings", {}).get("stages", [])]
    now = [stage.batch_size for stage in settings.stages]
    if len(clips) != len(now) or clips == now or before.get("ranks", 1) == ranks.count:
        return  # else the snapshot names it
    if any(count % ranks.count for count in clips):
        hint = f"start it on a number of processes that divides {math.gcd(*clips)}"
    elif len(set(clips)) == 1:
        hint = f"--batch-size {clips[0] // ranks.count} on {ranks.count} processes goes on with it"
    else:
        shares = ", ".join(str(count // ranks.count) for count in clips)
        hint = f"on {ranks.count} processes, give stages with batch_size {shares} (--recipe FILE.toml)"
    raise RunFolderError(
        f"{folder.root} was started with {_in_words(clips)} clips in a forward pass over {before.get('ranks', 1)} processes; "
        f"now {_in_words(now)} over {ranks.count}",
        hint,
    )


def _in_words(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))


def _check_sizes(settings: DistillSettings, cache: LatentCache) -> None:
    """Cached clips have the size they were cached at."""
    for stage in settings.stages:
        if stage.size not in (None, cache.size):
            height, width = cache.size
            raise SettingsError(
                f"stage {stage.name} wants clips of {stage.size[1]}x{stage.size[0]}; those in the cache are {width}x{height}",
                "cache larger clips (cache-latents --size), or give --data",
            )


def _video_streams(
    data: Path, spec: ModelSpec, settings: DistillSettings, ranks: Ranks, report: Reporter
) -> tuple[list[ClipStream], list[Skipped]]:
    """One stream per stage, over the same videos, at the stage's size."""
    sizes = [stage.size or settings.size for stage in settings.stages]
    spec.teacher.check_frames(settings.frames)
    for size in sizes:
        spec.teacher.check_size(*size)
    videos, skipped = ranks.share(lambda: usable_videos(data, (settings.frames - 1) * settings.stride + 1, report))
    damaged: dict[str, str] = {}
    return [VideoClips(videos, settings.frames, size, settings.stride, damaged) for size in sizes], skipped


def _cache_of(latents: Path, teacher: Teacher) -> LatentCache:
    cache = LatentCache(latents)
    made_with = cache.manifest.get("teacher", {}).get("weights_sha256")
    if made_with != teacher.identity()["weights_sha256"]:
        raise SettingsError(f"the latents in {latents} were made by another teacher", "cache them again with this --teacher")
    return cache


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


def _compiled(features: Callable[..., Any]) -> Callable[..., Any]:
    """The student's forward pass compiled; the function, not the module: state dicts and checkpoints keep their keys."""
    functorch_config.donated_buffer = False  # the adaptive weight goes back through the graph more than once
    return torch.compile(features, dynamic=False)


def _check_gradients(state: TrainingState, norm: Tensor, clips: str) -> None:
    judging = [p.grad for p in state.discriminator_parameters.values() if p.grad is not None]
    if torch.isfinite(norm) and all(torch.isfinite(gradient).all() for gradient in judging):
        return
    parameters = state.named_parameters | {f"discriminator {name}": p for name, p in state.discriminator_parameters.items()}
    name = next((name for name, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()), "their norm")
    raise NonFiniteError(
        f"the gradient of {name} is not finite at step {state.step + 1}, of {clips}; the weights are as they were before this step",
        "look at those clips, lower --lr, or use --dtype fp32; the same command goes on from the last checkpoint",
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
    write_strip(folder.samples / f"step_{trainer.state.step:07d}.png", _sample_videos(trainer))


def _sample_videos(trainer: Trainer) -> dict[str, Tensor]:
    """The first clip of the data as teacher and student (EMA) decode it, and its source: each (3, T, H, W) in [-1, 1]."""
    batch = trainer.streams[0].batch_at(0, 0, 1)
    source = batch.video.to(trainer.device)
    mean = batch.mean.to(trainer.device) if batch.mean is not None else trainer.teacher.encode(source).mean
    student = ema_student(trainer)
    return {"teacher": trainer.teacher.decode(mean)[0], "student": student(mean.float())[0], "source": source[0]}


def _write_report(folder: RunDir, trainer: Trainer, clips: Sequence[ShownClip] = ()) -> None:
    """report.html: the curves so far, and clips where there are some."""
    facts = model_facts(trainer.state.student, trainer.teacher)
    note = "One clip of the training data, which says nothing about others." if clips else ""
    write_report(folder.report, report_of_run(folder, facts, clips=clips, clips_note=note))


def _training_clip(trainer: Trainer) -> ShownClip:
    """What sample strips show, as a clip of the report."""
    frames = {name: to_uint8(video) for name, video in _sample_videos(trainer).items()}
    scores = {name: {"psnr": psnr(to_model(frames[name]), to_model(frames["source"]))} for name in ("teacher", "student")}
    return ShownClip(
        "the first clip of the data", "training clip", frames["source"], frames["teacher"], frames["student"], scores=scores
    )


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
        write_manifest(temporary)  # without the card, which people may edit
        (temporary / "README.md").write_text(card(spec, trainer, config), encoding="utf-8")


def card(spec: ModelSpec, trainer: Trainer, config: Mapping[str, Any]) -> str:
    """The model card: what it is, of what, trained how, under whose licence."""
    settings, teacher = trainer.settings, spec.teacher
    note = f" Note: {teacher.licence_note}." if teacher.licence_note else ""
    origin = teacher.repo or ("embedded in turbovaed" if spec.embedded else "a local folder")
    schedule = "\n".join(_stage_in_words(trainer, index) for index in range(len(settings.stages)))
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
- Trained by recipe `{settings.recipe}` for {trainer.state.step:,} steps; {settings.optimizer}, EMA {settings.ema_decay}, {settings.dtype}:

{schedule}

Licence: a student carries the **teacher's** licence: {teacher.licence}.{note}

    from turbovaed_cli import load_student
    student = load_student("path/to/this/folder")
    video = student.decode(latents).sample
"""


def _stage_in_words(trainer: Trainer, index: int) -> str:
    stage, data = trainer.settings.stages[index], trainer.data_of(index)
    return (
        f"  {index + 1}. {stage.name}: {stage.steps:,} steps of {data['clips']} clips, {data['frames']} frames of "
        f"{data['width']}x{data['height']}; {losses_in_words(stage)}; lr {stage.lr} {stage.lr_schedule}"
    )
