"""A long video with sound through `reconstruct`, killed once half-way: memory, frames and sound at the end.

    python tools/soak.py                                    10 minutes of 640x360 with the lite student, an hour on two cores
    python tools/soak.py --minutes 0.2 --size 128x128       the same code, small

The video is drawn: every two seconds a square flashes for a tenth of a second, and a tone sounds with it. One run goes to its
end; another is killed on the way, and a third one of a short video follows in the same folder, after which nothing
half-written may be left. Prints a line for each check: the peak memory of the first and the last minute, frames, and how far the
last tones are from their flashes. Ends with 1 if one fails. Linux, where a process tells its memory.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from turbovaed_cli.video import ffmpeg

RATE = 24  # frames a second
TONE_RATE = 8000  # samples a second that tones are looked for in
EVERY_S, FLASH_S = 2, 0.1
WARM_UP_S = 20  # of the run before memory counts: imports, plan, first pieces
LARGEST_GROWTH, LARGEST_DRIFT_S = 0.05, 0.020


@dataclass(frozen=True)
class Run:
    """What was seen of one process: its exit code, and its memory in bytes by seconds since its start."""

    code: int
    memory: list[tuple[float, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--model", default="tiny-lite")
    parser.add_argument("--kill-after", type=float, metavar="SECONDS", help="of the killed run; default: half of the whole one's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checks = soak(Path(folder), options)
    for name, good, words in checks:
        print(f"{'ok' if good else 'FAILED':7} {name}: {words}")
    sys.exit(0 if all(good for _, good, _ in checks) else 1)


def soak(folder: Path, options: argparse.Namespace) -> list[tuple[str, bool, str]]:
    """Return the name, the success and the figures of every check."""
    source, made = folder / "in.mp4", folder / "out.mp4"
    draw(source, options.size, options.minutes * 60)
    whole = reconstruct(source, made, options.model)
    seconds = whole.memory[-1][0]
    early, late = ends_of(whole.memory)
    frames, got = count_frames(source), count_frames(made)
    before, after = delay_at_end(source), delay_at_end(made)
    until = options.kill_after or seconds / 2
    killed, left = _killed(folder, source, options, until)
    memory = f"{early / 1e6:.0f} MB at first, {late / 1e6:.0f} MB in the end ({late / early - 1:+.1%})"
    sound = f"the last tones come {1e3 * before:+.0f} ms after their flashes, {1e3 * after:+.0f} ms in the output"
    return [
        ("run", whole.code == 0, f"exit code {whole.code}, {seconds / 60:.1f} minutes"),
        ("memory", late <= early * (1 + LARGEST_GROWTH), memory),
        ("frames", got == frames, f"{got} of {frames}"),
        ("sound", abs(after - before) <= LARGEST_DRIFT_S, sound),
        ("killed", killed and not left, f"after {until:.0f} s; left: {', '.join(left) or 'nothing'}"),
    ]


def draw(path: Path, size: str, seconds: float) -> None:
    """Write a video of moving colours with flashes and tones."""
    now = f"lt(mod(t\\,{EVERY_S})\\,{FLASH_S})"
    square = "drawbox=x=0:y=0:w=iw/4:h=ih/4:t=fill"
    picture = f"testsrc2=size={size}:rate={RATE}:duration={seconds},{square}:color=black,{square}:color=white:enable='{now}'"
    tone = f"aevalsrc='0.5*sin(2*PI*880*t)*{now}':sample_rate=48000:duration={seconds}"
    inputs = [word for drawn in (picture, tone) for word in ("-f", "lavfi", "-i", drawn)]
    _ffmpeg(*inputs, "-pix_fmt", "yuv420p", "-preset", "veryfast", "-c:a", "aac", str(path))


def reconstruct(source: Path, made: Path, model: str, *, kill_after: float | None = None) -> Run:
    """Run the command and sample its memory twice a second; with `kill_after`, kill it after that many seconds."""
    words = ["reconstruct", str(source), "--out", str(made), "--model", model, "-q"]
    began = time.monotonic()
    memory = []
    with subprocess.Popen([sys.executable, "-m", "turbovaed_cli", *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory.append((time.monotonic() - began, resident_bytes(process.pid)))
            if kill_after is not None and memory[-1][0] > kill_after:
                process.kill()
            time.sleep(0.5)
    return Run(process.returncode, memory)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process; 0 once it has ended."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    line = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) * 1024


def _killed(folder: Path, source: Path, options: argparse.Namespace, seconds: float) -> tuple[bool, list[str]]:
    """Return whether a killed run left no output and the next one made its own, and what else they left in the folder."""
    short, killed, following = folder / "short.mp4", folder / "killed.mp4", folder / "next.mp4"
    draw(short, options.size, 2)
    before = set(folder.iterdir())
    run = reconstruct(source, killed, options.model, kill_after=seconds)
    is_good = run.code < 0 and not killed.exists() and reconstruct(short, following, options.model).code == 0
    return is_good, sorted(path.name for path in set(folder.iterdir()) - before - {following})


def ends_of(memory: list[tuple[float, int]]) -> tuple[int, int]:
    """Return the peak memory of the first minute after the start, and of the last one; of a short run, of its thirds."""
    last = memory[-1][0]
    warm = min(WARM_UP_S, last / 3)
    length = min(60.0, (last - warm) / 2)
    early = max(held for at, held in memory if warm <= at <= warm + length)
    return early, max(held for at, held in memory if at >= last - length)


def count_frames(path: Path) -> int:
    """Return the number of frames that ffmpeg decodes."""
    corners = "crop=2:2:0:0,format=gray"
    return len(_ffmpeg("-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", corners, "-f", "rawvideo", "-")) // 4


def delay_at_end(path: Path) -> float:
    """Return by how many seconds the last five tones begin after their flashes, in the median."""
    corner = _ffmpeg(
        "-i",
        str(path),
        "-map",
        "0:v:0",
        "-vf",
        f"fps={RATE}:start_time=0,crop=iw/8:ih/8:0:0,scale=1:1,format=gray",
        "-f",
        "rawvideo",
        "-",
    )
    sound = _ffmpeg(
        "-i",
        str(path),
        "-map",
        "0:a:0",
        "-af",
        "aresample=async=1:first_pts=0",
        "-ac",
        "1",
        "-ar",
        str(TONE_RATE),
        "-f",
        "f32le",
        "-",
    )
    flashes = _begins(np.frombuffer(corner, np.uint8) > 128) / RATE
    loud = np.convolve(np.abs(np.frombuffer(sound, np.float32)), np.ones(40) / 40, "same") > 0.1
    tones = _begins(loud) / TONE_RATE
    return statistics.median(float(tones[np.abs(tones - flash).argmin()] - flash) for flash in flashes[-5:])


def _begins(on: np.ndarray) -> np.ndarray:
    """Return where a signal goes on, but for signals that are on from the start."""
    return np.flatnonzero(on[1:] & ~on[:-1]) + 1


def _ffmpeg(*words: str) -> bytes:
    return subprocess.run([ffmpeg.executable(), "-v", "error", "-y", *words], check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
