"""Peak memory of `turbovaed reconstruct` on a short and a long stretch of the same video, and their ratio.

python benchmarks/reconstruct_memory.py [--size 128x96] [--frames 240 1440]      10 and 60 seconds of 24 frames
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from turbovaed_cli.video import ffmpeg


def peak_mb(arguments: list[str]) -> float:
    """Highest resident memory of one child, in MB, as the system counted it."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "turbovaed_cli", *arguments], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"turbovaed {' '.join(arguments)} failed")
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128x96")
    parser.add_argument("--frames", type=int, nargs=2, default=(240, 1440))
    args = parser.parse_args()
    size, (short, long) = args.size, args.frames
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for frames in (short, long):
            source, out = Path(folder) / f"{frames}.mp4", Path(folder) / f"{frames}-out.mp4"
            generator = f"testsrc2=size={size}:rate=24"
            subprocess.run(
                [ffmpeg.executable(), "-v", "error", "-f", "lavfi", "-i", generator, "-frames:v", str(frames), "-pix_fmt", "yuv420p", source],
                check=True,
            )  # fmt: skip
            peaks.append(peak_mb(["reconstruct", str(source), "--out", str(out), "-q"]))
            print(f"{frames:5} frames of {size}: peak {peaks[-1]:.0f} MB", flush=True)
        print(f"{long} / {short} frames: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
