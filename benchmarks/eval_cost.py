"""CPU seconds of an evaluation: five clips with every metric of this machine, the test card, and each metric over decoding.

    python benchmarks/eval_cost.py --data DIR [--clips 5] [--limit 180] [--no-commands]

First each metric alone, in this process: all clips through the teacher's encoder and both decoders, then one metric after the other on the
same clips, teacher and student. The ratio is to that decoding. Then the two commands as a user starts them, with the start of Python; `--no-commands`
leaves them out. CPU seconds are those of user and system, of this process and of the ffmpeg that it starts.
Ends with 1 if the two commands take more than `--limit` CPU seconds.
"""

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from turbovaed_cli import load_pair
from turbovaed_cli.evaluation.decoding import decode_clip
from turbovaed_cli.evaluation.measurable import open_gauges
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.video import list_videos, read_clip_uint8, to_model

Result = TypeVar("Result")


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def cost(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return what `work` returns, and its CPU seconds."""
    before = cpu_seconds()
    result = work()
    return result, cpu_seconds() - before


def metric_costs(videos: list[Path], settings: EvalSettings) -> tuple[float, dict[str, float]]:
    """Return the CPU seconds of decoding the clips, and of each metric on all of them, teacher and student."""
    pair, device = load_pair("tiny"), torch.device("cpu")
    gauges = open_gauges(settings, device, len(videos))
    alone = {name: replace(gauges, per_clip={name: measure}) for name, measure in gauges.per_clip.items()}
    decoding, costs = 0.0, dict.fromkeys(alone, 0.0)
    for path in videos:
        source = read_clip_uint8(path, settings.frames, settings.size)
        decoded, seconds = cost(lambda source=source: decode_clip(source, pair))  # type: ignore[misc]
        decoding += seconds
        original, *clips = (to_model(frames) for frames in (source, *decoded) if frames is not None)
        for name, one in alone.items():
            costs[name] += cost(lambda one=one, clips=clips, original=original: one.scores(clips, original))[1]  # type: ignore[misc]
    return decoding, costs


def command_costs(data: Path) -> dict[str, float]:
    """Return the CPU seconds of `eval` on the clips and of its test card, each in a process of its own."""
    program = [sys.executable, "-m", "turbovaed_cli", "eval", "-q"]
    commands = {f"eval --data ({len(list_videos(data))} videos)": ["--data", str(data)], "eval --testcard": ["--testcard"]}
    return {
        name: cost(lambda words=words: subprocess.run([*program, *words], check=True, stdout=subprocess.DEVNULL))[1]  # type: ignore[misc]
        for name, words in commands.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--clips", type=int, default=5, help="one of each video, at most this many")
    parser.add_argument("--limit", type=float, default=180, help="CPU seconds of both commands")
    parser.add_argument("--commands", action=argparse.BooleanOptionalAction, default=True, help="run the commands too")
    options = parser.parse_args()
    videos = list_videos(options.data)[: options.clips]
    settings = EvalSettings()
    decoding, costs = metric_costs(videos, settings)
    size = f"{settings.frames}x{settings.size[0]}x{settings.size[1]}"
    print(f"{len(videos)} clips of {size}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}")
    print(f"{'encode and decode':24} {decoding:6.1f} CPU s")
    for name, seconds in costs.items():
        print(f"{name:24} {seconds:6.1f} CPU s  {seconds / decoding:5.2f} of decoding", flush=True)
    if not options.commands:
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in videos:
            (Path(folder) / path.name).symlink_to(path.resolve())
        found = command_costs(Path(folder))
    for name, seconds in found.items():
        print(f"{name:24} {seconds:6.1f} CPU s")
    total = sum(found.values())
    print(f"{'both':24} {total:6.1f} CPU s, {total / options.limit:.2f} of the limit of {options.limit:g}")
    sys.exit(total > options.limit)


if __name__ == "__main__":
    main()
