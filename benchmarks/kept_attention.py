"""The error of encoding a long video with HunyuanVideo 1.5, whose attention sees the last frames only from 126 frames on.

    python benchmarks/kept_attention.py [--frames 189] [--size 64] [--seeds 3]

The network is a small one with random weights. Two videos are encoded: noise, and two still pictures with a cut between them,
which shows what a frame of the second loses when the first is no longer seen. Trained weights were not at hand.
"""

import argparse
from collections.abc import Iterator

import torch

from turbovaed_cli.models.encoding import encoded
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.teachers.hunyuan15 import HUNYUAN15, KEPT_FRAMES

SMALL = {"block_out_channels": [32, 32, 32, 64, 64], "layers_per_block": 1, "latent_channels": 4}


def small_teacher(seed: int) -> Teacher:
    """A small network of the class with random weights."""
    torch.manual_seed(seed)
    spec = HUNYUAN15.teacher
    return Teacher(spec.family.build({"_class_name": spec.class_name, **SMALL}), spec)


def videos(frames: int, size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The two videos (1, 3, T, H, W) in [-1, 1], by name."""
    yield "noise", torch.rand(1, 3, frames, size, size) * 2 - 1
    first, second = (torch.rand(1, 3, 1, size, size) * 2 - 1 for _ in range(2))
    cut = frames // 2
    yield "cut", torch.cat([first.expand(-1, -1, cut, -1, -1), second.expand(-1, -1, frames - cut, -1, -1)], dim=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=189)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("seed  video   first 32 latents: max   later: RMS, of the standard deviation   max")
    for seed in range(options.seeds):
        teacher = small_teacher(seed)
        for name, video in videos(options.frames, options.size):
            whole = teacher.posterior(video).mean
            error = torch.cat(list(encoded(teacher, [video])), dim=2) - whole
            early, late = error[:, :, :KEPT_FRAMES].abs().max(), error[:, :, KEPT_FRAMES:]
            share = late.pow(2).mean().sqrt() / whole.std()
            print(f"{seed:4}  {name:6}  {early:22.1e}  {share:38.2%}  {late.abs().max():.4f}", flush=True)


if __name__ == "__main__":
    main()
