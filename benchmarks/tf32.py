"""What TF32 would cost in latents, emulated on any machine, beside what bf16 costs in the same run.

    python benchmarks/tf32.py --data DIR [--teacher tiny] [--frames 17] [--size 256] [--clips 4]
    python benchmarks/tf32.py --data DIR --teacher ltx --random --size 64 --no-bf16    # full size, random weights

TF32 multiplies fp32 numbers with 10 of their 23 mantissa bits and adds up in fp32. Here both inputs of every convolution and
matrix product of the encoder are rounded to 10 bits, to the nearest and ties to even, and then multiplied in fp32. "cut off"
drops the 13 bits instead, as a kernel may that hands numbers over as they are: an upper end. "bf16 products" rounds in the same
places to bf16's 7 bits. "bf16" is the real `--dtype bf16`; it is slow on a CPU without bf16, and `--no-bf16` leaves it out.

The error is that of the posterior's mean against fp32: its root mean square and its largest value, each over the posterior's
standard deviation at the same place and over the standard deviation of the channel's latents. "of bf16
products" is the ratio of the error to theirs. "decoded" is the PSNR of the teacher's fp32 decode against the clips, and against its decode of
fp32's latents. Random weights say how a network of that shape rounds, not what its published weights do.
"""

import argparse
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cache_latents import of_dtype, rms
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.video import list_videos, read_clip

_LEFT_OUT_BITS = 13  # of fp32's 23
_MASK = -(1 << _LEFT_OUT_BITS)
# Operations that run on tensor cores, and which of their arguments are multiplied; biases and addends stay fp32.
_MULTIPLIED = {
    torch.ops.aten.convolution.default: (0, 1),
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.baddbmm.default: (1, 2),
}
Rounding = Callable[[Tensor], Tensor]


def to_tf32(x: Tensor) -> Tensor:
    """Finite fp32 numbers rounded to 10 mantissa bits, to the nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    half = (1 << (_LEFT_OUT_BITS - 1)) - 1
    return ((bits + half + ((bits >> _LEFT_OUT_BITS) & 1)) & _MASK).view(torch.float32)


def cut_to_tf32(x: Tensor) -> Tensor:
    """Fp32 numbers with 10 mantissa bits, the others dropped."""
    return (x.contiguous().view(torch.int32) & _MASK).view(torch.float32)


def to_bf16(x: Tensor) -> Tensor:
    """Fp32 numbers rounded to 7 mantissa bits."""
    return x.bfloat16().float()


class _Products(TorchDispatchMode):
    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self.rounding = rounding
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _MULTIPLIED:
            self.count += 1
            rounded = list(args)
            for index in _MULTIPLIED[function]:
                assert rounded[index].dtype == torch.float32, f"{function} of {rounded[index].dtype}"
                rounded[index] = self.rounding(rounded[index])
            args = tuple(rounded)
        return function(*args, **(kwargs or {}))


@contextmanager
def emulated(rounding: Rounding = to_tf32) -> Iterator[_Products]:
    """Round what every convolution and matrix product within multiplies; attention is computed by matrix products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Products(rounding) as products:
        yield products


def in_words(errors: list[Tensor], scales: list[Tensor]) -> str:
    """Root mean square and largest value of errors over `scales`."""
    relative = torch.cat([(error / scale).flatten() for error, scale in zip(errors, scales, strict=True)])
    return f"{rms(relative):.2e} (at most {relative.abs().max():.1e})"


def decodes(teacher: Teacher, means: list[Tensor]) -> list[Tensor]:
    return [teacher.decode(mean).clamp(-1, 1) for mean in means]


def psnr_of(videos: list[Tensor], others: list[Tensor]) -> float:
    return statistics.mean(psnr(video[0], other[0]) for video, other in zip(videos, others, strict=True))


def compare(options: argparse.Namespace) -> None:
    spec = find_model(options.teacher)
    size = (options.size, options.size)
    paths = list_videos(options.data)[: options.clips]
    clips = [read_clip(path, options.frames, size)[None] for path in paths]
    exact = of_dtype(spec, torch.float32, options)
    posteriors = [exact.encode(clip) for clip in clips]
    every = torch.cat([posterior.mean.flatten(2) for posterior in posteriors], dim=2)  # (1, C, all places)
    of_channel = every.std(dim=2).view(1, -1, 1, 1, 1)
    kind = "random weights" if options.random else "its own weights"
    print(
        f"{spec.name} ({kind}), {len(clips)} clips of {options.frames}x{options.size}x{options.size}, emulated on {platform.machine()}; "
        f"posterior's deviation {torch.cat([posterior.std.flatten() for posterior in posteriors]).mean():.2e}, latents' {of_channel.mean():.2e}",
        flush=True,
    )
    made: dict[str, list[Tensor]] = {}
    if options.bf16:
        rounded = of_dtype(spec, torch.bfloat16, options)
        made["bf16"] = [rounded.encode(clip).mean.float() for clip in clips]
    for name, rounding in {"bf16 products": to_bf16, "TF32": to_tf32, "TF32, cut off": cut_to_tf32}.items():
        with emulated(rounding) as products:
            made[name] = [exact.encode(clip).mean for clip in clips]
        assert products.count
    decoded = {} if options.random else {name: decodes(exact, means) for name, means in made.items()}
    of_exact = [] if options.random else decodes(exact, [posterior.mean for posterior in posteriors])
    stds, deviations = [posterior.std for posterior in posteriors], [of_channel] * len(clips)
    has_std = bool((torch.cat([std.flatten() for std in stds]) > 0).all())
    errors = {
        name: [mean - posterior.mean for mean, posterior in zip(means, posteriors, strict=True)] for name, means in made.items()
    }
    if of_exact:
        print(f"  fp32           decoded {psnr_of(of_exact, clips):.3f} dB", flush=True)
    of_bf16 = rms(torch.cat([error.flatten() for error in errors["bf16 products"]]))
    for name, found in errors.items():
        ratio = rms(torch.cat([error.flatten() for error in found])) / of_bf16
        scores = (
            f"; decoded {psnr_of(decoded[name], clips):.3f} dB, {psnr_of(decoded[name], of_exact):.1f} of fp32's"
            if decoded
            else ""
        )
        print(
            f"  {name:14} over the posterior's deviation {in_words(found, stds) if has_std else 'none: it has none'}; "
            f"over the latents' {in_words(found, deviations)}; {ratio:.4f} of bf16 products{scores}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--teacher", default="tiny", help="a registry name or a VAE folder")
    parser.add_argument("--random", action="store_true", help="full-size random weights")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clips", type=int, default=4, help="one of each video, at most this many")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="encode in bf16 too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    options.device = "cpu"
    torch.set_num_threads(options.threads)
    compare(options)


if __name__ == "__main__":
    main()
