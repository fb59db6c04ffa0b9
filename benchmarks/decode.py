"""A student's decode in every form beside its published structure, in one run: ratios, PSNR, and the floor of this machine.

    python benchmarks/decode.py --model ltx --frames 17 --size 256 [--device auto] [--rounds 5] [--threads 0] [--teacher] [--json]

Plain is the published module structure in eager torch, contiguous fp32 (in bf16 too where the device has it). Variants take
turns; a ratio is plain's time over the variant's, the median of the turns, with least and most. Rows of bf16 have a second
ratio, over plain bf16: like with like. Random weights unless there are
some on this machine: speed needs none. `--teacher` puts the full-size teacher's decoder beside it (random weights, some GB).
The floor: FLOPs of the plain form over the rate of a large matrix product here, and its share of the time that a form takes
(above 1: it multiplies less often than the plain form does). A variant that fails, such as a teacher that does not fit in the
memory of a GPU, is a row with the reason. `--model all` goes through the registry.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from plain_vs_fast import plain_form, student_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from truncated_features import random_teacher

from turbovaed_cli.benchmarking.bench import cpu_name
from turbovaed_cli.machine.devices import empty_cache, is_out_of_memory, out_of_memory_in_words, resolve_device, wait_for
from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.gpu_form import FUSED, GRAPHS, form_of
from turbovaed_cli.models.kernels import LAYOUT_ALONE, Speedups
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.streaming import FastDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEACHER = "teacher's decoder"
Decode = Callable[[], Tensor]
Variants = dict[str, tuple[str, Callable[[], Decode]]]  # its precision, and what makes it ready: each in memory of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ltx", help="a registry name, or all")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--teacher", action="store_true", help="the teacher's decoder too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    documents = [document_of(name, options) for name in ([*MODELS] if options.model == "all" else [options.model])]
    if options.json:
        print(json.dumps(documents[0] if options.model != "all" else documents, indent=1))


@torch.inference_mode()
def document_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one model came to; printed as a table unless JSON was asked for."""
    device = resolve_device(options.device)
    student, latents = student_and_latents(name, options.frames, options.size, device)
    variants = variants_of(student, latents)
    if options.teacher:
        variants[TEACHER] = ("fp32", lambda: teacher_decode(name, latents))
    firsts, times, videos, failures = measure(variants, options.rounds, device)
    rates = {dtype: matmul_rate(DTYPES[dtype], device) for dtype in {dtype for dtype, _ in variants.values()}}
    flops = flops_of(student, latents)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    document: dict[str, Any] = {
        "schema_version": 1, "model": find_model(name).name, "frames": student.pixel_frames(latents.shape[2]), "size": options.size,
        "machine": machine, "torch": torch.__version__, "gflop": flops / 1e9,
        "matmul_gflops": {dtype: rate / 1e9 for dtype, rate in rates.items()}, "variants": [],
    }  # fmt: skip
    for variant, (dtype, _) in variants.items():
        if variant in failures:
            document["variants"].append({"name": variant, "dtype": dtype, "error": failures[variant]})
            continue
        ratios = ratios_of(times.get("plain"), times[variant])
        alike = ratios_of(times.get("plain bf16"), times[variant]) if dtype == "bf16" else []
        is_student = variant != TEACHER
        wanted = videos.get("plain") if is_student else None
        document["variants"].append({
            "name": variant, "dtype": dtype, "ratio_to_plain": statistics.median(ratios) if ratios else None,
            "ratio_min": min(ratios, default=None), "ratio_max": max(ratios, default=None),
            "ratio_to_plain_bf16": statistics.median(alike) if alike else None,
            "psnr_db": psnr_between(videos[variant], wanted) if wanted is not None else None,
            "max_abs": (videos[variant] - wanted).abs().max().item() if wanted is not None else None,
            "first_over_plain_first": firsts[variant] / firsts["plain"] if "plain" in firsts else None,
            "floor_share": flops / rates[dtype] / statistics.median(times[variant]) if is_student else None,
            "samples_s": times[variant],
        })  # fmt: skip
    if not options.json:
        show(document)
    return document


def student_and_latents(name: str, frames: int, size: int, device: torch.device) -> tuple[StudentDecoder, Tensor]:
    student = student_of(name)
    nn.Module.to(student, device=device)
    shape = student.latent_shape(find_model(name).teacher.frames.at_most(frames), (size, size))
    return student, torch.randn(1, *shape, device=device)


def teacher_decode(name: str, latents: Tensor) -> Decode:
    teacher = random_teacher(find_model(name)).to(latents.device)
    return lambda: teacher.decode_by_class(latents)


