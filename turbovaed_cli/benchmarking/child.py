"""One target of `bench`, measured in a separate process: how it is started, and its work."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from turbovaed_cli.benchmarking.results import VIDEO_FPS, BenchRow
from turbovaed_cli.benchmarking.target import STUDENT, TEACHER, Exported, Running, Target, Variant, Work, not_here
from turbovaed_cli.benchmarking.targets.table import targets
from turbovaed_cli.errors import CheckFailedError, MissingError, TurboVaedError
from turbovaed_cli.export.compare import psnr_of
from turbovaed_cli.export.export import export_student
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import write_json
from turbovaed_cli.machine.devices import forget_peak, peak_mb, resolve_dtype, torch_device
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.decoding import decode_in_pieces, decode_without_gradients, latent_shape, module_of
from turbovaed_cli.models.memory import held_bytes
from turbovaed_cli.models.pair import teacher_spec
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.settings import BenchSettings, ExportSettings

_ENOUGH_MS, _FEWEST = 30e3, 3  # after this time, and at least this many samples, a row is not called again
_STREAMED_FRAMES = 2  # latent frames at once when memory over length is measured


def export_settings(settings: BenchSettings, precision: str = "", layout: str = "4d-cat") -> ExportSettings:
    """Return the settings of an export that is timed."""
    return ExportSettings(
        settings.frames, (settings.size,), (precision,) if precision else (), layout,
        seed=settings.seed, latents=settings.latents, data=settings.data, clips=settings.clips,
        latents_are=settings.latents_are, latents_shape=settings.latents_shape,
    )  # fmt: skip


def num_threads(settings: BenchSettings) -> int:
    """Return the number of threads that a measurement may use."""
    return settings.threads or torch.get_num_threads()


def in_child(job: dict[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Run `job` in a fresh interpreter with its threads pinned and return its answer. Raises the child's TurboVaedError here.

    A child that ends without an answer raises TurboVaedError too.
    """
    threads = str(num_threads(settings))
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
    with tempfile.TemporaryDirectory(dir=job["folder"]) as folder:
        answered = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "turbovaed_cli.benchmarking"],  # -P: imports nothing from the current folder
            input=json.dumps({**job, "threads": int(threads), "answer": str(answered)}, default=str),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=os.environ | dict.fromkeys(pools, threads),
        )
        answer = read_json(answered) if answered.is_file() else None
    if answer is None:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        hint = "use a smaller `size` or `frames`" if done.returncode in (-9, 137) else None
        raise TurboVaedError(f"the process for {job['target']} ended early (exit code {done.returncode}): {last}", hint)
    if "error" in answer:
        missing = answer["exit_code"] == MissingError.exit_code
        raise MissingError(answer["error"], answer["hint"]) if missing else _as_it_was(answer)
    return answer


def peak_in_child(job: dict[str, Any], settings: BenchSettings) -> tuple[float | None, list[str]]:
    """Return the peak memory in MB that a separate process measures, and remarks: the reason if it could not."""
    try:
        return in_child(job, settings)["peak_mb"], []
    except TurboVaedError as error:
        return None, [f"its peak memory is not known: {error.what}"]


def _as_it_was(answer: dict[str, Any]) -> TurboVaedError:
    error = TurboVaedError(answer["error"], answer["hint"])
    error.exit_code = answer["exit_code"]
    return error


def answer_job() -> None:
    """Do the job on standard input, in a process of its own, and write the answer to the file that it names."""
    job = json.loads(sys.stdin.read())
    record = job["settings"]
    for name in ("size", "targets", "precisions", "layouts", "memory_frames"):
        record[name] = tuple(record[name])
    for name in ("data", "latents"):
        record[name] = Path(record[name]) if record[name] else None
    settings = BenchSettings(**record)
    torch.set_num_threads(job["threads"])
    with suppress(AttributeError, OSError):  # Linux only; runtimes with their own thread pools stay on these cores too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    answer: dict[str, Any]
    try:
        if "memory" in job:
            answer = {"peak_mb": _memory_of_length(job, settings)}
        elif "peak_of" in job:
            answer = {"peak_mb": _peak(job, settings)}
        else:
            answer = _measure(job, settings)
    except TurboVaedError as error:
        answer = {"error": error.what, "hint": error.hint, "exit_code": error.exit_code}
    write_json(Path(job["answer"]), answer)


def decoder_in_job(
    name: str, label: str, *, family: str | None = None, teacher: str | None = None, config: str | None = None, is_student: bool
) -> dict[str, Any]:
    """Return the entry of a decoder in the list "decoders" of a job: the first one is that of the model, the rest are beside it."""
    return {"name": name, "label": label, "family": family, "teacher": teacher, "config": config, "is_student": is_student}


def _load(entry: dict[str, Any]) -> Decoder:
    return load_decoder(entry["name"], family=entry["family"], teacher=entry["teacher"], config=entry["config"])


