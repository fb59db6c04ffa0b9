"""Decoding latents in pieces against the whole clip at once: peak memory over clip length, time, and the largest difference.

python benchmarks/streaming.py [--model tiny] [--size 256] [--frames 17 65 257] [--chunk 2] [--repeats 3]

Every decode is a process of its own, whole and streamed in turns. Memory is the peak above what the process holds before it
decodes. Prints one line per length; ratios are streamed over whole, with the smallest and the largest of the repeats.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder, build_student, load_student
from turbovaed_cli.registry import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a registry name; random weights where there are none on this machine")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 65, 257])
    parser.add_argument("--chunk", type=int, default=2, help="latent frames pushed at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=("whole", "streamed", "difference"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    for frames in options.frames:
        runs: dict[str, list[dict[str, float]]] = {"whole": [], "streamed": []}
        for _ in range(options.repeats):
            for way, results in runs.items():
                results.append(child(options, frames, way))
        difference = child(options, min(frames, 65), "difference")["difference"]
        time_ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["whole"], runs["streamed"], strict=True)]
        memory = {way: statistics.median(run["peak_mb"] for run in results) for way, results in runs.items()}
        print(
            f"{options.model} {frames} frames {options.size}x{options.size}: memory {memory['whole']:.0f} MB whole, {memory['streamed']:.0f} MB "
            f"streamed ({memory['streamed'] / memory['whole']:.2f}); time {statistics.median(time_ratios):.2f} "
            f"({min(time_ratios):.2f} to {max(time_ratios):.2f}); largest difference {difference:.1e}",
            flush=True,
        )


def child(options: argparse.Namespace, frames: int, way: str) -> dict[str, Any]:
    words = [
        "--model",
        options.model,
        "--size",
        str(options.size),
        "--frames",
        str(frames),
        "--chunk",
        str(options.chunk),
        "--one",
        way,
    ]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@torch.no_grad()
def one(options: argparse.Namespace) -> dict[str, float]:
    student, [frames] = student_of(options.model), options.frames
    shape = student.latent_shape(frames, (options.size, options.size))
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    if options.one == "difference":
        streamed = torch.cat(list(stream(student, latents, options.chunk)), dim=2)
        return {"difference": (streamed - student(latents)).abs().max().item()}
    student(latents[:, :, :1])  # kernels are chosen, libraries loaded
    before, began = peak_mb(), time.perf_counter()
    if options.one == "whole":
        student(latents)
    else:
        for _ in stream(student, latents, options.chunk):
            pass
    return {"seconds": time.perf_counter() - began, "peak_mb": peak_mb() - before}


def stream(student: StudentDecoder, latents: torch.Tensor, chunk: int) -> Any:
    decoder = StreamingDecoder(student)
    for piece in latents.split(chunk, dim=2):
        yield decoder.push(piece)
    yield decoder.finish()


def student_of(model: str) -> StudentDecoder:
    spec = find_model(model)
    torch.manual_seed(0)
    return (load_student(model) if spec.embedded else build_student(spec.student.config)).eval()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
