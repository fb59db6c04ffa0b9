"""What a command costs beside its work: imports, loading, warm-up, in CPU seconds, next to `import torch` in the same run.

    python benchmarks/startup.py                        every command, on a clip of one second
    python benchmarks/startup.py reconstruct env        some of them

A process runs a command twice. What the first takes more than the second is beside the work. Of `export` the packages that
convert are imported before. Commands take turns with `import torch`, and the least of --rounds counts: what else the machine
does only adds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg

CHILD = """
import os, sys, time
before, *words = sys.argv[1:]
for name in before.split():
    __import__(name)
preloaded = time.process_time()
from turbovaed_cli.machine.imports import import_less
from turbovaed_cli.cli import main
import_less()

def run(number):
    sys.argv = ["turbovaed", *(word.replace("NUMBER", str(number)) for word in words)]
    with open(os.devnull, "w") as nowhere:
        shown, sys.stdout = sys.stdout, nowhere
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, ended.code
        finally:
            sys.stdout = shown

run(1)
first = time.process_time()
run(2)
print(first - preloaded, time.process_time() - first)
"""
TORCH = ["-c", "import time, torch; print(time.process_time(), 0)"]
CONVERTERS = "torch torch._dynamo torch.onnx onnx onnxscript onnxruntime"
# What is imported before, and the words of the command. One with NUMBER writes to another place each time.
COMMANDS = {
    "--help": ("", "--help"),
    "models": ("", "models"),
    "runs": ("", "runs"),
    "env": ("", "env"),
    "reconstruct": ("", "reconstruct clip.mp4 --out NUMBER.mp4 -q"),
    "eval": ("", "eval --data clips --frames 9 --size 64x64 -q"),
    "bench": ("", "bench --size 64x64 --frames 9 --target torch -q"),
    "export": (CONVERTERS, "export --format onnx --size 64x64 --frames 9 --out exported-NUMBER -q"),
}


def seconds_of(words: list[str], folder: str) -> tuple[float, float]:
    """Return the CPU seconds of the first run in a process beside its work, and of the work: the second run."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    made = subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    first, again = map(float, made.stdout.split()[-2:])
    return first - again, again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", default=[*COMMANDS])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    calls = {"import torch": TORCH}
    for name in options.commands:
        before, words = COMMANDS[name]
        calls[name] = ["-c", CHILD, before, *words.split()]
    with tempfile.TemporaryDirectory() as folder:
        clips, runs = Path(folder) / "clips", Path(folder) / "runs"
        clips.mkdir()
        runs.mkdir()
        drawn = ["-f", "lavfi", "-i", "testsrc2=size=256x256:rate=24:duration=1", "-pix_fmt", "yuv420p"]
        for place in (Path(folder) / "clip.mp4", clips / "clip.mp4"):
            subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *drawn, str(place)], check=True)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for number in range(options.rounds):
            for name, words in calls.items():
                for written in (*Path(folder).glob("[12].mp4"), *Path(folder).glob("exported-*/*")):
                    written.unlink()
                found[name].append(seconds_of(words, folder))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    torch_s = min(beside for beside, _ in found["import torch"])
    for name, seconds in found.items():
        beside, work = map(min, zip(*seconds, strict=True))
        print(f"{name:14} {beside:6.2f} s of CPU beside its work ({work:.2f} s), {beside - torch_s:+.2f} s to `import torch`")


if __name__ == "__main__":
    main()