def _work(job: dict[str, Any], settings: BenchSettings) -> list[Variant]:
    """Return the variants of the target: those of the model and its teacher, then those of each decoder beside them."""
    target = targets()[job["target"]]
    found = target.variants(_work_of(0, job, settings, target))
    for number in range(1, len(job["decoders"])):
        work = _work_of(number, job, settings, target)
        try:
            variants = target.variants(work)
        except TurboVaedError as error:  # the other decoders are still useful
            variants = [Variant(work.network, target.name, "", work.precisions[0], not_here(error.what, error.hint))]
        found += [replace(variant, is_beside=True) for variant in variants]
    return found


def _work_of(number: int, job: dict[str, Any], settings: BenchSettings, target: Target) -> Work:
    entry = job["decoders"][number]

    def student(precision: str) -> Decoder:
        loaded = _load(entry)
        nn.Module.to(module_of(loaded), device=torch_device(settings.device), dtype=resolve_dtype(precision))
        return loaded

    def teacher(precision: str) -> Teacher:
        device = torch_device(settings.device)
        return load_teacher(
            teacher_spec(job["teacher"], job["decoders"][0]["name"]), device=device, dtype=resolve_dtype(precision)
        )

    chosen, exported = target.chosen(settings.precisions), partial(_exported, job, settings, number)
    with_teacher = job["teacher"] is not None and number == 0
    network = entry["label"] if number else STUDENT
    return Work(settings, chosen, student, teacher, exported, with_teacher, job["threads"], network, entry["is_student"])


def _exported(job: dict[str, Any], settings: BenchSettings, number: int, name: str, precision: str, layout: str) -> Exported:
    """Return the artefact of a format. It is written and checked once; a process that measures its peak finds it there."""
    folder = Path(job["folder"]) / f"{name}-{precision}-{layout or number}-{number}"
    if not (folder / "export.json").is_file():
        inputs = load_file(Path(job["folder"]) / "inputs.safetensors")
        items = [item for label, item in inputs.items() if label.startswith("latents_")]
        wanted = export_settings(settings, precision, *([layout] if layout else []))
        decoder, place = _load(job["decoders"][number]), job["decoders"][number]["name"]
        result = export_student(decoder, (name,), folder, wanted, latents=({settings.size: items}, "the same latents"))
        for item in result.missed:
            raise CheckFailedError(
                f"{name} in {precision} differs too much from the {'decoder' if number else 'student'}: "
                f"{item.psnr_db:.1f} dB, max abs {item.max_abs:.2g}",
                f"turbovaed export --model {place} --format {name} --dtype {precision} keeps the file to look at",
            )
    (record,) = read_json(folder / "export.json")["artifacts"]
    return Exported(
        folder / record["path"], record["size_mb"], record["status"], record["psnr_db"], record["operators"], record["gmacs"]
    )