def variants_of(student: StudentDecoder, latents: Tensor) -> Variants:
    """Everything that decodes, plain first. The fast form is what `decode` takes on a CPU."""

    def plain(dtype: torch.dtype) -> Decode:
        form = plain_form(student)
        nn.Module.to(form, dtype=dtype)  # diffusers' own `to` warns about an empty list of layers to keep
        return lambda: form(latents.to(dtype))

    def fast(dtype: torch.dtype, speedups: Speedups) -> Decode:
        decoder = FastDecoder(student, dtype, speedups)
        return lambda: decoder.decode(latents)

    def on_gpu(dtype: torch.dtype, form: str) -> Decode:
        decoder = form_of(student, form, dtype)
        return lambda: decoder.decode(latents)

    variants: Variants = {
        "plain": ("fp32", lambda: plain(torch.float32)),
        "plain bf16": ("bf16", lambda: plain(torch.bfloat16)),
        "modules": ("fp32", lambda: lambda: student(latents)),
    }
    for name, dtype in DTYPES.items():
        for speedups in (Speedups(), Speedups(winograd=False), LAYOUT_ALONE):
            variants[f"{speedups}, {name}"] = (name, partial(fast, dtype, speedups))
        if latents.device.type == "cuda":
            for form in (FUSED, GRAPHS):
                variants[f"{form}, {name}"] = (name, partial(on_gpu, dtype, form))
    return variants


def measure(
    variants: Variants, rounds: int, device: torch.device
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, Tensor], dict[str, str]]:
    """(seconds of the first call, of each later turn, what was decoded, why it failed) by variant. Videos are on the CPU in fp32."""
    firsts: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in variants}
    videos: dict[str, Tensor] = {}
    failures: dict[str, str] = {}
    ready: dict[str, Decode] = {}
    for turn in range(rounds + 1):
        for name, (_, make) in variants.items():
            if name in failures:
                continue
            try:
                if not turn:
                    ready[name] = make()
                wait_for(device)
                began = time.perf_counter()
                video = ready[name]()
                wait_for(device)
                seconds = time.perf_counter() - began
                if turn:
                    times[name].append(seconds)
                else:
                    firsts[name], videos[name] = seconds, video.float().cpu()
            except Exception as error:
                failures[name] = out_of_memory_in_words(error) if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            video = None
            if name in failures:  # what it holds goes, so that the others have room
                ready.pop(name, None)
                firsts.pop(name, None)
                empty_cache(device)
    return firsts, {name: found for name, found in times.items() if name not in failures}, videos, failures


def ratios_of(plain: list[float] | None, own: list[float]) -> list[float]:
    """Turn by turn, how many times as fast as plain a variant was; nothing without plain."""
    return [before / after for before, after in zip(plain, own, strict=True)] if plain else []


def psnr_between(video: Tensor, wanted: Tensor) -> float:
    return psnr(video[0].clamp(-1, 1), wanted[0].clamp(-1, 1))


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs per second of a large product of matrices, the best of five."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / min(seconds[1:]))


def flops_of(student: StudentDecoder, latents: Tensor) -> float:
    with torch.device("meta"):
        outline = build_student(student.config)
    with FlopCounterMode(display=False) as counter:
        plain_form(outline)(latents.to("meta"))
    return float(counter.get_total_flops())


def show(document: dict[str, Any]) -> None:
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in document["matmul_gflops"].items())
    print(
        f"{document['model']}, {document['frames']} frames of {document['size']}x{document['size']}: {document['gflop']:.0f} GFLOP"
    )
    print(f"{document['machine']}; GFLOP/s of a matrix product: {rates}")
    print(f"{'':55} over plain (least to most)   over plain bf16   PSNR    first  floor/time")
    for row in document["variants"]:
        if "error" in row:
            print(f"{row['name']:55} not measured: {row['error']}", flush=True)
            continue
        span = (
            "-"
            if row["ratio_to_plain"] is None
            else f"{row['ratio_to_plain']:5.2f}x ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        )
        alike = "-" if row["ratio_to_plain_bf16"] is None else f"{row['ratio_to_plain_bf16']:.2f}x"
        quality = "-" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        first = "-" if row["first_over_plain_first"] is None else f"{row['first_over_plain_first']:.2f}x"
        floor = "-" if row["floor_share"] is None else f"{row['floor_share']:.2f}"
        print(f"{row['name']:55} {span:27} {alike:>16} {quality:>6} {first:>8} {floor:>9}", flush=True)
    print()


if __name__ == "__main__":
    main()
