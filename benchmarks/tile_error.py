"""What encoding in tiles changes: latents of tiles beside those of whole frames, per class, on small instances and the embedded teacher.

    python benchmarks/tile_error.py [tiny hunyuan wan2.1 ...] [--size 640x384] [--tile 256] [--overlap 64]

Instances of tests/support/small_teachers.py with random weights; `tiny` is the embedded teacher with its own. The video is smoothed
noise of one group of frames. Errors are in standard deviations of the latents: RMS over all, and the largest. "exact" is for a class
whose encoder sees a finite distance, with the overlap that it needs; "fading" is with `--overlap`, as for a class that sees all.
"""

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from encode import smoothed
from encode_memory import SMALL, write_small_teacher
from torch import Tensor

from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.models.tiles import Tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["tiny", *SMALL])
    parser.add_argument("--size", default="640x384", help="width x height")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    print(f"{'teacher':14} {'reach':>6} {'tiles':10} {'RMS':>9} {'largest':>9}")
    with TemporaryDirectory() as folder:
        for name in options.names:
            teacher = load_teacher(name if name == "tiny" else write_small_teacher(name, Path(folder) / name))
            spec, reach = teacher.spec, teacher.family.reach(teacher.vae)
            video = smoothed(spec.frames.at_least(spec.pixel_frames(2)), height, width)
            whole = teacher.encode(video).mean
            ways = {"fading": Tiles(options.tile, options.tile, options.overlap)}
            if reach is not None:
                reach = math.ceil(reach / spec.space_ratio) * spec.space_ratio
                side = max(options.tile, 2 * reach + spec.space_ratio)
                ways = {"exact": Tiles(side, side, 2 * reach, reach)} | ways
            for way, tiles in ways.items():
                rms, largest = errors(teacher, video, whole, tiles)
                print(f"{name:14} {'all' if reach is None else reach:>6} {way:10} {rms:9.1e} {largest:9.1e}", flush=True)


@torch.no_grad()
def errors(teacher: Teacher, video: Tensor, whole: Tensor, tiles: Tiles) -> tuple[float, float]:
    with teacher.in_tiles(tiles):
        difference = (teacher.encode(video).mean - whole) / whole.std()
    return float(difference.square().mean().sqrt()), float(difference.abs().max())


if __name__ == "__main__":
    main()
