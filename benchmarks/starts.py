"""What each start of a student is worth before any training: one network, cut from its teacher or fitted to some clips.

    python benchmarks/starts.py --teacher tiny --latents build/tiny --val build/tiny-val [--shares 1 0.75 0.5 0.25]

The network has the layout of the teacher's decoder with that share of the channels (`distill --init prune:SHARE`). "cut" takes
the teacher's weights, "pruned" fits every layer as well (what `distill` does), "fitted" knows only the clips, as the start of
any student does. All see the first clips of the cache --latents. Prints the PSNR on the clips of --val, in dB, as a table.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from recipes import decode
from torch import Tensor

from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.decoding import num_params_of
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.training.first_clips import NUM_CLIPS
from turbovaed_cli.training.fitted_start import fit_start
from turbovaed_cli.training.pruned_start import prune_start, pruned_config

Clips = Sequence[tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25])
    options = parser.parse_args()
    teacher = load_teacher(find_model(options.teacher))
    clips, unseen = clips_of(options.latents, NUM_CLIPS), clips_of(options.val)
    starts: dict[str, Callable[[StudentDecoder], None]] = {
        "cut": lambda student: prune_start(student, teacher, clips, fits=False),
        "pruned": lambda student: prune_start(student, teacher, clips),
        "fitted": lambda student: fit_start(student, clips),
    }
    print(f"| share | parameters | {' | '.join(starts)} |\n|---|---|{'---|' * len(starts)}")
    for share in options.shares:
        cells = []
        for start in starts.values():
            torch.manual_seed(0)
            student = build_student({**pruned_config(teacher, share), "latent_channels": teacher.spec.latent_channels})
            start(student)
            cells.append(f"{psnr_of(student, unseen):.1f}")
        print(f"| {share:g} | {num_params_of(student) / 1e6:.2f} M | {' | '.join(cells)} |", flush=True)


def clips_of(folder: Path, most: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return the first clips of a cache: posterior means (1, C, t, h, w) and videos (1, 3, T, H, W) in [-1, 1]."""
    cache = LatentCache(folder)
    parts = (cache.read(index) for index in range(len(cache))[:most])
    return [(mean[None], video[None]) for mean, _, video in parts]


@torch.inference_mode()
def psnr_of(student: StudentDecoder, clips: Clips) -> float:
    """Return the mean PSNR in dB of decodes rounded to 8 bits."""
    student.eval()
    return statistics.fmean(float(psnr(decode(student, mean[0]), video[0])) for mean, video in clips)


if __name__ == "__main__":
    main()
