"""What only a GPU can answer, measured in eight minutes by one process: one line of JSON for each result.

    python tools/gpu_first.py --prepare carry                                   # here: what has to travel, some 10 MB
    PYTHONPATH=carry:. timeout 470 python3 tools/gpu_first.py --carry carry     # on a machine with torch and a GPU
    python tools/gpu_first.py --carry carry --device cpu --small                # the same code at tiny sizes

That machine needs torch, numpy, safetensors, huggingface-hub, accelerate, typer and rich, and neither diffusers nor ffmpeg:
the prepared folder has the former and clips that are encoded already. Triton and CUDA graphs are measured if they are there. Lines go
to stdout and, if $OUT is set, to $OUT/gpu.jsonl; at the end $OUT/gpu.json and the page $OUT/gpu.html are made of them. A part that fails is a line with its error; one whose time is over ends after the result at hand; one that
would begin after --minutes is skipped. Weights are random or the embedded pair's: figures are of speed, memory and bits.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "benchmarks"), str(HERE)]
Row = dict[str, Any]
TRAVELS = ("diffusers", "importlib_metadata", "zipp")
CARD_GB = 24  # of the smaller card that is imitated
CLIPS = 24  # in the prepared cache


@dataclass
class Machine:
    """Where the parts run, and how large what they run may be."""

    device: torch.device
    small: bool
    carry: Path
    work: Path  # a folder for what parts write

    @property
    def half(self) -> str:
        """bf16, or fp32 on a processor that would emulate it."""
        from turbovaed_cli.machine.devices import multiplies_bf16

        return "bf16" if multiplies_bf16(self.device) else "fp32"

    @property
    def models(self) -> tuple[str, ...]:
        """Students of the registry that are measured."""
        return ("tiny",) if self.small else ("ltx", "hunyuan")

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, call: Callable[[], object], repeats: int = 5) -> float:
        """Median milliseconds of a call, after one that warms up."""
        call()
        self.wait()
        found = []
        for _ in range(1 if self.small else repeats):
            began = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - began)
        return 1e3 * statistics.median(found)

    def forget_peak(self) -> None:
        """Let `peak_gb` start anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> Row:
        """The most that torch allocated and reserved since then."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated_gb": torch.cuda.max_memory_allocated(self.device) / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved(self.device) / 1e9,
        }


# --- the parts: each yields rows ------------------------------------------------------------------------------------


def versions(machine: Machine) -> Iterator[Row]:
    """What this machine is, and what is said of it when a command asks for a device."""
    from turbovaed_cli.machine.devices import environment, resolve_device
    from turbovaed_cli.machine.gpus import slow_cudnn
    from turbovaed_cli.reporting import WarningsOf

    told: list[str] = []

    class Listener(WarningsOf):
        """Keeps what the product warns of."""

        def __init__(self) -> None:
            pass

        def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
            told.extend([text] * warning)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chosen = resolve_device("auto", Listener())
    told += [str(item.message) for item in said] + [slow_cudnn(machine.device, torch.bfloat16)]
    yield {"environment": environment(machine.device), "auto": str(chosen), "warnings": [text for text in told if text]}
    if machine.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(machine.device)
        yield {"free_gb": free / 1e9, "total_gb": total / 1e9, "cudnn": torch.backends.cudnn.version()}


def convolutions(machine: Machine) -> Iterator[Row]:
    """Forward and backward of a dense and a depthwise Conv3d: precision, memory layout, determinism."""
    channels, shape = (8, (3, 8, 8)) if machine.small else (128, (17, 64, 64))
    wide, low = (8, (3, 8, 8)) if machine.small else (512, (3, 16, 16))
    kinds = {"dense 3x3x3": (channels, 3, 1, shape), "depthwise 5x5x5": (wide, 5, wide, low)}
    on_cuda = machine.device.type == "cuda"
    precisions = {"fp32": (torch.float32, False), "tf32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    for name, (width, kernel, groups, size) in kinds.items():
        for precision, (dtype, tf32) in precisions.items():
            for layout in (torch.contiguous_format, torch.channels_last_3d):
                for deterministic in (True, False):
                    weight = torch.randn(width, width // groups, *[kernel] * 3, device=machine.device, dtype=dtype)
                    video = torch.randn(1, width, *size, device=machine.device, dtype=dtype)
                    weight, video = (x.to(memory_format=layout).requires_grad_() for x in (weight, video))

                    def forward(
                        weight: Tensor = weight, video: Tensor = video, groups: int = groups, kernel: int = kernel
                    ) -> Tensor:
                        return functional.conv3d(video, weight, padding=kernel // 2, groups=groups)

                    def both(forward: Callable[[], Tensor] = forward) -> None:
                        made = forward()
                        made.backward(torch.ones_like(made))

                    row: Row = {"kind": name, "precision": precision, "layout": str(layout), "deterministic": deterministic}
                    machine.forget_peak()
                    flags = {"enabled": True, "benchmark": False, "deterministic": deterministic, "allow_tf32": tf32}
                    try:
                        with torch.backends.cudnn.flags(**flags) if on_cuda else torch.enable_grad():
                            with torch.no_grad():
                                row["forward_ms"] = machine.ms(forward)
                            row["forward_backward_ms"] = machine.ms(both)
                    except RuntimeError as error:  # "unable to find an engine" is a result
                        row["error"] = str(error).splitlines()[0]
                    yield row | machine.peak_gb()


def decodes(machine: Machine) -> Iterator[Row]:
    """See gpu_decodes.py."""
    from gpu_decodes import decodes as rows

    return rows(machine)


def streams(machine: Machine) -> Iterator[Row]:
    """See gpu_decodes.py."""
    from gpu_decodes import streams as rows

    return rows(machine)


def teachers(machine: Machine) -> Iterator[Row]:
    """See gpu_decodes.py."""
    from gpu_decodes import teachers as rows

    return rows(machine)


def streaming(machine: Machine) -> Iterator[Row]:
    """A student streamed in pieces of 1 to 8 latent frames, beside the peak that `plan_pieces` foretells."""
    from turbovaed_cli.models.loading import build_student
    from turbovaed_cli.models.memory import decoding_bytes, plan_pieces, with_margin
    from turbovaed_cli.models.pair import Pair
    from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
    from turbovaed_cli.registry.rows import MODELS

    name = machine.models[0]
    size = (64, 64) if machine.small else (704, 1280)
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        student = build_student(MODELS[name].student.config).eval()
        nn.Module.to(student, device=machine.device, dtype=dtype)
        ratio = int(student.spatial_compression_ratio)
        latent = size[0] // ratio, size[1] // ratio
        began = time.perf_counter()
        pieces = plan_pieces(Pair(student, None, None, name, None), size)
        yield {"model": name, "dtype": str(dtype), "plan": str(pieces), "plan_s": time.perf_counter() - began}
        for frames in (1, 2) if machine.small else (1, 2, 4, 8):
            machine.forget_peak()
            row: Row = {"model": name, "dtype": str(dtype), "latent_frames": frames, "size": list(size)}
            row["foretold_gb"] = with_margin(decoding_bytes(student, latent, frames, 0, spill=False)) / 1e9
            piece = torch.randn(1, student.config.latent_channels, frames, *latent, device=machine.device, dtype=dtype)
            with torch.inference_mode():
                decoder = StreamingDecoder(FastDecoder(student))
                decoder.push(piece)
                made, began = 0, time.perf_counter()
                for _ in range(2 if machine.small else 4):
                    made += decoder.push(piece).shape[2]
                machine.wait()
                row["ms_per_frame"] = 1e3 * (time.perf_counter() - began) / max(made, 1)
            yield row | machine.peak_gb()


def steps(machine: Machine) -> Iterator[Row]:
    """Optimizer steps by batch, loss and source; the wall against the device's own time; the top kernels of one."""
    name = machine.models[0]
    sizes = (1,) if machine.small else (2, 8, 16)
    for cached in (False, True):
        for perceptual in ("ssim", "lpips"):
            for clips in sizes:
                machine.forget_peak()
                row: Row = {"model": name, "cached": cached, "perceptual": perceptual, "clips": clips}
                try:
                    trainer, batch = _trainer(machine, name, clips, perceptual, cached=cached)
                    row["ms"] = machine.ms(lambda t=trainer, b=batch: t.learn(iter([((0, 0), b)])), 3)
                    row["device_ms"] = _device_ms(machine, lambda t=trainer, b=batch: t.learn(iter([((0, 0), b)])))
                    row["weights_moved"] = bool(torch.isfinite(next(trainer.state.student.parameters())).all())
                except RuntimeError as error:
                    row["error"] = str(error).splitlines()[0]
                yield row | machine.peak_gb()
    trainer, batch = _trainer(machine, name, sizes[-1], "ssim", cached=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if machine.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    trainer.learn(iter([((0, 0), batch)]))
    with torch.profiler.profile(activities=activities) as profile:
        trainer.learn(iter([((0, 1), batch)]))
        machine.wait()
    spent = "self_device_time_total" if machine.device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda item: getattr(item, spent), reverse=True)[:15]
    yield {"top": [{"op": item.key[:90], "ms": getattr(item, spent) / 1e3, "calls": item.count} for item in rows]}


