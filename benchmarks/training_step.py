"""A distillation step beside the work of the published loop: steps per second, FLOPs, peak memory, and what a step is made of.

    python benchmarks/training_step.py [ltx hunyuan cogvideox video-dc-ae] [--frames 17] [--size 256] [--channels-divisor 4]
        [--device cpu] [--perceptual lpips|ssim|none] [--rounds 5] [--threads 2] [--compile] [--json]
    python benchmarks/training_step.py hunyuan --only flops

The published loop encodes, decodes with the whole teacher for its features, runs the student, and minimises L1, LPIPS (VGG) and
features, in fp32. Ours is `distill`'s own step with the same losses: uncached (from pixels) and cached (from latents), in fp32
and in what `--dtype auto` takes here; the last one recomputes activations (--gradient-checkpointing). All ways take turns in
one process, on one clip; ratios are medians, with the smallest and the largest. Weights are random, LPIPS's too. With one
thread, seconds are CPU seconds, which nothing else that runs on the machine adds to.
FLOPs are counted at full size on torch's meta device. For time and memory on a CPU every network is narrower by
`--channels-divisor`, LPIPS too. Memory is measured in a process per way, round by round; on CUDA, whose allocator counts the same
every time, once and in this process. A way that does not fit in memory is named, and the others are measured.
"""

import argparse
import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from turbovaed_cli.latents.batch import Batch
from turbovaed_cli.latents.cache import ClipSource, LatentCache
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.machine.devices import (
    auto_dtype,
    autocast,
    empty_cache,
    forget_peak,
    is_out_of_memory,
    out_of_memory_in_words,
    peak_mb,
    resolve_device,
    resolve_dtype,
    wait_for,
)
from turbovaed_cli.machine.threads import Waited, read_ahead
from turbovaed_cli.metrics.lpips import Lpips
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.models.video_dc_ae import VideoDCAE
from turbovaed_cli.registry.backbones import TRUNKS, Trunk
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.batches import VideoClips
from turbovaed_cli.training.losses import Losses, PerceptualLoss, perceptual_loss, reconstruction_losses
from turbovaed_cli.training.schedule import passes_from
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video import VideoWriter, probe, to_model

FULL_SIZE = (17, 256)  # frames and pixels a side that FLOPs are counted for


class PublishedLoop(Trainer):
    """The published loop's work: whatever the batch has, it is encoded, and the pixels of a whole teacher decode are thrown away."""

    def losses(self, batch: Batch, stage: Stage) -> Losses:
        pairs = self.state.heads.pairs
        latents = self.latents_of(Batch(batch.video, noise=batch.noise))
        _, known = self.teacher.decode_with_features(latents, [pair.teacher_tap for pair in pairs])
        decoded, learnt = self.student_features(latents, [pair.student_block for pair in pairs])
        features = self.state.heads(learnt, known)
        perceptual = self.perceptual_of(stage)
        whole = perceptual and replace(perceptual, pixels_at_once=batch.video.numel())  # all frames at once
        return reconstruction_losses(decoded, batch.video, stage, features, whole)


# --- networks -----------------------------------------------------------------------------------------------------


