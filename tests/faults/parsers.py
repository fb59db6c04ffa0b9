"""Everything of ours that parses what others may have written: name -> a function of the bytes. Errors are TurboVaedError, or none."""

import json
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import SettingsError, TurboVaedError

FOLDER = Path(tempfile.gettempdir())  # where documents are laid; set by whoever calls


def laid(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def recipe(content: bytes) -> None:
    from turbovaed_cli.training.checks import check_distill_settings
    from turbovaed_cli.training.recipes import read_recipe

    settings = read_recipe(str(laid("recipe.toml", content)))
    check_distill_settings(settings.with_changes(steps=len(settings.stages) or 1))


def run_config(content: bytes) -> None:
    from turbovaed_cli.files.sealed import read_json
    from turbovaed_cli.models.loading import teacher_of
    from turbovaed_cli.report.tables import flatten, key_figures, stage_table
    from turbovaed_cli.runs.listing import list_runs
    from turbovaed_cli.runs.rundir import RunDir

    run = RunDir(FOLDER / "run")
    laid("run/config.json", content)
    laid("run/metrics.jsonl", b"")
    (found,) = list_runs(run.root)
    assert found.reason
    if RunDir.is_run(run.root):
        config = run.read_config()
        stage_table(config["settings"])
        flatten(config)
        key_figures(None, [{"step": 1}], config["settings"])
        teacher_of("no name", run, None)  # type: ignore[arg-type]
        run.changes({"settings": {}}, frozenset())
    read_json(run.config)


def checkpoint_manifest(content: bytes) -> None:
    from turbovaed_cli.runs.rundir import RunDir

    run = RunDir(FOLDER / "sealed")
    laid("sealed/checkpoints/step_0000003/manifest.json", content)
    run.latest_checkpoint()


def cache_manifest(content: bytes) -> None:
    from turbovaed_cli.files.sealed import sealed
    from turbovaed_cli.latents.cache import LatentCache
    from turbovaed_cli.latents.writer import _agree_on_manifest

    laid("cache/manifest.json", content)
    clip = {"key": "k", "path": "a.mp4"}
    laid("cache/shards/a.json", sealed({"file": "a.safetensors", "sha256": "0", "clips": [clip]}).encode())
    cache = LatentCache(FOLDER / "cache")
    assert cache.size and cache.frames is not None and cache.fingerprint
    _agree_on_manifest(FOLDER / "cache", {"teacher": {}})


def shard_manifest(content: bytes) -> None:
    from turbovaed_cli.files.sealed import sealed
    from turbovaed_cli.latents.cache import LatentCache

    laid("shards/manifest.json", sealed({"clip": {"frames": 1, "size": [8, 8], "stride": 1}, "teacher": {}}).encode())
    laid("shards/shards/a.json", content)
    cache = LatentCache(FOLDER / "shards")
    assert cache.fingerprint
    cache.read(0)


def student_config(content: bytes) -> None:
    import torch

    from turbovaed_cli.models.loading import build_student, read_config

    with torch.device("meta"):
        build_student(read_config(laid("student.json", content)))


def teacher_config(content: bytes) -> None:
    from turbovaed_cli.registry.find import find_model

    laid("teacher/config.json", content)
    find_model(FOLDER / "teacher")


def latents_file(content: bytes) -> None:
    from turbovaed_cli.latents.latent_files import read_latents

    read_latents(laid("z.safetensors", content))


def weight_file(content: bytes) -> None:
    from turbovaed_cli.files.tensors import read_weights

    read_weights(laid("w.safetensors", content))


def pickled_file(content: bytes) -> None:
    from turbovaed_cli.files.tensors import read_weights

    read_weights(laid("w.pth", content))


def metrics(content: bytes) -> None:
    from turbovaed_cli.report.curves import draw
    from turbovaed_cli.report.tables import key_figures, with_data_size
    from turbovaed_cli.runs.listing import _best
    from turbovaed_cli.runs.rundir import RunDir

    run = RunDir(FOLDER / "metrics")
    laid("metrics/metrics.jsonl", content)
    rows = run.read_metrics()
    draw(with_data_size(rows))
    key_figures(None, rows, {})
    _best(run, rows)


def bench_document(content: bytes) -> None:
    from turbovaed_cli.benchmarking.results import changes, read_document, same_machine
    from turbovaed_cli.report.bench_page import render

    document = read_document(laid("bench.json", content))
    changes(document["rows"], document["rows"])
    same_machine(document["machine"], "x")
    own = {**document, "memory": [], "load_average": {}, "published": [], "estimates": [], "compared": []}
    render([own, document])


def evaluation(content: bytes) -> None:
    from turbovaed_cli.report import tables
    from turbovaed_cli.runs.listing import _best
    from turbovaed_cli.runs.rundir import RunDir

    path = laid("evaluated/eval/a.json", content)
    _best(RunDir(FOLDER / "evaluated"), [])
    document = tables.read_evaluation(path)
    for show in (tables.metric_rows, tables.not_measured, tables.clip_metrics, tables.clip_rows, tables.published_rows):
        show(document)
    tables.key_figures(document, [], {})


def testcard(content: bytes) -> None:
    from turbovaed_cli.evaluation.testcard.scores import read_card, worst_patterns
    from turbovaed_cli.report.testcard import card_view

    card = read_card(laid("card.json", content))
    worst_patterns(card)
    card_view(card, "a")


def export_document(content: bytes) -> None:
    from turbovaed_cli.export.readme import decoding_page, loading_instructions
    from turbovaed_cli.export.record import read_records

    records = read_records(laid("export.json", content))
    loading_instructions(records)
    decoding_page(records)


def options(content: bytes) -> None:
    from turbovaed_cli.benchmarking.results import thresholds
    from turbovaed_cli.evaluation.scores import parse_thresholds
    from turbovaed_cli.units import parse_bytes, parse_count, parse_numbers, parse_shape, parse_size

    text = content.decode("utf-8", errors="surrogateescape")
    refused = 0
    for parse in (
        parse_size,
        parse_count,
        parse_bytes,
        parse_numbers,
        parse_shape,
        lambda text: parse_thresholds([text]),
        lambda text: thresholds([text]),
    ):
        try:
            parse(text)
        except SettingsError:
            refused += 1
    if refused == 7:
        raise SettingsError("no option takes it")


PARSERS: dict[str, Callable[[bytes], None]] = {
    parser.__name__: parser
    for parser in (
        recipe, run_config, checkpoint_manifest, cache_manifest, shard_manifest, student_config, teacher_config, latents_file,
        weight_file, pickled_file, metrics, bench_document, evaluation, testcard, export_document, options,
    )
}  # fmt: skip


def verdict(name: str, content: bytes) -> bool:
    """Whether it was taken; False for an error of ours. Any other error goes through: that is what fuzzing looks for."""
    try:
        PARSERS[name](content)
    except TurboVaedError:
        return False
    return True


# --- what they take: seeds to change -------------------------------------------------------------------------------


def _safetensors(tensors: dict[str, Any]) -> bytes:
    text, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        text[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    header = json.dumps(text).encode()
    return struct.pack("<Q", len(header)) + header + data


_SCORES = {"psnr": 30.0, "ssim": 0.9}
_STUDENT = {
    "latent_channels": 4, "decoder_block_out_channels": [16, 8], "decoder_layers_per_block": [0, 1, 1], "patch_size": 4,
    "decoder_is_dw_conv": [False, True, True], "spatio_temporal_scaling": [True, False], "decoder_spatio_only": [False, True],
    "decoder_temporal_only": [True, False],
    "latents_mean": [0.0, 1.0, 2.0, 3.0], "scaling_factor": 1.0, "teacher": "tiny", "_class_name": "StudentDecoder",
}  # fmt: skip
_ROW = {
    "target": "torch", "network": "student", "runtime": "torch", "unit": "CPU", "precision": "fp32", "layout": "", "measured": True,
    "status": "measured", "frames": 17, "size": [64, 64], "size_mb": 3.0, "load_s": 0.1, "first_ms": 9.0, "p50_ms": 8.0, "p90_ms": 9.0,
    "fps": 100.0, "realtime": 4.0, "peak_mb": 10.0, "psnr_db": 90.0, "source_psnr_db": 30.0, "speedup": 2.0, "speedup_over": "fp32",
    "samples_ms": [8.0, 9.0, 8.5], "remarks": ["a"], "told": {"speedups": "none"},
}  # fmt: skip
_CLIP = {"path": "a.mp4", "start": 0, "teacher": _SCORES, "student": _SCORES}
_STAGE = {"name": "one", "steps": 3, "perceptual": "ssim", "lr": 1e-3, "crop": None, "batch_size": 1}

DOCUMENTS: dict[str, Any] = {
    "run_config": {
        "schema_version": 1, "command": "distill", "settings": {"stages": [_STAGE], "dtype": "fp32", "size": [64, 64]},
        "teacher": {"where": "tiny"},
    },
    "checkpoint_manifest": {"step": 3, "files": {"student.safetensors": {"sha256": "0" * 64, "bytes": 3}}},
    "cache_manifest": {"teacher": {"name": "tiny", "weights_sha256": "0"}, "clip": {"frames": 1, "size": [8, 8], "stride": 1}},
    "shard_manifest": {"file": "a.safetensors", "sha256": "0" * 64, "bytes": 3, "clips": [{"key": "k", "path": "a.mp4", "size": [8, 8]}]},
    "student_config": _STUDENT,
    "teacher_config": {
        "_class_name": "AutoencoderKLLTXVideo", "latent_channels": 4, "patch_size": 4, "patch_size_t": 1,
        "decoder_spatio_temporal_scaling": [True, False], "timestep_conditioning": False, "block_out_channels": [8, 8],
    },
    "bench_document": {
        "schema_version": 1, "model": "tiny", "machine": "a (b)", "latents": "random", "params": 800_000, "rows": [_ROW, _ROW],
    },
    "evaluation": {
        "schema_version": 1, "protocol": "standard", "means": {"teacher": _SCORES, "student": _SCORES, "ratio": {"psnr": 1.0, "ssim": 1.0}},
        "intervals": {"confidence": 0.95, "teacher": {"psnr": [29.0, 31.0]}, "student": {}, "ratio": {"psnr": None}},
        "clips": [_CLIP], "not_measured": {"rfvd": "why"}, "decoder_params": {"teacher": 5, "student": 1, "ratio": 0.2},
        "decode_times": {"ratio": 2.0, "student_s": [1.0], "teacher_s": [2.0], "device": "cpu"},
        "published": {"label": "published", "source": "a paper", "means": {"psnr": [30.0, 29.0]}},
    },
    "testcard": {
        "schema_version": 1, "model": "tiny", "family": "turbo-vaed",
        "testcard": {"frames": 9, "size": [64, 64], "patterns": [{
            "name": "flat_000000", "label": "flat #000000", "frames": 3, "size": [64, 64], "colour": [0, 0, 0],
            "teacher": {"psnr": 40.0, "colour_mean": 0.1, "grid": 0.5}, "student": {"psnr": 30.0, "colour_mean": 1.0, "grid": 1.5},
        }]},
    },
    "export_document": {
        "artifacts": [{
            "path": "a.onnx", "format": "onnx", "precision": "fp32", "graph": "clip", "status": "ran", "size_mb": 3.0, "psnr_db": 90.0,
            "max_abs": 1e-5, "checked_on": "random", "verified": True, "shapes": [[1, 4, 2, 4, 4]], "chunk": {"latents": [1, 4, 2, 4, 4]},
        }],
    },
}  # fmt: skip
DOCUMENTS = json.loads(json.dumps(DOCUMENTS))  # nothing shared: one change is one change
SEALED = ("checkpoint_manifest", "cache_manifest", "shard_manifest")
TEXTS: dict[str, list[bytes]] = {
    "recipe": [
        b'optimizer = "muon"\nbetas = [0.9, 0.95]\nsize = [64, 64]\n[[stages]]\nname = "a"\nsteps = 3\nlr = 1e-3\ncrop = [32, 32]\n'
    ],
    "metrics": [
        b'{"step": 1, "stage": "a", "loss": 0.5, "l1": 0.4, "data": {"clips": 1, "frames": 5, "height": 8, "width": 8}, "lr": 1e-3}\n'
        b'{"step": 2, "stage": "b", "loss": null, "l1": 0.3, "grad_norm": 5.0}\n'
    ],
    "latents_file": [
        _safetensors({"latents": ("F32", [2, 1, 1, 1], b"\0" * 8)}),
        _safetensors({"k.mean": ("BF16", [1, 1, 1, 1], b"\0\0")}),
    ],
    "weight_file": [_safetensors({"a": ("F32", [2], b"\0" * 8), "b": ("I8", [3], b"abc")})],
    "options": [b"512x512", b"720p", b"8M", b"1.5 GiB", b"psnr=0.969,ssim=0.9", b"fps=24", b"17,33"],
    "pickled_file": [],
}


def as_bytes(name: str, document: Any) -> bytes:
    """The document as it lies on disk: manifests with a seal that fits."""
    from turbovaed_cli.files.sealed import sealed

    if name in SEALED and isinstance(document, dict):
        with suppress(UnicodeEncodeError):  # half a character has no seal
            return sealed({key: value for key, value in document.items() if key not in ("seal", "schema_version")}).encode()
    return json.dumps(document).encode()


def seeds(name: str) -> list[bytes]:
    """Good inputs of a parser."""
    if name == "pickled_file":
        import io

        import torch

        content = io.BytesIO()
        torch.save({"a": torch.zeros(2)}, content)
        legacy = io.BytesIO()
        torch.save({"a": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
        return [content.getvalue(), legacy.getvalue()]
    return [as_bytes(name, DOCUMENTS[name])] if name in DOCUMENTS else TEXTS[name]
