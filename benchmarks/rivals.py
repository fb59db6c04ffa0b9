"""Decoders of the same latents beside each other, in one run and in turns, each precision against the published structure in it.

    python benchmarks/rivals.py ltx hunyuan wan2.1 wan2.2 [--size 256] [--frames 17] [--rounds 3] [--out build/rivals.json]

For every teacher: the published structure (eager modules) in fp32 and bf16, the full and the lite student in their fast form, the
full one in ONNX Runtime, TAEHV (base width) and Flash-VAED where they have these latents, and the teacher's own decoder. Random weights: speed
needs none. Prints a Markdown table for each: the median time, how many times as fast as the published structure of the same precision, the PSNR
against fp32 of the same weights, and the share of the floor: FLOPs of the published structure over the rate of a large matrix product here.
"""

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from decode import DTYPES, TEACHER, Decode, flops_of, matmul_rate, measure, psnr_between, ratios_of, teacher_decode
from plain_vs_fast import plain_form
from torch import Tensor, nn

from turbovaed_cli.benchmarking.bench import cpu_name
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.export.export import export_student
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.others.family import OtherDecoder
from turbovaed_cli.models.others.flash_ltx import FlashLTX
from turbovaed_cli.models.others.flash_wan import FlashWan
from turbovaed_cli.models.others.spaces import make_space
from turbovaed_cli.models.streaming import FastDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.trainable import build_trainable, config_for
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import FULL, member_of
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import ExportSettings

PUBLISHED, ORT = "published structure", "full student, ONNX Runtime"
FLASH: dict[str, Callable[[], OtherDecoder]] = {
    "ltx": lambda: FlashLTX(128, (512, 64, 32)),
    "wan2.1": FlashWan,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-teacher", action="store_true", help="leave out the teachers' decoders, the slowest rows")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    documents = []
    for name in options.teachers:
        with tempfile.TemporaryDirectory() as folder:
            documents.append(document_of(name, options, Path(folder)))
        print(table(documents[-1]), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(documents, indent=1))


@torch.inference_mode()
def document_of(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What one teacher's decoders came to."""
    torch.manual_seed(0)
    spec, device = find_model(name), torch.device("cpu")
    full = built(spec, FULL)
    latents = torch.randn(1, *full.latent_shape(spec.teacher.frames.at_most(options.frames), (options.size, options.size)))
    variants = dict(variants_of(spec, full, latents, folder))
    if not options.no_teacher:
        variants[TEACHER] = ("fp32", lambda: teacher_decode(name, latents))
    _, times, videos, failures = measure(variants, options.rounds, device)
    flops = flops_of(full, latents)
    rates = {dtype: matmul_rate(DTYPES[dtype], device) for dtype in DTYPES}
    rows = []
    for variant, (dtype, _) in variants.items():
        if variant in failures:
            rows.append({"name": variant, "dtype": dtype, "error": failures[variant]})
            continue
        own = variant.removesuffix(f", {dtype}")
        ratios = ratios_of(times[f"{PUBLISHED}, {dtype}"], times[variant])
        wanted = videos.get(f"{own}, fp32")
        rows.append({
            "name": own, "dtype": dtype, "ms": 1e3 * statistics.median(times[variant]), "ratio": statistics.median(ratios),
            "ratio_min": min(ratios), "ratio_max": max(ratios),
            "psnr_db": psnr_between(videos[variant], wanted) if wanted is not None and dtype != "fp32" else None,
            "floor_share": flops / rates[dtype] / statistics.median(times[variant]),
        })  # fmt: skip
    return {
        "model": name, "frames": full.pixel_frames(latents.shape[2]), "size": options.size, "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__, "machine": f"{cpu_name()}, {torch.get_num_threads()} threads", "gflop": flops / 1e9,
        "matmul_gflops": {dtype: rate / 1e9 for dtype, rate in rates.items()}, "rows": rows,
    }  # fmt: skip


def built(spec: ModelSpec, member: str) -> StudentDecoder:
    """A student of the family with random weights."""
    config = {**member_of(spec, member).student.config, "latent_channels": spec.teacher.latent_channels}
    return build_student(config).eval().requires_grad_(False)


def variants_of(
    spec: ModelSpec, full: StudentDecoder, latents: Tensor, folder: Path
) -> Iterator[tuple[str, tuple[str, Callable[[], Decode]]]]:
    """Yield the name of each decoder and precision, its precision, and what makes it ready."""
    students = {FULL: full, "lite": built(spec, "lite")}
    decoders: dict[str, Decoder] = {}
    with suppress(SettingsError):  # ratios that no layout of TAEHV has
        decoders["TAEHV"] = build_trainable(config_for({"family": "taehv"}, spec)).eval()
    if spec.name in FLASH:
        flash = FLASH[spec.name]()
        flash.space = make_space(spec, {})  # statistics take no time, and those of LTX are in its weights
        decoders["Flash-VAED"] = flash
    for dtype, kind in DTYPES.items():
        yield f"{PUBLISHED}, {dtype}", (dtype, partial(modules_of, plain_form(full), kind, latents))
        for member, student in students.items():
            yield f"{member} student, {dtype}", (dtype, partial(fast_of, student, kind, latents))
        for name, decoder in decoders.items():
            yield f"{name}, {dtype}", (dtype, partial(decode_of, decoder, kind, latents))
    yield f"{ORT}, fp32", ("fp32", partial(session_of, full, latents, folder))


def modules_of(student: nn.Module, dtype: torch.dtype, latents: Tensor) -> Decode:
    nn.Module.to(student, dtype=dtype)
    return lambda: student(latents.to(dtype))


def fast_of(student: StudentDecoder, dtype: torch.dtype, latents: Tensor) -> Decode:
    decoder = FastDecoder(student, dtype)
    return lambda: decoder.decode(latents)


def decode_of(decoder: Decoder, dtype: torch.dtype, latents: Tensor) -> Decode:
    own = copy.deepcopy(decoder).to(dtype=dtype)
    return lambda: own.decode(latents.to(dtype)).sample


def session_of(student: StudentDecoder, latents: Tensor, folder: Path) -> Decode:
    frames, size = student.pixel_frames(latents.shape[2]), latents.shape[3] * int(student.spatial_compression_ratio)
    result = export_student(student, ("onnx",), folder / "full.onnx", ExportSettings(frames=frames, sizes=((size, size),)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(result.artifacts[0].path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: latents.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def table(document: Mapping[str, Any]) -> str:
    """Return the document as Markdown."""
    rates = ", ".join(f"{rate:.0f} ({dtype})" for dtype, rate in document["matmul_gflops"].items())
    lines = [
        f"\n**`{document['model']}`**, {document['frames']} frames of {document['size']}x{document['size']}, {document['gflop']:.0f} GFLOP; "
        f"{document['machine']}, {rates} GFLOP/s of a matrix product.\n",
        "| decoder | precision | ms | over the published structure | PSNR against fp32 | floor / time |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['dtype']} | not measured: {row['error']} | | | |")
            continue
        quality = "" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"
        spread = f" ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        floor = f"{row['floor_share']:.2f}" if row["name"] in (PUBLISHED, "full student", ORT) else ""
        lines.append(f"| {row['name']} | {row['dtype']} | {row['ms']:.0f} | {row['ratio']:.2f}x{spread} | {quality} | {floor} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
