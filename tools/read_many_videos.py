"""Read many videos, given and generated, and print for each whether it was read right, refused with a reason, or wrong.

    python tools/read_many_videos.py FOLDER ... --total 200 --seed 1

Each is probed, read whole, and read from ten starts. Right is: as many frames as a plain ffmpeg decodes, at its timestamps, the
same picture within what colour conversion explains, and from every start the frames of the whole read, by hash. What a folder
lacks of --total is drawn by ffmpeg from the seed: codec, container, GOP, rate, size, pixel format, fields, cuts. Ends with 1 if
anything was wrong.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.video import VIDEO_SUFFIXES, VideoInfo, ffmpeg, probe, read_frames

NUM_STARTS = 10
MOST_PIXELS = 400 * 300  # larger frames are read scaled down: all of them are kept for comparison
ENCODERS = {
    "libx264": ["-preset", "veryfast"], "libx265": ["-preset", "ultrafast", "-x265-params", "log-level=none"],
    "libvpx": ["-deadline", "realtime", "-b:v", "400k"], "libvpx-vp9": ["-deadline", "realtime", "-cpu-used", "8"],
    "libaom-av1": ["-usage", "realtime", "-cpu-used", "9"], "mpeg4": ["-q:v", "4"], "mpeg2video": ["-q:v", "4"],
    "mjpeg": ["-q:v", "4"], "prores_ks": [], "ffv1": [], "msmpeg4": ["-q:v", "4"], "flv1": ["-q:v", "4"], "libtheora": ["-q:v", "7"],
}  # fmt: skip
HELD = {
    ".mp4": ("libx264", "libx265", "libvpx-vp9", "libaom-av1", "mpeg4", "mjpeg"), ".mov": ("libx264", "libx265", "prores_ks", "mjpeg", "mpeg4"),
    ".mkv": ("libx264", "libx265", "libvpx", "libvpx-vp9", "libaom-av1", "mpeg4", "mpeg2video", "mjpeg", "prores_ks", "ffv1"),
    ".webm": ("libvpx", "libvpx-vp9", "libaom-av1"), ".avi": ("libx264", "mpeg4", "mjpeg", "msmpeg4", "ffv1"),
    ".ts": ("libx264", "libx265", "mpeg2video"), ".mts": ("libx264",), ".m2ts": ("libx264", "mpeg2video"), ".mpg": ("mpeg2video",),
    ".flv": ("flv1", "libx264"), ".wmv": ("msmpeg4",), ".ogv": ("libtheora",), ".3gp": ("libx264", "mpeg4"),
}  # fmt: skip
RATES = ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60", "120")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--total", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    given = sorted(path for folder in options.folders for path in folder.rglob("*") if path.name.lower().endswith(VIDEO_SUFFIXES))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as room:
        for name, path in with_generated(given, options.total, options.seed, Path(room)):
            verdict, words = judged(path, random.Random(name))
            counts[verdict] += 1
            print(f"{verdict:8} {name}: {words}", flush=True)
            if path.is_relative_to(room):
                path.unlink()
    print(
        f"\nseed {options.seed}: {counts.total()} files, {counts['right']} right, {counts['refused']} refused, {counts['wrong']} wrong"
    )
    sys.exit(1 if counts["wrong"] else 0)


def with_generated(given: list[Path], total: int, seed: int, room: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every video: those given, then drawn ones up to `total`."""
    yield from ((str(path), path) for path in given)
    made, number = len(given), 0
    while made < total:
        number += 1
        name, path = generated(random.Random(f"{seed}.{number}"), room, f"{seed}.{number}")
        if path is not None:
            made += 1
            yield name, path


