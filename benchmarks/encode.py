"""A teacher's encoder in its fast form beside the diffusers class, in one run: seconds, ratio, the floor of this machine, error.

    python benchmarks/encode.py --model tiny ltx wan2.1 --frames 17 --size 256x256 [--dtype fp32] [--rounds 3] [--threads 2] [--exact]
    python benchmarks/encode.py --model tiny --size 832x480

The forms take turns; the ratio is the class's time over the fast form's, the median of the turns, with least and most. Teachers are
of full size, with random weights except for `tiny`. Frames are smoothed noise. The floor: FLOPs of the class over the rate of a large
matrix product here, and its share of the fast form's time (above 1: it multiplies less often than the class). The error is the
largest difference from the class's latents over their standard deviation; `--exact` adds both forms' error from fp64.
"""

import argparse
import statistics
import time

import torch
from decode import DTYPES, matmul_rate, ratios_of
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from truncated_features import random_teacher

from turbovaed_cli.models.fast_encoder import fast_encoder, mean_and_std
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.find import find_model

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny", "ltx"])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", default="256x256", help="width x height")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--exact", action="store_true", help="the error of both forms from fp64 too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rate = matmul_rate(DTYPES[options.dtype], CPU)
    print(f"{torch.get_num_threads()} threads, {options.dtype}; GFLOP/s of a matrix product: {rate / 1e9:.0f}")
    print(
        f"{'':12} {'class':>9} {'fast':>9}  class / fast (least to most)   floor/time    error  {'fp64: class, fast' * options.exact}"
    )
    for name in options.model:
        print(f"{name:12} {row_of(name, options, rate)}", flush=True)


@torch.inference_mode()
def row_of(name: str, options: argparse.Namespace, rate: float) -> str:
    teacher = random_teacher(find_model(name)).eval().to(dtype=DTYPES[options.dtype])
    width, height = map(int, options.size.split("x"))
    video = smoothed(options.frames, height, width).to(DTYPES[options.dtype])
    with FlopCounterMode(display=False) as counter:
        teacher.vae.encode(video)
    flops = counter.get_total_flops()
    times: dict[bool, list[float]] = {False: [], True: []}
    made: dict[bool, Tensor] = {}
    for turn in range(options.rounds + 1):
        for is_fast in (False, True):
            began = time.perf_counter()
            made[is_fast] = encode(teacher, video, is_fast=is_fast)
            if turn:
                times[is_fast].append(time.perf_counter() - began)
    ratios = ratios_of(times[False], times[True])
    stock, fast = (statistics.median(times[is_fast]) for is_fast in (False, True))
    text = f"{stock:7.2f} s {fast:7.2f} s {statistics.median(ratios):9.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    text += f" {flops / rate / fast:18.2f} {error(made[True], made[False]):8.1e}"
    if options.exact:
        teacher = teacher.double()
        exact = teacher.vae.encode(video.double()).latent_dist.mean
        text += f"  {error(made[False], exact):.1e}, {error(made[True], exact):.1e}"
    return text


def smoothed(frames: int, height: int, width: int) -> Tensor:
    """A video (1, 3, T, H, W) in [-1, 1] with the smoothness of a photograph."""
    noise = torch.randn(1, 3, frames, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, (frames, height, width), mode="trilinear").mul(0.5).clamp(-1, 1)


def encode(teacher: Teacher, video: Tensor, *, is_fast: bool) -> Tensor:
    fast = fast_encoder(teacher.vae)
    assert fast is not None, f"{teacher.spec.class_name} has no fast form"
    return mean_and_std(fast.encode(video))[0] if is_fast else teacher.vae.encode(video).latent_dist.mean


def error(made: Tensor, wanted: Tensor) -> float:
    return float((made.double() - wanted.double()).abs().max() / wanted.double().std())


if __name__ == "__main__":
    main()