def _measure(job: dict[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Measure every variant of one target: load it, call it once, compare it, then time all in turns."""
    before = _load_average()
    variants = _work(job, settings)
    inputs = load_file(Path(job["folder"]) / "inputs.safetensors")
    rows: list[BenchRow] = []
    running: dict[int, Running] = {}
    for number, variant in enumerate(variants):
        row, loaded = _started(job["target"], variant, inputs, settings)
        rows.append(row)
        if loaded is not None:
            running[number] = loaded
    loaded = None
    _time(rows, running, inputs["latents_0"], settings)
    running.clear()  # frees memory for the processes that measure the peaks
    for number, row in enumerate(rows):
        if row.measured and variants[number].in_process:
            pinned = replace(settings, threads=job["threads"])
            peak, why = peak_in_child({**job, "settings": asdict(settings), "peak_of": number}, pinned)
            rows[number] = replace(row, peak_mb=peak, remarks=row.remarks + why)
    return {"rows": [asdict(row) for row in rows], "load_average": [before, _load_average()]}


def _started(
    target: str, variant: Variant, inputs: Mapping[str, Tensor], settings: BenchSettings
) -> tuple[BenchRow, Running | None]:
    """Load a variant, call it once and compare it. Return its row and, if this machine can run it, the loaded variant."""
    row = BenchRow(
        target, variant.network, variant.runtime, variant.unit, variant.precision, variant.layout,
        False, "", settings.frames, settings.size, size_mb=variant.size_mb, remarks=list(variant.remarks),
        is_beside=variant.is_beside,
    )  # fmt: skip
    try:
        began = time.perf_counter()
        loaded = variant.load()
        load_s = getattr(loaded, "load_s", None) or time.perf_counter() - began  # some runtimes measure it themselves
        first_ms = loaded.once(inputs["latents_0"])
        against_student = variant.network != TEACHER and not variant.is_beside
        quality = _quality(loaded.video, inputs, against_student=against_student)
    except Exception as error:
        return _failed(row, error), None
    return replace(row, measured=True, status="measured", load_s=load_s, first_ms=first_ms, **quality), loaded


def _time(rows: list[BenchRow], running: dict[int, Running], latents: Tensor, settings: BenchSettings) -> None:
    """Time the loaded variants in turns, so that other load on the machine affects all alike; write the times into `rows`."""
    samples: dict[int, list[float]] = {number: [] for number in running}
    spent = dict.fromkeys(running, 0.0)
    for call in range(settings.warmup - 1 + settings.repeats):
        for number, loaded in list(running.items()):
            if spent[number] >= _ENOUGH_MS and len(samples[number]) >= _FEWEST:
                continue
            try:
                milliseconds = loaded.once(latents)
            except Exception as error:
                rows[number] = _failed(rows[number], error)
                del running[number]
                continue
            spent[number] += milliseconds
            if call >= settings.warmup - 1:
                samples[number].append(milliseconds)
    for number, loaded in running.items():
        row, times = rows[number], samples[number]
        p50, p90 = (float(np.percentile(times, q)) for q in (50, 90))
        fps = settings.frames / p50 * 1e3
        few = [f"{row.network}, {row.precision}: slow, so {len(times)} calls were timed"] if len(times) < settings.repeats else []
        rows[number] = replace(
            row, p50_ms=p50, p90_ms=p90, fps=fps, realtime=fps / VIDEO_FPS, samples_ms=times,
            told=_told(loaded, latents), remarks=row.remarks + few,
        )  # fmt: skip


def _failed(row: BenchRow, error: Exception) -> BenchRow:
    """Return the row of a variant that could not be measured, with the reason."""
    if isinstance(error, TurboVaedError):
        reason = "; ".join(filter(None, (error.what, error.hint)))
    else:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return replace(
        row, measured=False, status=f"not measured: {reason}", load_s=None, first_ms=None, psnr_db=None, source_psnr_db=None
    )


def _told(loaded: Running, latents: Tensor) -> dict[str, Any]:
    try:
        return dict(loaded.told(latents))
    except Exception as error:
        return {"not_told": f"{type(error).__name__}: {error}"}


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _quality(decode: Callable[[Tensor], Tensor], inputs: Mapping[str, Tensor], *, against_student: bool) -> dict[str, Any]:
    """Return the PSNR over all latents against the fp32 student's videos, and against the source videos if there are any."""
    videos = [decode(inputs[f"latents_{i}"]).float() for i in range(sum(name.startswith("latents_") for name in inputs))]
    found: dict[str, Any] = {}
    if against_student:
        found["psnr_db"] = _psnr(zip(videos, (inputs[f"reference_{i}"] for i in range(len(videos))), strict=True))
    if "source_0" in inputs:
        shown = (video.clamp(-1, 1) for video in videos)
        found["source_psnr_db"] = _psnr(zip(shown, (inputs[f"source_{i}"] for i in range(len(videos))), strict=True))
    return found


def _psnr(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    errors = [(made - wanted).double().square() for made, wanted in pairs]
    return psnr_of(sum(error.sum().item() for error in errors), sum(error.numel() for error in errors))


def _peak(job: dict[str, Any], settings: BenchSettings) -> float | None:
    """Return the memory in MB that loading one variant, alone in this process, and decoding once adds."""
    variants = _work(job, settings)
    latents = load_file(Path(job["folder"]) / "inputs.safetensors")["latents_0"]
    device = torch_device(settings.device) if job["target"] == "torch" else torch.device("cpu")
    forget_peak(device)
    before = held_bytes(device)
    variants[job["peak_of"]].load().once(latents)
    return _above(before, device)


@torch.no_grad()
def _memory_of_length(job: dict[str, Any], settings: BenchSettings) -> float | None:
    """Return the memory in MB that one decode of a clip of some length adds, whole or streamed.

    `job["of"]` is the number of the decoder, or "teacher". None for a stream of a decoder that has none.
    """
    form, frames = job["memory"]
    device = torch_device(settings.device)
    decoder = _load(job["decoders"][0 if job["of"] == "teacher" else job["of"]])
    shape = latent_shape(decoder, frames, settings.size)
    if job["of"] == "teacher":
        decode = load_teacher(teacher_spec(job["teacher"], job["decoders"][0]["name"]), device=device).decode_by_class
    else:
        nn.Module.to(module_of(decoder), device=device)
        decode = partial(decode_without_gradients, decoder)
    latents = torch.zeros(1, *shape, device=device)
    decode(latents[:, :, :1])  # kernels are chosen, libraries loaded
    forget_peak(device)
    before = held_bytes(device)
    pieces = latents.split(_STREAMED_FRAMES, dim=2)
    if form != "streamed":
        decode(latents)
    elif isinstance(decoder, StudentDecoder):
        for _ in StreamingDecoder(decoder).decode(iter(pieces)):
            pass
    elif decoder.stream() is None:
        return None
    else:
        for _ in decode_in_pieces(decoder, pieces):
            pass
    return _above(before, device)


def _above(before: int, device: torch.device) -> float | None:
    peak = peak_mb(device)
    return None if peak is None else max(0.0, peak - before / 1e6)
