"""What stopping the teacher's decode behind the last tap saves: seconds and FLOPs beside the full decode, in the same run.

    python benchmarks/truncated_features.py [ltx hunyuan cogvideox video-dc-ae tiny FOLDER] [--frames 17] [--size 128]

Full-size teachers with random weights; the embedded one, and one in a folder, with their own. Needs a few GB of memory for the large ones.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.specs import ModelSpec


def random_teacher(spec: ModelSpec) -> Teacher:
    if spec.teacher.path is not None:
        return load_teacher(spec)
    return Teacher(spec.teacher.family.build(spec.teacher.config), spec.teacher)


def cost(call: Callable[[], object]) -> tuple[float, float]:
    """(least seconds of three, GFLOP)."""
    with FlopCounterMode(display=False) as counter:
        call()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds), counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["tiny", "ltx"])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    for name in options.names:
        spec = find_model(name)
        teacher = random_teacher(spec)
        frames = spec.teacher.latent_frames(spec.teacher.frames.at_least(options.frames))
        cells = options.size // spec.teacher.space_ratio
        latents = torch.randn(1, spec.teacher.latent_channels, frames, cells, cells)
        taps = [pair.teacher_tap for pair in spec.student.pairs]
        full = cost(lambda teacher=teacher, latents=latents: teacher.decode_by_class(latents))
        cut = cost(lambda teacher=teacher, latents=latents, taps=taps: teacher.features(latents, taps))
        print(
            f"{name:12} full {full[0]:.2f} s, {full[1]:.0f} GFLOP; up to the last tap {cut[0]:.2f} s, {cut[1]:.0f} GFLOP: {full[0] / cut[0]:.1f}x faster, {cut[1] / full[1]:.1%} of the FLOPs",
            flush=True,
        )


if __name__ == "__main__":
    main()
