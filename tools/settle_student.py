"""Fit the last convolution of a student again, so that its decode in bf16 stays close to that in fp32.

    python tools/settle_student.py runs/lite --latents build/mixed --out settled

Training in fp32 may leave large weights there that cancel each other, and rounding them then shows. The convolution is fitted to
what it returns already, with inputs as noisy as bf16 makes them. Some steps of distill with `--init settled` should follow:
the fit is least squares on some clips, and knows neither grid nor structure. Prints how close bf16 is, before and after, in dB.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.training.least_squares import at_places, fit_convolution, places_in

ROUNDING = 2**-8  # relative, of bf16: of inputs and weights together
SIDE = 16  # latents of a crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=str)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    student = load_student(options.run)
    latents = crops_of(LatentCache(options.latents), options.clips)
    print(f"bf16 over fp32 before: {closeness(student, latents):.1f} dB")
    settle(student, latents)
    print(f"bf16 over fp32 after: {closeness(student, latents):.1f} dB")
    student.save_pretrained(options.out)


def crops_of(cache: LatentCache, count: int) -> list[Tensor]:
    """Return the middles of clips all over a cache: posterior means (1, C, t, h, w)."""
    found = []
    for index in range(0, len(cache), max(len(cache) // count, 1)):
        mean = cache.read(index)[0]
        top, left = (max(side - SIDE, 0) // 2 for side in mean.shape[-2:])
        found.append(mean[None, ..., top : top + SIDE, left : left + SIDE])
    return found


@torch.no_grad()
def settle(student: StudentDecoder, latents: list[Tensor]) -> None:
    """Fit the last convolution, in place."""
    layer = student.conv_out
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_: object, given: tuple[Tensor], returned: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(returned)

    hook = layer.register_forward_hook(keep)
    for one in latents:
        student(one)
    hook.remove()
    generator = torch.Generator().manual_seed(0)
    places = [places_in(output.shape[2:], generator) for output in outputs]
    targets = [at_places(output, where) for output, where in zip(outputs, places, strict=True)]
    fit_convolution(layer.conv, inputs, places, targets, causal=layer.causal, ridge=1e-9, noise=ROUNDING)


@torch.inference_mode()
def closeness(student: StudentDecoder, latents: list[Tensor]) -> float:
    """Return the mean PSNR in dB of decodes with all weights in bf16 against those in fp32, of some clips."""
    some = latents[::8]
    exact = [student.decode(one).sample[0] for one in some]
    in_bf16 = copy.deepcopy(student).bfloat16()
    rounded = [in_bf16.decode(one.bfloat16()).sample[0].float() for one in some]
    return sum(float(psnr(a, b)) for a, b in zip(rounded, exact, strict=True)) / len(some)


if __name__ == "__main__":
    main()
