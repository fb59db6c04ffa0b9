"""Fit the last two layers of a patch-4 student by least squares, and save it for `turbovaed distill --init`.

    python tools/fit_tail.py --model runs/tiny --latents cache --out build/fitted

The last norm keeps only the direction of a few channels, and SiLU is flat around -1.3: a student may settle with channels
stuck there, and then its colours lie in a plane. Here the channels in front of that norm are set to red, green, blue and a
constant, as well as the layer before allows, and the last convolution to what undoes norm and SiLU; training goes on from there.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.latents import LatentCache
from turbovaed_cli.models.layers import pad_time
from turbovaed_cli.models.student import StudentDecoder, load_student

CONSTANT = 1.5  # beside colours in [-1, 1]: large enough that the norm bends them little
RIDGE = 1e-4  # of the mean diagonal


def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """Weights (features, outputs) that take (N, features) to (N, outputs), slightly damped."""
    gram = inputs.T @ inputs
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, inputs.T @ targets)


def patches(x: Tensor) -> Tensor:
    """(N, C, h, w) to (N*h*w, C*9 + 1): every 3x3 neighbourhood, zero padded, and a one for the bias."""
    columns = functional.unfold(x, 3, padding=1).movedim(1, 2).flatten(0, 1)
    return torch.cat([columns, torch.ones(len(columns), 1)], dim=1).double()


@torch.no_grad()
def fit(student: StudentDecoder, cache: LatentCache, num_clips: int) -> None:
    inputs, outputs = [], []
    handles = [
        student.upsampler2d_2.register_forward_hook(lambda _m, args, _out: inputs.append(args[0])),
        student.conv_out.register_forward_hook(lambda _m, args, _out: outputs.append(args[0])),
    ]
    batches = [cache.batch_at(0, i, 1) for i in range(num_clips)]
    for batch in batches:
        student(batch.mean)
    gram_inputs, gram_targets = [], []
    for x, batch in zip(inputs, batches, strict=True):
        frames = batch.video[0].movedim(1, 0)  # (T, 3, H, W)
        wanted = torch.cat([frames, torch.full_like(frames[:, :1], CONSTANT)], dim=1)  # (T, 4, H, W)
        wanted = functional.pixel_unshuffle(wanted, 2)  # (T, 16, H/2, W/2)
        gram_inputs.append(patches(x[0].movedim(1, 0)))
        gram_targets.append(wanted.movedim(1, 3).reshape(-1, wanted.shape[1]).double())
    weights = least_squares(torch.cat(gram_inputs), torch.cat(gram_targets)).T.float()  # (16, C*9 + 1)
    convolution = student.upsampler2d_2.conv
    convolution.weight.copy_(weights[:, :-1].view_as(convolution.weight))
    convolution.bias.copy_(weights[:, -1])

    outputs.clear()
    for batch in batches:
        student(batch.mean)
    gram_inputs, gram_targets = [], []
    for x, batch in zip(outputs, batches, strict=True):
        padded = pad_time(x, 3)[0].movedim(1, 0)  # (T + 2, 4, H, W)
        taps = torch.cat([padded[:-2], padded[1:-1], padded[2:]], dim=1)  # (T, 12, H, W), tap by tap
        step = 4  # a sixteenth of the pixels says enough
        columns = functional.unfold(taps, 3, padding=1, stride=step).movedim(1, 2).flatten(0, 1)
        gram_inputs.append(torch.cat([columns, torch.ones(len(columns), 1)], dim=1).double())
        gram_targets.append(batch.video[0].movedim(0, 3)[:, ::step, ::step].reshape(-1, 3).double())
    weights = least_squares(torch.cat(gram_inputs), torch.cat(gram_targets)).T.float()  # (3, 12*9 + 1)
    convolution = student.conv_out.conv
    convolution.weight.copy_(
        weights[:, :-1].view(3, 3, x.shape[1], 3, 3).movedim(1, 2)
    )  # (3, taps, 4, 3, 3) -> (3, 4, taps, 3, 3)
    convolution.bias.copy_(weights[:, -1])
    for handle in handles:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=24)
    options = parser.parse_args()
    student, cache = load_student(options.model), LatentCache(options.latents)
    probe = [cache.batch_at(1, i, 1) for i in range(4)]

    def error() -> float:
        with torch.no_grad():
            return sum((student(batch.mean) - batch.video).abs().mean().item() for batch in probe) / len(probe)

    before = error()
    fit(student, cache, options.clips)
    print(f"L1 before {before:.4f}, after {error():.4f}")
    student.save_pretrained(options.out)


if __name__ == "__main__":
    main()
