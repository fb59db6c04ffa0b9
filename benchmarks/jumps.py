"""What checking every jump costs: random clips by `read_frames` against the bare `ffmpeg -ss`, which checks nothing.

    python benchmarks/jumps.py [--rounds 9] [--frames 17] [--size 1280x720] [--to 256x256]

Draws a clip of closed GOPs in each codec. Both ways take turns at the same random frame. Prints the median of the ratios of one turn,
in seconds and in CPU seconds (of ffmpeg and of the reader), with the smallest and the largest.
"""

import argparse
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from turbovaed_cli.video import VideoInfo, ffmpeg, probe, read_frames
from turbovaed_cli.video.colour import SWS

LENGTH = 300  # frames
ENCODERS = {
    "h264.mp4": ["-c:v", "libx264", "-preset", "veryfast", "-g", "48"],
    "hevc.mp4": ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=48:open-gop=0"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "48", "-row-mt", "1"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--to", default="256x256")
    options = parser.parse_args()
    to = tuple(int(n) for n in options.to.split("x")[::-1])
    with tempfile.TemporaryDirectory() as folder:
        for name, encoder in ENCODERS.items():
            info = probe(drawn(Path(folder) / name, options.size, encoder))
            compare(name, info, options.frames, to, options.rounds)


def drawn(path: Path, size: str, encoder: list[str]) -> Path:
    source = f"testsrc2=size={size}:rate=25,noise=alls=12:allf=t"
    subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", str(LENGTH), "-pix_fmt", "yuv420p", *encoder, path],
        check=True,
    )  # fmt: skip
    return path


def compare(name: str, info: VideoInfo, frames: int, to: tuple[int, int], rounds: int) -> None:
    """Both ways in turns at the same frame; the first round only warms up."""
    ratios: list[tuple[float, float]] = []
    rng = random.Random(name)  # noqa: S311 - reproducible, not secret  # noqa: S311 - reproducible, not secret
    for turn in range(rounds + 1):
        start = rng.randrange(info.num_frames - frames)
        ways: list[Callable[[], int]] = [lambda s=start: checked(info, s, frames, to), lambda s=start: bare(info, s, frames, to)]  # type: ignore[misc]
        costs = [cost(way) for way in ways[:: 1 if turn % 2 else -1]][:: 1 if turn % 2 else -1]
        if turn:
            ratios.append((costs[0][0] / costs[1][0], costs[0][1] / costs[1][1]))
    for kind, found in zip(("seconds", "CPU seconds"), zip(*ratios, strict=True), strict=True):
        print(
            f"{name:10} {frames} frames: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) times the {kind} of ffmpeg -ss"
        )


def checked(info: VideoInfo, start: int, frames: int, to: tuple[int, int]) -> int:
    return sum(frame.nbytes for frame in read_frames(info, start=start, count=frames, size=to))


def bare(info: VideoInfo, start: int, frames: int, to: tuple[int, int]) -> int:
    scale = f"scale={to[1]}:{to[0]}:force_original_aspect_ratio=increase:flags={SWS},crop={to[1]}:{to[0]}"
    raw = subprocess.run(
        [
            ffmpeg.executable(), "-v", "error", "-ss", f"{info.times_s[start]:.6f}", "-i", info.path, "-frames:v", str(frames), "-vf", scale,
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-",
        ],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    return len(raw)


def cost(way: Callable[[], int]) -> tuple[float, float]:
    """(seconds, CPU seconds)."""
    began, before = time.perf_counter(), cpu_seconds()
    way()
    return time.perf_counter() - began, cpu_seconds() - before


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