def _device_ms(machine: Machine, call: Callable[[], object]) -> float | None:
    """Milliseconds that kernels ran: far below the wall's, it is launches that are waited for."""
    if machine.device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        machine.wait()
    return float(sum(item.self_device_time_total for item in profile.key_averages()) / 1e3)


def _trainer(
    machine: Machine, name: str, clips: int, perceptual: str, *, cached: bool, dtype: str = "", adversarial: float = 0.0,
    compiled: bool = False, side: int = 256,
) -> tuple[Any, Any]:  # fmt: skip
    """A trainer with random networks, and a batch of noise for it on the device."""
    from training_step import Noise, perceptual_of
    from truncated_features import random_teacher

    from turbovaed_cli.latents.batch import Batch
    from turbovaed_cli.machine.devices import resolve_dtype
    from turbovaed_cli.models.loading import build_student
    from turbovaed_cli.registry.rows import MODELS
    from turbovaed_cli.settings import DistillSettings
    from turbovaed_cli.stage import Stage
    from turbovaed_cli.training.alignment import build_heads
    from turbovaed_cli.training.state import TrainingState
    from turbovaed_cli.training.trainer import Trainer

    spec, divisor = MODELS[name], 8 if machine.small else 1
    dtype = dtype or machine.half
    frames, side = (spec.teacher.frames.at_least(5), 32) if machine.small else (spec.teacher.frames.at_least(17), side)
    stage = Stage(
        "s", steps=10**6, batch_size=clips, accumulation=1, lr=1e-3, perceptual=perceptual, perceptual_weight=0.1,
        feature_weight=0.0, adversarial_weight=adversarial,
    )  # fmt: skip
    settings = DistillSettings((stage,), dtype=dtype, optimizer="muon", compile=compiled)
    torch.manual_seed(0)
    teacher = random_teacher(spec).to(machine.device)
    student = build_student(spec.student.config).to(machine.device)
    state = TrainingState(student, build_heads(student, teacher, ()), settings, machine.device)
    precision = resolve_dtype(dtype)
    losses = {perceptual: perceptual_of(perceptual, divisor, machine.device, precision), "none": None}
    streams: list[Any] = [Noise()]
    trainer = Trainer(teacher, state, streams, [None], losses, settings, machine.device, precision)
    shape = (clips, spec.teacher.latent_channels, spec.teacher.latent_frames(frames), *[side // spec.teacher.space_ratio] * 2)
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(clips, 3, frames, side, side, generator=generator) * 2 - 1
    mean, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    batch = Batch(video, mean, torch.full(shape, 0.1), noise=noise) if cached else Batch(video, noise=noise)
    return trainer, trainer.copies.send(batch)


def bits(machine: Machine) -> Iterator[Row]:
    """Six optimizer steps against three, a checkpoint, a new state and three: the same bits or not; also on a card nearly full."""
    name = machine.models[0]
    cases: dict[str, Row] = {
        "bf16, LPIPS, adversarial": {"perceptual": "lpips", "adversarial": 0.05}, "fp32, SSIM": {"perceptual": "ssim", "dtype": "fp32"},
        "bf16, compiled": {"perceptual": "ssim", "compiled": True},
    }  # fmt: skip
    on_cuda = machine.device.type == "cuda"
    for full in (False, True) if on_cuda else (False,):
        for case, options in cases.items():
            if options.get("compiled") and (full or machine.small):
                continue
            whole = _digest(machine, name, options, [6])
            filled = _filled(machine, 0.9) if full else None
            parts = _digest(machine, name, options, [3, 3])
            del filled
            yield {"case": case, "nearly_full_card_on_resume": full, "same_bits": whole == parts}


def _digest(machine: Machine, name: str, options: Row, counts: list[int]) -> str:
    """Of the state after so many optimizer steps in turn, each turn from a checkpoint of the one before."""
    saved = Path(tempfile.mkdtemp(dir=machine.work))
    number, digest = 0, ""
    for turn, count in enumerate(counts):
        trainer, batch = _trainer(machine, name, 2, cached=True, side=128, **{"perceptual": "ssim", **options})
        if turn:
            trainer.state.load(saved)
        for _ in range(count):
            trainer.learn(iter([((0, number), batch)]))
            number += 1
        trainer.state.save(saved)
        digest = trainer.state.digest()
        del trainer
    return digest


def _filled(machine: Machine, share: float) -> Tensor:
    """A tensor that takes this share of what is free."""
    free, _ = torch.cuda.mem_get_info(machine.device)
    return torch.empty(int(free * share), dtype=torch.uint8, device=machine.device)


def commands(machine: Machine) -> Iterator[Row]:
    """`distill` itself, killed on the way and resumed, against one that was not: the sha256 of model/; then fp16."""
    count = 4 if machine.small else 40
    base = ["distill", "--teacher", "tiny", "--latents", str(machine.carry / "cache"), "--recipe", "quick", "--steps", str(count)]
    base += ["--save-every", str(count // 2), "--sample-every", "0", "--perceptual", "ssim", "--device", machine.device.type]
    whole = _turbovaed([*base, "--run", str(machine.work / "whole")])
    yield {"command": "whole", "code": whole.returncode, "stderr": whole.stderr[-600:]}
    run = machine.work / "killed"
    with subprocess.Popen([sys.executable, "-m", "turbovaed_cli", *base, "--run", str(run)], stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(run.glob("checkpoints/step_*")):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = _turbovaed([*base, "--run", str(run)])
    same = _weights_of(machine.work / "whole") == _weights_of(run)
    yield {"command": "killed and resumed", "code": again.returncode, "same_bits": same, "stderr": again.stderr[-600:]}
    if not machine.small:
        half = _turbovaed([*base, "--run", str(machine.work / "half"), "--dtype", "fp16"])
        yield {"command": "fp16", "code": half.returncode, "stderr": half.stderr[-600:]}


def _turbovaed(words: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "turbovaed_cli", *words], capture_output=True, text=True, check=False)


def _weights_of(run: Path) -> str:
    path = run / "model" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else f"no {path.name}"


def small_card(machine: Machine) -> Iterator[Row]:
    """A sample of a full-size run, and runs that do not fit: this card with the memory of a smaller one."""
    from turbovaed_cli.machine.devices import is_out_of_memory, out_of_memory_in_words
    from turbovaed_cli.training.outputs import Samples

    on_cuda = machine.device.type == "cuda"
    total = torch.cuda.mem_get_info(machine.device)[1] if on_cuda else 0
    if on_cuda:
        torch.cuda.set_per_process_memory_fraction(min(CARD_GB * 1e9 / total, 1.0), machine.device)
    try:
        name = machine.models[-1]
        trainer, batch = _trainer(machine, name, 1, "ssim", cached=False, side=512)
        trainer.streams = [_OneClip(batch)]
        machine.forget_peak()
        clips = Samples(trainer).clips()
        yield {"what": f"sample of {name} 512x512", "card_gb": CARD_GB, "fits": bool(clips)} | machine.peak_gb()
        del trainer, batch, clips
        for at_once in (8, 32, 128) if on_cuda else ():
            machine.forget_peak()
            try:
                trainer, batch = _trainer(machine, "ltx", at_once, "lpips", cached=True)
                trainer.learn(iter([((0, 0), batch)]))
            except RuntimeError as error:
                known, text = is_out_of_memory(error), out_of_memory_in_words(error)
                yield {"what": "step of ltx", "clips": at_once, "fits": False, "known": known, "text": text}
                break
            yield {"what": "step of ltx", "clips": at_once, "fits": True} | machine.peak_gb()
        if on_cuda:
            trainer = batch = None
            machine.forget_peak()
            torch.cuda.set_per_process_memory_fraction(min(0.3e9 / total, 1.0), machine.device)
            yield {"what": "distill on a card of 0.3 GB", **_command_here(machine)}
    finally:
        if on_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, machine.device)


class _OneClip:
    """A stream of the same clip."""

    is_encoded = False

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.size = tuple(batch.video.shape[-2:])

    def batch_at(self, seed: int, index: int, batch_size: int, crop: Any = None, part: slice = slice(None)) -> Any:
        """That clip, cut to the crop in its corner."""
        from turbovaed_cli.latents.batch import Batch

        height, width = self.size if crop is None else crop.pixels
        return Batch(self._batch.video[:1, :, :, :height, :width])

    def names_at(self, *_: Any) -> list[str]:
        """For messages."""
        return ["noise"]


def _command_here(machine: Machine) -> Row:
    """`distill` in this process, whose memory has a limit: its exit code and last words."""
    from turbovaed_cli.cli import main as turbovaed

    words = ["distill", "--teacher", "tiny", "--latents", str(machine.carry / "cache"), "--run", str(machine.work / "little")]
    words += ["--steps", "4", "--batch-size", "16", "--device", machine.device.type]
    said, before = io.StringIO(), sys.argv
    sys.argv = ["turbovaed", *words]
    code: object = 0
    try:
        with contextlib.redirect_stderr(said):
            turbovaed()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return {"code": code, "stderr": said.getvalue()[-500:]}


def metrics(machine: Machine) -> Iterator[Row]:
    """PSNR and SSIM on the device and on the CPU, the encoder by batch, and copies of batches checked under a race."""
    from truncated_features import random_teacher

    from turbovaed_cli.latents.batch import Batch
    from turbovaed_cli.latents.caching import encode_clips
    from turbovaed_cli.metrics.pixels import psnr, ssim
    from turbovaed_cli.registry.rows import MODELS
    from turbovaed_cli.training.batches import DeviceCopies

    shape = (3, 3, 64, 64) if machine.small else (3, 17, 704, 1280)
    generator = torch.Generator().manual_seed(0)
    pair = [torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2)]
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        there = [x.to(machine.device) for x in pair]
        yield {
            "metric": name, "device_ms": machine.ms(lambda m=metric, p=there: m(*p), 2), "cpu_ms": machine.ms(lambda m=metric: m(*pair), 1),
            "difference": abs(metric(*there) - metric(*pair)),
        }  # fmt: skip
    spec = MODELS[machine.models[0]]
    teacher = random_teacher(spec).to(machine.device)
    frames, side = (spec.teacher.frames.at_least(3), 64) if machine.small else (17, 256)
    for clips in (1, 2) if machine.small else (1, 4, 16):
        batch = [torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8).numpy() for _ in range(clips)]
        machine.forget_peak()
        yield {
            "encode_clips": clips,
            "clips_per_s": 1e3 * clips / machine.ms(lambda b=batch: encode_clips(teacher, b), 2),
        } | machine.peak_gb()
    posteriors = []
    for teacher.allows_tf32 in (False, True):
        yield {"encoder_in_tf32": teacher.uses_tf32, "ms": machine.ms(lambda b=batch: encode_clips(teacher, b), 2)}
        posteriors.append(encode_clips(teacher, batch))
    machine.wait()  # until what was brought over is there
    (mean, std), (other, _) = posteriors
    rms = (other - mean).square().mean().sqrt().item()
    yield {"tf32_rms_over_posterior_std": rms / std.square().mean().sqrt().item(), "over_latents_std": rms / mean.std().item()}
    copies, wrong = DeviceCopies(machine.device), 0
    waiting: list[tuple[int, Batch]] = []
    for number in range(20 if machine.small else 200):
        waiting.append((number, copies.send(Batch(torch.full((2, 3, 5, 64, 64), float(number))))))
        if len(waiting) > 3:
            sent, batch = waiting.pop(0)
            taken = copies.take(batch).video * 2
            wrong += int((taken != 2 * sent).any().item())
    yield {"race check": "batches that were others", "wrong": wrong}


PARTS: dict[str, tuple[Callable[[Machine], Iterator[Row]], float]] = {  # seconds that each may take, the most important first
    "versions": (versions, 15), "decodes": (decodes, 130), "streams": (streams, 60),
    "teachers": (teachers, 60), "steps": (steps, 45), "bits": (bits, 30), "metrics": (metrics, 20),
    "commands": (commands, 35), "small_card": (small_card, 20), "streaming": (streaming, 20), "convolutions": (convolutions, 15),
}  # fmt: skip


# --- around them ----------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write what has to travel: pure Python packages, and a latent cache of the embedded teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in TRAVELS:
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            shutil.copytree(
                found.submodule_search_locations[0],
                folder / package,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
    write_cache(folder / "cache")


def write_cache(folder: Path) -> None:
    """A latent cache of the embedded teacher, of moving waves: CLIPS clips of 9 frames of 64x64."""
    from turbovaed_cli.latents.cache import ClipSource
    from turbovaed_cli.latents.writer import CacheWriter
    from turbovaed_cli.models.teacher import load_teacher
    from turbovaed_cli.registry.find import find_model
    from turbovaed_cli.video import to_model

    spec = find_model("tiny")
    teacher = load_teacher(spec)
    frames, side = 9, 64
    about = {
        "clip": {"frames": frames, "size": [side, side], "stride": 1}, "teacher_name": spec.name,
        "teacher": {**teacher.identity(), "latent_channels": spec.teacher.latent_channels},
    }  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    with CacheWriter(folder, about, shard_mb=256) as writer:
        for number in range(CLIPS):
            waves = [((rows * (1 + number % 3) + columns * channel) / 9 + number).sin() for channel in (1, 2, 3)]
            moving = torch.stack([torch.stack(waves, -1).roll(frame, 1) for frame in range(frames)])  # (T, H, W, 3)
            pixels = (127.5 + 100 * moving).to(torch.uint8)
            with torch.inference_mode():
                posterior = teacher.encode(to_model(pixels)[None])
            writer.add_all(
                [(ClipSource("made", str(number), 0, frames, 1, (side, side)), posterior.mean[0], posterior.std[0], pixels)]
            )


def emit(row: Row, out: Path | None) -> None:
    """One line of JSON, at once."""
    line = json.dumps(row, default=str)
    print(line, flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def run_part(name: str, machine: Machine, ends: float, out: Path | None) -> None:
    """The rows of a part, until its seconds or all of them are over; an error is a row."""
    part, seconds = PARTS[name]
    began = time.monotonic()
    try:
        for row in part(machine):
            emit({"part": name, "at_s": round(time.monotonic() - began, 2), **row}, out)
            if not machine.small and time.monotonic() > min(began + seconds, ends):
                emit({"part": name, "ended": "its time is over"}, out)
                break
    except Exception as error:
        emit({"part": name, "error": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1200:]}, out)
    machine.forget_peak()


def _device(name: str) -> torch.device:
    """With the product's settings of determinism and TF32, and a number, which some functions of torch ask for."""
    from turbovaed_cli.machine.devices import resolve_device

    device = resolve_device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write what has to travel, and end")
    parser.add_argument("--carry", type=Path, default=Path("carry"), help="that folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=7.5, help="no part begins later")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script itself")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare)
        return
    ends = time.monotonic() + 60 * options.minutes
    if folder := os.environ.get("OUT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    out = Path(os.environ["OUT"]) / "gpu.jsonl" if os.environ.get("OUT") else None
    with tempfile.TemporaryDirectory() as work:
        machine = Machine(_device(options.device), options.small, options.carry, Path(work))
        for name in options.parts:
            if time.monotonic() > ends and not machine.small:
                emit({"part": name, "skipped": "no time was left"}, out)
            else:
                run_part(name, machine, ends, out)
    if out is not None:
        from gpu_page import write

        write(out)


if __name__ == "__main__":
    main()
