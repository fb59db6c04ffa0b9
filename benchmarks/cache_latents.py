"""What `cache-latents` saves by reading, encoding and writing at once, how busy its encoder is, and what half precision costs in latents.

    python benchmarks/cache_latents.py --data DIR [--teacher tiny] [--frames 17] [--size 256] [--clips-per-video 4] [--rounds 3]
        [--batch-sizes 1 4] [--dtypes bf16 fp16] [--device cpu] [--threads 2]
    python benchmarks/cache_latents.py --data DIR --teacher ltx --random --size 128    # only the error

Takes turns; ratios are medians with the smallest and the largest. "One after the other" is the same code with no thread
beside the encoder. The error is that of the posterior's mean against fp32, root mean square over that of the mean and over
that of the posterior's standard deviation, and what the teacher's fp32 decode loses by it. Random weights say how a network of that shape rounds, not what its published
weights do.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from turbovaed_cli.latents.caching import CacheResult, cache_latents
from turbovaed_cli.machine.devices import DTYPES
from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video import list_videos, read_clip


class Inline:
    """In place of the writer's thread: nothing happens beside the encoder."""

    def __init__(self, work: Callable[[Any], None]) -> None:
        self.work = work

    def __enter__(self) -> Callable[[Any], None]:
        return self.work

    def __exit__(self, *_: object) -> None:
        pass


def cached(spec: ModelSpec, options: argparse.Namespace, *, at_once: bool, **changes: Any) -> tuple[float, CacheResult]:
    """(seconds, result) of caching into a folder that is thrown away."""
    given = {"frames": options.frames, "size": (options.size, options.size), "clips_per_video": options.clips_per_video}
    settings = CacheSettings(**{**given, "device": options.device, "workers": 2 if at_once else 0, **changes})
    inline = mock.patch.object(sys.modules[cache_latents.__module__], "Background", Inline)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if at_once:
            result = cache_latents(spec, options.data, Path(folder) / "cache", settings)
        else:
            with inline:
                result = cache_latents(spec, options.data, Path(folder) / "cache", settings)
        return time.perf_counter() - began, result


def in_words(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def compare(spec: ModelSpec, options: argparse.Namespace) -> None:
    """All ways in turns; the first round only warms up."""
    ways: dict[str, dict[str, Any]] = {
        "one after the other": {"at_once": False},
        **{f"at once, batches of {size}": {"at_once": True, "batch_size": size} for size in options.batch_sizes},
        "at once, bf16": {"at_once": True, "dtype": "bf16"},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, given in ways.items():
            took, result = cached(spec, options, **given)
            if turn:
                seconds[name].append(took)
                busy[name].append(result.encoder_busy or 0.0)
    clips = result.encoded
    first = next(iter(ways))
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[first], seconds[name], strict=True)]
        print(
            f"{spec.name} {clips} clips of {options.frames}x{options.size}x{options.size}, {options.device}, {name}: "
            f"{in_words(ratios)} as fast; encoder busy {statistics.median(busy[name]):.0%} "
            f"({min(busy[name]):.0%} to {max(busy[name]):.0%}); {statistics.median(seconds[name]):.1f} s",
            flush=True,
        )


def of_dtype(spec: ModelSpec, dtype: torch.dtype, options: argparse.Namespace) -> Teacher:
    if not options.random:
        return load_teacher(spec, device=options.device, dtype=dtype)
    torch.manual_seed(0)
    vae = spec.teacher.family.build(spec.teacher.config)
    return Teacher(nn.Module.to(vae, device=options.device, dtype=dtype), spec.teacher)


@torch.no_grad()
def error_of(name: str, spec: ModelSpec, options: argparse.Namespace) -> None:
    """Latents of one clip per video in `name` (bf16, fp16) and in fp32, and the teacher's fp32 decode of both."""
    size = (options.size, options.size)
    clips = [read_clip(path, options.frames, size)[None] for path in list_videos(options.data)]
    exact, rounded = of_dtype(spec, torch.float32, options), of_dtype(spec, DTYPES[name], options)
    times: list[list[float]] = [[], []]
    for turn in range(options.rounds + 1):
        for teacher, kept in zip((exact, rounded), times, strict=True):
            took = seconds_of(teacher, clips[0])
            if turn:
                kept.append(took)
    errors, in_stds, scores = [], [], []
    for clip in clips:
        posterior = exact.encode(clip)
        mean, other = posterior.mean.float().cpu(), rounded.encode(clip).mean.float().cpu()
        errors.append(rms(other - mean) / rms(mean))
        in_stds.append(rms(other - mean) / max(rms(posterior.std), 1e-12))
        if not options.random:
            of_exact, of_other = (exact.decode(latents)[0].cpu().clamp(-1, 1) for latents in (mean, other))
            scores.append((psnr(of_exact, clip[0]), psnr(of_other, clip[0]), psnr(of_other, of_exact)))
    speed = in_words([a / b for a, b in zip(*times, strict=True)])
    line = (
        f"{spec.name} ({'random' if options.random else 'its own'} weights), {name} against fp32: encoder {speed} as fast; "
        f"error of latents {statistics.mean(errors):.2%} ({min(errors):.2%} to {max(errors):.2%}), {statistics.mean(in_stds):.1f} posterior deviations"
    )
    if scores:
        before, now, between = (statistics.mean(column) for column in zip(*scores, strict=True))
        line += f"; decoded {before:.2f} dB from fp32, {now:.2f} from {name}, {between:.1f} dB between the two"
    print(line, flush=True)


def seconds_of(teacher: Teacher, clip: Tensor) -> float:
    began = time.perf_counter()
    teacher.encode(clip).mean.float().cpu()
    return time.perf_counter() - began


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--teacher", default="tiny", help="a registry name or a VAE folder")
    parser.add_argument("--random", action="store_true", help="full-size random weights, and only the error")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clips-per-video", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp16"), default=["bf16"], help="whose error to measure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = find_model(options.teacher)
    if not options.random:
        compare(spec, options)
    for name in options.dtypes:
        error_of(name, spec, options)


if __name__ == "__main__":
    main()
