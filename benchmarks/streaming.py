"""Decoding latents in pieces against the whole clip at once: peak memory over clip length, time, and the largest difference.

    python benchmarks/streaming.py [--model tiny] [--size 256] [--frames 17 65 257] [--chunk 2] [--rows 0] [--spill] [--repeats 3]
                                   [--plot docs/pictures/decode_memory.svg]

Every decode is a process of its own: the whole clip at once, module by module (plain) and in the fast form, and streamed, in
turns. Memory is the peak above what the process holds before it decodes. Prints one line per length; ratios are over plain,
with the smallest and the largest of the repeats. `--plot` draws the memory over the length.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plain_vs_fast import plain_form, student_of

from turbovaed_cli.machine.devices import forget_peak, peak_mb
from turbovaed_cli.models.memory import held_bytes
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder

WAYS = ("plain", "whole", "streamed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a registry name; random weights where there are none on this machine")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 65, 257])
    parser.add_argument("--chunk", type=int, default=2, help="latent frames pushed at once")
    parser.add_argument("--rows", type=int, default=0, help="latent rows of it at a time; 0 takes all")
    parser.add_argument("--spill", action="store_true", help="what convolutions keep lies on disk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="an SVG file")
    parser.add_argument("--one", choices=(*WAYS, "difference"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    memory: dict[str, list[float]] = {way: [] for way in WAYS}
    for frames in options.frames:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way, results in runs.items():
                results.append(child(options, frames, way))
        difference = child(options, min(frames, 65), "difference")["difference"]
        words = []
        for way, results in runs.items():
            memory[way].append(statistics.median(run["peak_mb"] for run in results))
            times = [b["seconds"] / a["seconds"] for a, b in zip(runs["plain"], results, strict=True)]
            words.append(
                f"{way} {memory[way][-1]:.0f} MB ({memory[way][-1] / memory['plain'][-1]:.2f}), time {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
            )
        title = f"{options.model} {frames} frames {options.size}x{options.size}"
        print(f"{title}: {'; '.join(words)}; largest difference {difference:.1e}", flush=True)
    if options.plot:
        draw(options, memory)


def draw(options: argparse.Namespace, memory: dict[str, list[float]]) -> None:
    import matplotlib  # noqa: PLC0415 - only for the picture

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "turbovaed"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    names = {
        "plain": "whole clip, published modules",
        "whole": "whole clip, fast form",
        "streamed": f"streamed, {options.chunk} latent frames at once",
    }
    for (way, megabytes), colour in zip(memory.items(), ("#b3403a", "#c98a1b", "#2b6cb0"), strict=True):
        axes.plot(options.frames, megabytes, marker="o", markersize=4, color=colour)
        axes.annotate(
            names[way],
            (options.frames[-1], megabytes[-1]),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
        )
    axes.set(
        xlabel="frames of the clip",
        ylabel="MB",
        ylim=(0, None),
        xlim=(0, options.frames[-1] * 1.45),  # room for the names
        title=f"Peak memory of a decode: {options.model}, {options.size}x{options.size}, fp32",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.plot, metadata={"Date": None})


def child(options: argparse.Namespace, frames: int, way: str) -> dict[str, Any]:
    words = [
        "--model",
        options.model,
        "--size",
        options.size,
        "--frames",
        frames,
        "--chunk",
        options.chunk,
        "--rows",
        options.rows,
    ]
    words = [str(word) for word in [*words, *["--spill"] * options.spill, "--one", way]]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@torch.no_grad()
def one(options: argparse.Namespace) -> dict[str, float]:
    student, [frames] = student_of(options.model), options.frames
    shape = student.latent_shape(frames, (options.size, options.size))
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    if options.one == "difference":
        streamed = torch.cat(list(stream(student, latents, options)), dim=2)
        return {"difference": (streamed - student(latents)).abs().max().item()}
    decode = {
        "plain": plain_form(student),
        "whole": student.decode,
        "streamed": lambda latents: [None for _ in stream(student, latents, options)],
    }[options.one]
    decode(latents[:, :, :1])  # kernels are chosen, libraries loaded
    forget_peak(latents.device)
    before, began = held_bytes(latents.device), time.perf_counter()
    decode(latents)
    seconds, peak = time.perf_counter() - began, peak_mb(latents.device)
    assert peak is not None, "this system does not tell the peak"
    return {"seconds": seconds, "peak_mb": peak - before / 1e6}


def stream(student: StudentDecoder, latents: torch.Tensor, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    decoder = StreamingDecoder(student, rows=options.rows, spill=Path() if options.spill else None)
    return decoder.decode(latents.split(options.chunk, dim=2))


if __name__ == "__main__":
    main()
