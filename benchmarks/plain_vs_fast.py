"""What the layers' own way of computing saves: the student beside the published structure, module by module, in the same run.

    python benchmarks/plain_vs_fast.py [tiny ltx hunyuan cogvideox video-dc-ae] [--frames 17] [--size 256] [--threads 1] [--rounds 7]

Prints plain / fast (above 1 the student is faster), medians of CPU seconds, taking turns: eager decode, and forward and backward of
one training step on a clip of a quarter of the size. Random weights except for `tiny`; also the largest difference of a pixel.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.layers import (
    RMS_EPS,
    ChannelRMSNorm,
    DepthwiseSeparableConv3d,
    TimeReplicatedConv3d,
    Upsampler2d,
    pad_time,
)
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS


def plain_norm(_module: nn.Module, x: Tensor) -> Tensor:
    variance = x.to(torch.promote_types(x.dtype, torch.float32)).pow(2).mean(dim=1, keepdim=True)
    return (x * torch.rsqrt(variance + RMS_EPS)).to(x.dtype)


def plain_conv(module: TimeReplicatedConv3d, x: Tensor) -> Tensor:
    return module.conv(pad_time(x, module.kernel_size, causal=module.causal))


def plain_separable(module: DepthwiseSeparableConv3d, x: Tensor) -> Tensor:
    return module.pointwise_conv(module.depthwise_conv(pad_time(x, module.kernel_size, causal=module.causal)))


def plain_upsampler(module: Upsampler2d, x: Tensor) -> Tensor:
    x_2d = module.conv(x.movedim(2, 1).flatten(0, 1))
    return functional.pixel_shuffle(x_2d, 2).unflatten(0, (x.shape[0], x.shape[2])).movedim(2, 1)


PLAIN = {
    ChannelRMSNorm: plain_norm,
    TimeReplicatedConv3d: plain_conv,
    DepthwiseSeparableConv3d: plain_separable,
    Upsampler2d: plain_upsampler,
}


def plain_form(student: StudentDecoder) -> StudentDecoder:
    """A copy with the same weights whose modules compute what their name says, one torch module each."""
    plain = copy.deepcopy(student)
    for module in plain.modules():
        if type(module) in PLAIN:
            module.forward = MethodType(PLAIN[type(module)], module)  # type: ignore[method-assign]
    return plain


@torch.inference_mode()
def decode(student: StudentDecoder, latents: Tensor) -> None:
    student(latents)


def learn(student: StudentDecoder, latents: Tensor) -> None:
    student(latents).square().mean().backward()


def ratio(
    step: Callable[[StudentDecoder, Tensor], None], students: Sequence[StudentDecoder], latents: Tensor, rounds: int
) -> float:
    """Median CPU seconds of the first student over those of the second, taking turns after a first call of each."""
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for student, kept in zip(students, seconds, strict=True):
            began = time.process_time()
            step(student, latents)
            if turn:
                kept.append(time.process_time() - began)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def student_of(name: str) -> StudentDecoder:
    """What a registry name decodes with: weights where some are embedded, else random ones, which speed does not care about."""
    spec = find_model(name)
    torch.manual_seed(0)
    return (load_student(name) if spec.embedded else build_student(spec.student.config)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; default: tiny ltx")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.names or ["tiny", "ltx"]:
        spec = MODELS[name]
        fast = student_of(name)
        plain = plain_form(fast)
        frames = spec.teacher.frames.at_most(options.frames)
        latents = torch.randn(1, *fast.latent_shape(frames, (options.size, options.size)))
        with torch.no_grad():
            difference = (plain(latents) - fast(latents)).abs().max().item()

        decoding = ratio(decode, (plain, fast), latents, options.rounds)
        crop = latents[..., : max(latents.shape[-2] // 4, 1), : max(latents.shape[-1] // 4, 1)]
        learning = ratio(learn, (plain, fast), crop, options.rounds)
        print(
            f"{name:12} {frames}x{options.size}x{options.size}, {options.threads} thread(s): decode {decoding:.2f}x, forward and backward {learning:.2f}x, largest difference {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
