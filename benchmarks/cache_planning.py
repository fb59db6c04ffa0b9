"""Time and memory of `cache-latents` on very many videos: of a rerun that plans all of them and finds nothing to do.

    python benchmarks/cache_planning.py --videos 100000

Every video is one tiny clip: a real file, made from one by a box that players skip. Encoding so many would take hours, so the
finished cache is written by the classes that write real ones, with zeros for latents; the commands that are timed are real.
The ratios are against a hundredth as many videos, in the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from turbovaed_cli.latents.cache import ClipSource
from turbovaed_cli.latents.caching import CacheSettings
from turbovaed_cli.latents.parts import KnownVideo, claim, num_parts, part_of, write_listing
from turbovaed_cli.latents.planning import made_by
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.video import ffmpeg
from turbovaed_cli.video.sources import LocalVideos

CLIP = CacheSettings(frames=1, size=(16, 16))
COMMAND = [
    sys.executable,
    "-m",
    "turbovaed_cli",
    "cache-latents",
    "--frames",
    "1",
    "--size",
    "16",
    "-q",
    "--json",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100_000)
    options = parser.parse_args()
    rows = []
    for count in (options.videos // 100, options.videos):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), count))
            print(
                ", ".join(
                    f"{name} {value:,.2f}" if isinstance(value, float) else f"{name} {value:,}"
                    for name, value in rows[-1].items()
                )
            )
    few, many = rows
    print(
        f"rerun, nothing to do: {many['rerun_s']:.1f} s, {many['rerun_s'] / few['rerun_s']:.2f} of the time and "
        f"{many['rerun_mb'] / few['rerun_mb']:.2f} of the memory of a hundredth as many videos"
    )
    print(f"planning alone, without what the command takes to start: {many['rerun_s'] - few['rerun_s']:.1f} s")


def measure(folder: Path, count: int) -> dict[str, float]:
    data, out = folder / "videos", folder / "latents"
    make_videos(data, count)
    fill(data, out)
    began = time.monotonic()
    found, rerun_mb = run([*COMMAND, "--data", str(data), "--out", str(out)])
    rerun_s = time.monotonic() - began
    assert (found["encoded"], found["found"]) == (0, count), found
    return {"videos": count, "rerun_s": rerun_s, "rerun_mb": rerun_mb}


def make_videos(data: Path, count: int) -> None:
    data.mkdir()
    first = data / "first.mp4"
    drawn = ["-f", "lavfi", "-i", "testsrc2=size=32x32:rate=25", "-frames:v", "1", "-pix_fmt", "yuv420p"]
    subprocess.run([ffmpeg.executable(), "-v", "error", "-y", *drawn, str(first)], check=True)
    content = first.read_bytes()
    first.unlink()
    for number in range(count):
        place = data / f"{number % 100:02}"
        place.mkdir(exist_ok=True)
        (place / f"{number:07}.mp4").write_bytes(content + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))


def fill(data: Path, out: Path) -> None:
    """The finished cache."""
    videos, teacher = LocalVideos(data), load_teacher("tiny")
    shape = teacher.encode(torch.zeros(1, 3, 1, 16, 16)).mean[0].shape
    latents, pixels = torch.zeros(shape), torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    parts = num_parts(len(videos.names), 1)
    of_part: dict[int, list[str]] = {}
    for name in videos.names:
        of_part.setdefault(part_of(name, parts), []).append(name)
    with CacheWriter(out, made_by(teacher, CLIP), CLIP.shard_mb, parts) as writer:
        write_listing(out, len(videos.names))
        for number, names in sorted(of_part.items()):
            part = claim(out, number)
            assert not isinstance(part, str)
            for name in names:
                known = KnownVideo(videos.stamp(name), name.encode().hex().ljust(64, "0"), 1)
                part.videos[name] = known
                clip = ClipSource(videos.shown(name), known.sha256, 0, 1, 1, CLIP.size)
                writer.add_all([(clip, latents.clone(), latents[:1].clone(), pixels.clone())], number)
            part.close()


def run(command: list[str]) -> tuple[dict[str, int], float]:
    """Its JSON, and the most memory it had, in MB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return json.loads(text), usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
