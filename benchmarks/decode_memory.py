"""The memory in which each registry student decodes 121 frames of 1280x704 exactly, and how good the prediction is.

    python benchmarks/decode_memory.py [ltx wan2.1 ...]            the table of docs/decode-memory.md, by rehearsal
    python benchmarks/decode_memory.py --write                     writes it there
    python benchmarks/decode_memory.py --measure [ltx ...]         predicted and measured peak of a process on this CPU, fp32

The rehearsal is the product's own (models/memory.py): the same code on tensors without data, at full size, with the bytes alive at
once added up. A promise is the memory that `--memory` needs: weights, the rehearsed peak with its margin, and the process.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.memory import decoding_bytes, pixels_per_piece, with_margin
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "decode-memory.md"
HEIGHT, WIDTH, FRAMES = 704, 1280, 121
FORMS = {"GPU form": "cuda", "CPU form": "cpu"}
# Freed blocks go back to the system at once: the peak is that of what is alive, without fragments, which the margin is for.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
CHILD = """
import json, sys, torch
from pathlib import Path
sys.path.insert(0, {folder!r})
from decode_memory import student_of
from turbovaed_cli.models.memory import decoding_bytes, held_bytes
from turbovaed_cli.models.streaming import StreamingDecoder

torch.set_num_threads(1)
name, form, frames, height, width = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
student = student_of(name, form, torch.float32)  # not every CPU computes in bf16
ratio, lag = int(student.spatial_compression_ratio), StreamingDecoder(student).lookahead_frames
latents = torch.zeros(1, student.latent_channels, lag // int(student.temporal_compression_ratio) + 2 + 2 * frames, height // ratio, width // ratio)
list(StreamingDecoder(student).decode(latents[..., :2, :2].split(frames, dim=2)))  # code of kernels, threads
student.ready().forget()
predicted = decoding_bytes(student, (height // ratio, width // ratio), frames)
Path("/proc/self/clear_refs").write_text("5")
before = held_bytes(student.device)
for video in StreamingDecoder(student).decode(latents.split(frames, dim=2)):
    video.float().to(torch.uint8)
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
print(json.dumps([predicted, peak - before]))
"""


@dataclass(frozen=True)
class Way:
    """Latent frames and rows decoded at once, with cached frames on disk or not."""

    title: str
    frames: int
    rows: int
    spill: bool


def student_of(name: str, form: str, dtype: torch.dtype = torch.bfloat16) -> StudentDecoder:
    """A student of a registry row with random weights, in the form of a GPU (layout alone) or of a CPU."""
    torch.manual_seed(0)
    student = build_student(MODELS[name].student.config).eval().requires_grad_(False)
    nn.Module.to(student, dtype=dtype)
    student.fast = form == "CPU form"
    return student


def ways(student: StudentDecoder, form: str) -> list[Way]:
    """The fastest way to decode, the leanest in memory alone, and the leanest of all."""
    ratio = int(student.spatial_compression_ratio)
    per_latent = WIDTH * HEIGHT * int(student.temporal_compression_ratio)
    fastest = max(pixels_per_piece(FORMS[form]) // per_latent, 1)
    return [
        Way("fastest", fastest, 0, spill=False),
        Way("in memory", 1, max(HEIGHT // ratio // 4, 1), spill=False),
        Way("with a disk", 1, 1, spill=True),
    ]


def promise(student: StudentDecoder, form: str, way: Way) -> float:
    """The gigabytes that `--memory` needs for a way to decode, without those that the process holds besides."""
    ratio = int(student.spatial_compression_ratio)
    weights = sum(one.numel() * one.element_size() for one in student.parameters())
    peak = decoding_bytes(student, (HEIGHT // ratio, WIDTH // ratio), way.frames, way.rows, spill=way.spill)
    return (weights + with_margin(peak)) / 1e9


def table(names: list[str]) -> str:
    """Markdown with a row per student; printed row by row meanwhile."""
    titles = [f"{form}, {title}" for form in FORMS for title in ("fastest", "in memory", "with a disk")]
    lines = [f"| student | M parameters | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    print("\n".join(lines), flush=True)
    for name in names:
        cells = []
        for form in FORMS:
            student = student_of(name, form)
            cells += [f"{promise(student, form, way):.1f}" for way in ways(student, form)]
        lines.append(f"| `{name}` | {num_params(student) / 1e6:.1f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def measure(names: list[str], frames: int, size: tuple[int, int]) -> str:
    """Markdown with predicted, promised and measured megabytes of one process per student in the CPU form.

    On a CPU, oneDNN copies what the plain convolutions of the GPU form read and write: its peak there says nothing of a GPU.
    """
    lines = ["| student | predicted MB | promised MB | measured MB | predicted / measured |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name in names:
        code = CHILD.format(folder=str(Path(__file__).resolve().parent))
        command = [sys.executable, "-c", code, name, "CPU form", str(frames), *map(str, size)]
        made = subprocess.run(command, env=os.environ | AT_ONCE, capture_output=True, text=True, check=True)
        predicted, measured = json.loads(made.stdout.splitlines()[-1])
        promised = with_margin(predicted)
        cells = f"{predicted / 1e6:.0f} | {promised / 1e6:.0f} | {measured / 1e6:.0f} | {predicted / measured:.2f}"
        lines.append(f"| `{name}` | {cells} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--size", default="256x128", help="of --measure")
    parser.add_argument("--frames", type=int, default=4, help="latent frames at once, of --measure")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    made = measure(options.names, options.frames, (height, width)) if options.measure else table(options.names)
    if options.write:
        text, mark = PAGE.read_text(encoding="utf-8"), "measured" if options.measure else "promised"
        begin, end = f"<!-- {mark} -->\n\n", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        PAGE.write_text(f"{before}{begin}{made}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
