"""The predicted memory of encoding, before its margin, beside the measured peak of a process, on scaled-down teachers.

    python benchmarks/encode_memory.py                  every row of which tests/support/small_teachers.py has an instance
    python benchmarks/encode_memory.py hunyuan wan2.1

Channels are those of the small instances, times four; frames are large enough that activations outweigh everything else.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from small_teachers import SMALL, write_small_teacher

# Freed blocks go back to the system at once: the peak is that of what is alive, without fragments, which the margin is for.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
CHILD = """
import json, sys, torch
from pathlib import Path
from turbovaed_cli.models.encoding import encoded, piece_lengths
from turbovaed_cli.models.memory import encoding_bytes, held_bytes
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.models.tiles import Tiles

torch.set_num_threads(1)
folder, height, width, tile = sys.argv[1], *map(int, sys.argv[2:5])
teacher = load_teacher(folder)
size, tiles = (height, width), Tiles(tile, tile) if tile else None
frames = piece_lengths(teacher, 0)[0]
small = (2 * teacher.spec.space_ratio,) * 2
list(encoded(teacher, [torch.zeros(1, 3, 2 * frames + 1, *small)], frames))  # code of kernels, threads
with teacher.in_tiles(tiles):
    predicted = encoding_bytes(teacher, size, frames, tiles)
    Path("/proc/self/clear_refs").write_text("5")
    before = held_bytes(teacher.device)
    for _ in encoded(teacher, (torch.zeros(1, 3, frames, *size) for _ in range(3)), frames):
        pass
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
print(json.dumps([predicted, peak - before, frames]))
"""


def wider(config: dict[str, object], factor: int) -> dict[str, object]:
    """The config of an instance with `factor` times the channels."""
    widths = ("block_out_channels", "decoder_block_out_channels", "base_dim", "decoder_base_dim", "encoder_block_out_channels")
    return {
        name: [factor * one for one in value] if name in widths and isinstance(value, list)
        else factor * value if name in widths and isinstance(value, int) else value
        for name, value in config.items()
    }  # fmt: skip


def main() -> None:
    """Print predicted and measured megabytes, and their ratio, for whole frames and for tiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SMALL))
    parser.add_argument("--size", default="320x192")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/encode-memory"))
    options = parser.parse_args()
    width, height = options.size.split("x")
    for name in options.names:
        SMALL[name] = wider(SMALL[name], options.factor)
        folder = options.folder / name
        write_small_teacher(name, folder)
        for tile in ("0", "128"):
            command = [sys.executable, "-c", CHILD, str(folder), height, width, tile]
            made = subprocess.run(command, env=os.environ | AT_ONCE, capture_output=True, text=True, check=False)
            if made.returncode:
                print(f"{name:12} {made.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            predicted, measured, frames = json.loads(made.stdout.splitlines()[-1])
            what = f"tiles of {tile}" if tile != "0" else "whole frames"
            print(
                f"{name:12} {what:13} {frames:3} frames: predicted {predicted / 1e6:7.0f} MB, measured {measured / 1e6:7.0f} MB, "
                f"ratio {predicted / measured:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