def narrower(value: Any, divisor: int) -> tuple[int, ...]:
    return tuple(max(int(channels) // divisor, 1) for channels in value)


def random_teacher(spec: ModelSpec, divisor: int) -> Teacher:
    """Of full size over `divisor`, in channels."""
    named: Any = VideoDCAE if spec.teacher.class_name == "VideoDCAE" else getattr(diffusers, spec.teacher.class_name)
    whole = {name: parameter.default for name, parameter in inspect.signature(named.__init__).parameters.items()}
    widths = [name for name in whole if name.endswith("block_out_channels") or name == "width_list"]
    return Teacher(named(**{name: narrower(whole[name], divisor) for name in widths}), spec.teacher)


def random_lpips(divisor: int) -> Lpips:
    """LPIPS over a VGG16 of random weights: what it costs, not what it says."""
    vgg = TRUNKS["vgg"]
    layers = [(i, a if a == 3 else a // divisor, b // divisor, *rest) for i, a, b, *rest in vgg.convolutions]
    trunk = Trunk(**{**vars(vgg), "convolutions": tuple(layers)})
    state = {}
    for index, inputs, outputs, kernel, *_ in trunk.convolutions:
        convolution = nn.Conv2d(inputs, outputs, kernel)
        state |= {f"features.{index}.weight": convolution.weight.detach(), f"features.{index}.bias": convolution.bias.detach()}
        # One channel is always on: the length of a place without any would have no gradient.
        state[f"features.{index}.weight"][0], state[f"features.{index}.bias"][0] = 0, 1
    taps = [outputs for index, _, outputs, *_ in trunk.convolutions if index in trunk.taps]
    linear = {f"lin{i}.model.1.weight": torch.rand(1, channels, 1, 1) for i, channels in enumerate(taps)}
    return Lpips(trunk, state, linear)


def perceptual_of(name: str, divisor: int, device: torch.device, dtype: torch.dtype = torch.float32) -> PerceptualLoss | None:
    with mock.patch("turbovaed_cli.training.losses.load_lpips", lambda _: random_lpips(divisor)):
        return perceptual_loss(name, device, dtype)


def clip_of(spec: ModelSpec, frames: int, size: int) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1]: noise."""
    video = torch.rand(1, 3, spec.teacher.frames.at_least(frames), size, size, generator=torch.Generator().manual_seed(0))
    return video * 2 - 1


# --- FLOPs --------------------------------------------------------------------------------------------------------


def backward_flops(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Of a convolution: as many as forward for each gradient asked for. torch 2.13 counts grouped ones as if they were not."""
    transposed, wanted = rest[4], rest[7]
    forward = conv_flop_count(grad if transposed else x, weight, x if transposed else grad, transposed=transposed)
    return int(forward * sum(wanted[:2]))


def counted(call: Callable[[], object]) -> float:
    """GFLOP."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward_flops}) as counter:
        call()
    return counter.get_total_flops() / 1e9


def flops_of(spec: ModelSpec, perceptual: str) -> dict[str, float]:
    """GFLOP of a forward and a backward pass on one full-size clip, and of its parts."""
    frames, size = FULL_SIZE
    device = torch.device("meta")
    with device:
        teacher, student = random_teacher(spec, 1), build_student(spec.student.config)
        heads = build_heads(student, teacher, spec.student.pairs)
        loss = perceptual_of(perceptual, 1, device)
    stage = Stage("step", accumulation=1, perceptual=perceptual)
    settings = DistillSettings((stage,), dtype="fp32")
    state = cast(TrainingState, SimpleNamespace(student=student, heads=heads))
    video = clip_of(spec, frames, size).to(device)
    posterior, taps = teacher.encode(video), [pair.teacher_tap for pair in spec.student.pairs]
    mean = posterior.mean
    found = {
        "encode": counted(lambda: teacher.encode(video)),
        "teacher decode": counted(lambda: teacher.decode_by_class(mean)),
        "teacher features": counted(lambda: teacher.features(mean, taps)),
        "student": counted(lambda: student(mean)),
        perceptual: counted(lambda: loss(video, video)) if loss else 0.0,
    }
    for way, kind, cached in (("published", PublishedLoop, False), ("uncached", Trainer, False), ("cached", Trainer, True)):
        trainer = kind(teacher, state, [], [], {perceptual: loss}, settings, device, torch.float32)
        batch = Batch(video, mean, posterior.std) if cached else Batch(video)
        found[way] = counted(lambda trainer=trainer, batch=batch: trainer.losses(batch, stage).total.backward())
    return found


# --- time and memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of making a step."""

    loop: type[Trainer]
    cached: bool  # from latents, not from pixels
    dtype: str
    saves_memory: bool = False  # gradient checkpointing
    compiled: bool = False


def ways_of(options: argparse.Namespace) -> dict[str, Way]:
    best = auto_dtype(resolve_device(options.device))
    ways = {"published, fp32": Way(PublishedLoop, False, "fp32")}
    for dtype in dict.fromkeys(("fp32", best)):
        ways |= {f"uncached, {dtype}": Way(Trainer, False, dtype), f"cached, {dtype}": Way(Trainer, True, dtype)}
    ways[f"cached, {best}, gradient checkpointing"] = Way(Trainer, True, best, saves_memory=True)
    if options.compile:
        ways[f"cached, {best}, compiled"] = Way(Trainer, True, best, compiled=True)
    return ways


class Noise:
    """Stands for the clips of a trainer that is handed its batches: they have a name."""

    def names_at(self, *_: Any) -> list[str]:
        return ["noise"]


def trainer_of(spec: ModelSpec, way: Way, options: argparse.Namespace, teacher: Teacher) -> Trainer:
    device, precision = resolve_device(options.device), resolve_dtype(way.dtype)
    stage = Stage("step", steps=10**6, accumulation=1, lr=1e-5, perceptual=options.perceptual)
    stage = replace(stage, gradient_checkpointing=way.saves_memory)
    settings = DistillSettings((stage,), dtype=way.dtype, device=options.device, compile=way.compiled)
    torch.manual_seed(0)
    widths = narrower(spec.student.config["decoder_block_out_channels"], options.channels_divisor)
    student = build_student({**spec.student.config, "decoder_block_out_channels": widths}).to(device)
    state = TrainingState(student, build_heads(student, teacher, spec.student.pairs), settings, device)
    perceptual = {options.perceptual: perceptual_of(options.perceptual, options.channels_divisor, device, precision)}
    return way.loop(teacher, state, [Noise()], [None], perceptual, settings, device, precision)


def teacher_of(spec: ModelSpec, options: argparse.Namespace) -> Teacher:
    torch.manual_seed(0)
    return random_teacher(spec, options.channels_divisor).to(resolve_device(options.device))


def batch_of(spec: ModelSpec, teacher: Teacher, options: argparse.Namespace, *, cached: bool) -> Batch:
    video = clip_of(spec, options.frames, options.size).to(teacher.device)
    posterior = teacher.encode(video)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0)).to(teacher.device)
    return Batch(video, posterior.mean, posterior.std, noise=noise) if cached else Batch(video, noise=noise)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait_for(device)
    began = clock()
    call()
    wait_for(device)
    return clock() - began


def timed(spec: ModelSpec, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a whole optimizer step, way by way in turns; a first round warms up."""
    teacher = teacher_of(spec, options)
    ways = ways_of(options)
    trainers = {name: trainer_of(spec, way, options, teacher) for name, way in ways.items()}
    batches = {cached: batch_of(spec, teacher, options, cached=cached) for cached in (False, True)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name in list(trainers):
            trainer, batch = trainers[name], iter([((0, turn), batches[ways[name].cached])])
            took = if_it_fits(
                spec, name, options, lambda trainer=trainer, batch=batch: seconds_of(lambda: trainer.learn(batch), teacher.device)
            )
            if took is None:
                del trainers[name], seconds[name], trainer
                empty_cache(teacher.device)
            elif turn:
                seconds[name].append(took)
            elif ways[name].compiled:
                say(options, f"{spec.name} {name}: its first step took {took:.0f} s")
    return seconds


def if_it_fits(spec: ModelSpec, way: str, options: argparse.Namespace, measure: Callable[[], float]) -> float | None:
    """What `measure` gives; None after a line that names the way, if it runs out of memory."""
    try:
        return measure()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(options, f"{spec.name} {way}: not measured: {out_of_memory_in_words(error)}")
        return None


def peak_of(spec: ModelSpec, name: str, options: argparse.Namespace) -> float:
    """Peak MB of a step of the way `name` in this process, after a step that made the optimizer's state."""
    teacher = teacher_of(spec, options)
    way = ways_of(options)[name]
    trainer = trainer_of(spec, way, options, teacher)
    batch = batch_of(spec, teacher, options, cached=way.cached)
    if way.cached:
        teacher.drop_encoder()
    trainer.learn(iter([((0, 0), batch)]))
    forget_peak(teacher.device)
    trainer.learn(iter([((0, 1), batch)]))
    return peak_mb(teacher.device) or 0.0


def in_a_child(name: str, way: str) -> float:
    words = [sys.executable, __file__, *sys.argv[1:]]
    done = subprocess.run([*words, "--one", way, "--of", name], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["peak_mb"])


# --- what a step is made of ---------------------------------------------------------------------------------------


def parts_of(spec: ModelSpec, options: argparse.Namespace, *, cached: bool) -> dict[str, float]:
    """Median seconds of the parts of our step, each alone, in `--dtype auto`."""
    teacher = teacher_of(spec, options)
    dtype = auto_dtype(teacher.device)
    trainer = trainer_of(spec, Way(Trainer, cached, dtype), options, teacher)
    batch, stage, state = batch_of(spec, teacher, options, cached=cached), trainer.settings.stages[0], trainer.state
    pairs, device = state.heads.pairs, teacher.device
    taps, blocks = [pair.teacher_tap for pair in pairs], [pair.student_block for pair in pairs]
    kept: dict[str, Any] = {}

    def features() -> None:
        with autocast(device, trainer.dtype):
            kept["known"] = teacher.features(kept["latents"], taps)

    def student() -> None:
        with autocast(device, trainer.dtype):
            kept["decoded"], kept["learnt"] = trainer.student_features(kept["latents"], blocks)

    def losses() -> None:
        with autocast(device, trainer.dtype):
            aligned = state.heads(kept["learnt"], kept["known"])
        kept["total"] = reconstruction_losses(kept["decoded"], batch.video, stage, aligned, trainer.perceptual_of(stage)).total

    def backward() -> None:
        kept["total"].backward()

    def optimizer() -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = 1e-5
        state.optimizer.step()
        state.update_ema(0.999)
        state.optimizer.zero_grad(set_to_none=True)

    steps: dict[str, Callable[[], object]] = {
        "latents" if cached else "encode": lambda: kept.update(latents=trainer.latents_of(batch)),
        "teacher features": features,
        "student forward": student,
        "losses": losses,
        "backward": backward,
        "optimizer and average": optimizer,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        for name, call in steps.items():
            took = seconds_of(call, device)
            if turn:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def waiting(spec: ModelSpec, options: argparse.Namespace, folder: Path, *, cached: bool) -> tuple[float, float]:
    """(seconds to read one clip, share of the time that steps waited for data read ahead), over `rounds` steps in `--dtype auto`."""
    teacher = teacher_of(spec, options)
    trainer = trainer_of(spec, Way(Trainer, cached, auto_dtype(teacher.device)), options, teacher)
    frames, size = spec.teacher.frames.at_least(options.frames), (options.size, options.size)
    stream: Any = cache_in(folder / "cache", teacher, frames, size) if cached else clips_in(folder, frames, size)
    trainer.streams = [stream]
    reading = statistics.median(seconds_of(lambda i=i: trainer.batch_at((0, i)), teacher.device) for i in range(5))
    batches = Waited(cast(Iterator[Any], read_ahead(trainer.batch_at, passes_from(trainer.settings.stages, 0), 2)))
    trainer.learn(batches)
    began, before = time.perf_counter(), batches.seconds
    for _ in range(options.rounds):
        trainer.learn(batches)
    return reading, (batches.seconds - before) / (time.perf_counter() - began)


def clips_in(folder: Path, frames: int, size: tuple[int, int]) -> VideoClips:
    """Clips of a video of 640x360 made here: drifting gradients under noise, which costs a decoder as much as pictures do."""
    path, noise = folder / "made.mp4", np.random.default_rng(0)
    if not path.exists():
        rows, columns = np.mgrid[0:360, 0:640]
        with VideoWriter(path, height=360, width=640, fps=Fraction(25)) as writer:
            for number in range(3 * frames):
                waves = [127 + 90 * np.sin((rows * a + columns * b) / 40 + number / 5) for a, b in ((1, 0), (0, 1), (1, 1))]
                picture = np.stack(waves, axis=-1) + noise.normal(0, 8, (360, 640, 3))
                writer.write(picture.clip(0, 255).astype(np.uint8))
    return VideoClips([probe(path)], frames, size, 1)


def cache_in(root: Path, teacher: Teacher, frames: int, size: tuple[int, int]) -> LatentCache:
    """A latent cache of four clips."""
    clip = {"frames": frames, "size": list(size), "stride": 1}
    with CacheWriter(root, {"clip": clip}, shard_mb=256) as writer:
        for number in range(4):
            pixels = torch.randint(0, 256, (frames, *size, 3), dtype=torch.uint8)
            posterior = teacher.encode(to_model(pixels)[None])
            writer.add_all([(ClipSource("made", str(number), 0, frames, 1, size), posterior.mean[0], posterior.std[0], pixels)])
    return LatentCache(root)


# --- the report ---------------------------------------------------------------------------------------------------


def say(options: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def report_flops(spec: ModelSpec, options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for perceptual in dict.fromkeys((options.perceptual, "none")):
        found = flops_of(spec, perceptual)
        parts = ", ".join(
            f"{name} {found[name]:.0f}" for name in found if name not in ("published", "uncached", "cached", "none")
        )
        say(
            options,
            f"{spec.name} {spec.teacher.frames.at_least(FULL_SIZE[0])}x{FULL_SIZE[1]}x{FULL_SIZE[1]}, full size, {perceptual if perceptual != 'none' else 'no perceptual loss'}: "
            f"GFLOP of a pass published {found['published']:.0f}, uncached {found['uncached']:.0f} ({found['published'] / found['uncached']:.2f}x fewer), "
            f"cached {found['cached']:.0f} ({found['published'] / found['cached']:.2f}x fewer); of which forward {parts}",
        )
        results[perceptual] = found
    return results


def report_time(spec: ModelSpec, options: argparse.Namespace) -> dict[str, Any]:
    seconds = timed(spec, options)
    first = seconds.get("published, fp32")
    where = f"{spec.name} {options.frames}x{options.size}x{options.size}, channels / {options.channels_divisor}, {options.device}, {options.perceptual}"
    ratios = {name: [a / b for a, b in zip(first or (), values, strict=bool(first))] for name, values in seconds.items()}
    for name, values in ratios.items():
        over = (
            f"{statistics.median(values):.2f}x ({min(values):.2f} to {max(values):.2f}) the steps per second of the published loop; "
            if first
            else ""
        )
        say(options, f"{where}, {name}: {over}{statistics.median(seconds[name]):.2f} s")
    return {"seconds": seconds, "ratios": ratios}


def report_memory(spec: ModelSpec, options: argparse.Namespace) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for way in ways_of(options):
        if options.device == "cuda":
            peak = if_it_fits(spec, way, options, lambda way=way: peak_of(spec, way, options))
            empty_cache(torch.device(options.device))
        else:
            peak = statistics.median(in_a_child(spec.name, way) for _ in range(options.rounds))
        peaks |= {} if peak is None else {way: peak}
    first = peaks.get("published, fp32")
    shares = {way: f" ({mb / first:.2f})" if first else "" for way, mb in peaks.items()}
    say(
        options,
        f"{spec.name} peak memory of a step: " + ", ".join(f"{way} {mb:.0f} MB{shares[way]}" for way, mb in peaks.items()),
    )
    return peaks


def report_parts(spec: ModelSpec, options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cached in (False, True):
            parts, name = parts_of(spec, options, cached=cached), "cached" if cached else "uncached"
            reading, waited = waiting(spec, options, Path(folder), cached=cached)
            total = sum(parts.values())
            say(
                options,
                f"{spec.name} a step {name}, --dtype auto: "
                + ", ".join(f"{part} {s:.2f} s ({s / total:.0%})" for part, s in parts.items())
                + f"; reading a clip {reading:.2f} s, beside it: steps wait {waited:.1%} of their time for data",
            )
            results[name] = {"seconds": parts, "reading": reading, "waited": waited}
    return results


REPORTS: Mapping[str, Callable[[ModelSpec, argparse.Namespace], Any]] = {
    "flops": report_flops,
    "time": report_time,
    "memory": report_memory,
    "parts": report_parts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: ltx hunyuan")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels-divisor", type=int, default=0, help="default: 4 on a CPU, 1 elsewhere")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--perceptual", default="lpips", choices=("lpips", "ssim", "none"), help="on both sides")
    parser.add_argument("--compile", action="store_true", help="also a compiled student, which takes minutes to compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=[*REPORTS], default=[*REPORTS])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.device = resolve_device(options.device).type
    options.channels_divisor = options.channels_divisor or (4 if options.device == "cpu" else 1)
    if options.one:
        print(json.dumps({"peak_mb": peak_of(MODELS[options.of], options.one, options)}))
        return
    results = {
        name: {only: REPORTS[only](MODELS[name], options) for only in options.only}
        for name in options.names or ["ltx", "hunyuan"]
    }
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