def generated(rng: random.Random, room: Path, label: str) -> tuple[str, Path | None]:
    """A video drawn from `rng`; None if this ffmpeg cannot write it."""
    suffix = rng.choice(list(HELD))
    encoder = rng.choice(HELD[suffix])
    rate, frames = rng.choice(RATES), rng.randint(8, 90)
    width, height = rng.choice([(64, 48), (96, 54), (51, 37), (128, 96), (320, 240), (1280, 720)])
    if encoder not in ("libx264", "ffv1") or suffix == ".3gp":
        width, height = width - width % 2, height - height % 2
    filters, options = [f"testsrc2=size={width}x{height}:rate={rate}", "noise=alls=12:allf=t"], [*ENCODERS[encoder]]
    words = [f"{width}x{height}", rate, f"{frames} frames"]
    gop = rng.choice([1, 5, 12, 48, 250])
    words.append(f"gop {gop}")
    options += ["-g", str(gop)]
    if encoder == "libx264":
        structure = rng.choice(["closed", "open-gop=1", "intra-refresh=1", "bframes=0", "bframes=8:b-pyramid=normal"])
        options += [
            "-x264-params",
            structure if structure != "closed" else "bframes=2",
            "-pix_fmt",
            "yuv444p" if width % 2 else "yuv420p",
        ]
        words.append(structure)
    elif encoder in ("mpeg4", "mpeg2video"):
        options += ["-bf", str(rng.choice([0, 2]))]
    if rng.random() < 0.25 and suffix in (".mp4", ".mkv", ".mov", ".webm", ".ts") and encoder != "prores_ks":
        gap = rng.choice(["if(mod(N,5),0,0.4/25/TB)", "N*N/3000/TB", "if(gt(N,6),0.5/TB,0)"])
        filters.append(f"setpts='PTS+{gap}'")
        options += ["-enc_time_base", "1:90000"]
        words.append("variable")
    if rng.random() < 0.15 and encoder in ("libx264", "mpeg2video") and width > 100:
        filters += ["tinterlace=interleave_top", "setfield=tff"]
        options += ["-flags", "+ildct+ilme"]
        words.append("interlaced")
    if suffix in (".mp4", ".mov") and rng.random() < 0.3:
        options += ["-movflags", "+frag_keyframe+empty_moov"]
        words.append("fragmented")
    sound = rng.random() < 0.3 and suffix in (".mp4", ".mkv", ".mov", ".ts")
    late = rng.random() < 0.5
    inputs = ["-f", "lavfi", "-i", ",".join(filters)]
    if sound:
        inputs = [*(["-itsoffset", "0.7"] if late else []), *inputs, "-f", "lavfi", "-i", "sine=duration=1"]
        words.append("late picture" if late else "sound")
    path = room / f"{label}{suffix}"
    if not ran(*inputs, "-frames:v", frames, "-fps_mode", "passthrough", "-c:v", encoder, *options, path):
        return label, None
    if rng.random() < 0.2 and suffix in (".mp4", ".mkv", ".mov", ".ts"):
        cut = path.with_stem(f"{label}-cut")
        start = rng.uniform(0.05, 0.5) * frames / float(Fraction(rate))
        if ran("-ss", f"{start:.3f}", "-i", path, "-map", "0", "-c", "copy", cut):
            path.unlink()
            path = cut
            words.append(f"cut at {start:.3f} s")
    return f"{label} {encoder} {suffix} ({', '.join(words)})", path


def ran(*arguments: object) -> bool:
    return (
        subprocess.run(
            [ffmpeg.executable(), "-v", "error", "-y", *map(str, arguments)], capture_output=True, check=False
        ).returncode
        == 0
    )


def judged(path: Path, rng: random.Random) -> tuple[str, str]:
    """right, refused or wrong, and why."""
    try:
        info = probe(path)
        frames = hashes(info)
    except TurboVaedError as error:
        return "refused", error.what.removeprefix(f"{path}: ")
    if reason := next(mistakes(path, info, frames, rng), None):
        return "wrong", reason
    rate = f"{float(info.fps):.3f} a second" if info.has_constant_rate else "variable rate"
    return "right", "; ".join([f"{len(frames)} frames of {info.width}x{info.height}, {rate}", *info.notes])


def hashes(info: VideoInfo, **where: int) -> list[str]:
    """A hash of every frame; large ones are read scaled down."""
    size = {} if info.width * info.height <= MOST_PIXELS else {"size": (90, 160)}
    return [
        hashlib.md5(frame.tobytes(), usedforsecurity=False).hexdigest()
        for frame in read_frames(info, square_pixels=False, **size, **where)
    ]


def mistakes(path: Path, info: VideoInfo, frames: list[str], rng: random.Random) -> Iterator[str]:
    """What is wrong with how a video was read."""
    times = plain_times(path, info)
    if len(times) != len(frames):
        yield f"{len(frames)} frames, ffmpeg decodes {len(times)}"
    shift = [float(tick * info.time_base) - time for tick, time in zip(info.ticks, sorted(times), strict=False)]
    if max(shift) - min(shift) > 0.0011:
        yield f"timestamps differ by {max(shift) - min(shift):.4f} s"
    if (error := picture_error(path, info)) > 3:
        yield f"the picture differs by {error:.1f} of 255"
    for start in sorted(rng.sample(range(len(frames)), min(NUM_STARTS, len(frames)))):
        count = min(3, len(frames) - start)
        try:
            if hashes(info, start=start, count=count) != frames[start : start + count]:
                yield f"from frame {start}, other frames come"
        except TurboVaedError as error:
            yield f"from frame {start}: {error.what.removeprefix(f'{path}: ')}"


def plain_times(path: Path, info: VideoInfo) -> list[float]:
    """When a plain ffmpeg shows each frame, in seconds."""
    found = subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-i", path, "-map", f"0:{info.track_index}", "-fps_mode", "passthrough", "-enc_time_base", "demux",
         "-c:v", "wrapped_avframe", "-f", "framecrc", "-"],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    base = next(Fraction(line.split(":")[1].strip()) for line in found if line.startswith("#tb"))
    return [float(int(line.split(",")[2]) * base) for line in found if not line.startswith("#")]


def picture_error(path: Path, info: VideoInfo) -> float:
    """Mean difference between our first frame and ffmpeg's plain conversion of it; 0 if the colours are converted on purpose.

    Of blocks of 8x8 pixels: plain conversion repeats chroma, ours interpolates it.
    """
    if info.notes or not info.colour.is_matrix_stated:
        return 0.0
    raw = subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-i", path, "-map", f"0:{info.track_index}", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    ours = next(read_frames(info, square_pixels=False)).astype(float)
    difference = (ours - np.frombuffer(raw, np.uint8).reshape(ours.shape))[: ours.shape[0] // 8 * 8, : ours.shape[1] // 8 * 8]
    return float(np.abs(difference.reshape(-1, 8, ours.shape[1] // 8, 8, 3).mean((1, 3))).mean())


if __name__ == "__main__":
    main()
