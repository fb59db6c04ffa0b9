"""`bench`: time a student's decode beside its teacher's, each target in a process of its own.

Peak memory comes from yet another process that loads one network and decodes once, since a shared one would tell nothing.
What cannot run on this machine is converted, described, and said not to have run; estimates are not made.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turbovaed_cli import __version__
from turbovaed_cli.devices import forget_peak, peak_mb, resolve_device, resolve_dtype
from turbovaed_cli.errors import MissingError, SettingsError, TurboVaedError
from turbovaed_cli.export import check_latents, export_student, raise_for_misses
from turbovaed_cli.models.pair import Pair, load_pair
from turbovaed_cli.models.student import load_student
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import BenchSettings, ExportSettings
from turbovaed_cli.weights import Consent, no_consent

MODULES = "student, plain"  # its modules one by one, as published
TARGETS = ("torch", "onnx", "coreml")
_PRECISIONS = {"torch": ("fp32", "bf16", "fp16"), "onnx": ("fp32", "fp16"), "coreml": ("fp32", "bf16", "fp16")}


@dataclass(frozen=True)
class BenchRow:
    """One network on one target. Times in milliseconds per decode; None where `measured` is false."""

    target: str
    network: str  # student, the same plain, or teacher (its decoder)
    runtime: str
    precision: str
    measured: bool
    status: str
    frames: int
    size: tuple[int, int]
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    fps: float | None = None
    peak_mb: float | None = None
    speedup: float | None = None  # the teacher's P50 in this run over this row's
    size_mb: float | None = None
    samples_ms: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BenchResult:
    """All rows, and the machine they are from."""

    model: str
    header: str
    rows: list[BenchRow]


def bench(
    model: str,
    settings: BenchSettings = BenchSettings(),  # noqa: B008 - frozen
    *,
    teacher: str | None = None,
    config: str | None = None,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> BenchResult:
    """Time `model` on every target of `settings`; the teacher's decoder beside it where its weights are here.

    Raises SettingsError for an unknown target or precision, ShapeError for sizes the student cannot make,
    MissingWeightsError where the student itself is not here.
    """
    _check(settings)
    student = load_student(model, config, consent=consent)
    student.latent_shape(settings.frames, settings.size)
    resolve_device(settings.device)
    absent_teacher = ""
    if settings.teacher and "torch" in settings.targets:
        try:
            load_pair(model, teacher, config=config, consent=consent)
        except MissingError as error:
            absent_teacher = f"{error.what}; {error.hint}"
        except SettingsError as error:
            absent_teacher = error.what
    rows: list[BenchRow] = []
    job = {
        "model": model,
        "teacher": teacher,
        "config": config,
        "settings": asdict(settings),
        "with_teacher": settings.teacher and not absent_teacher,
    }
    for target in report.track(settings.targets, "benchmarking"):
        report.note(f"{target}: in a process of its own")
        try:
            rows += [BenchRow(**{**row, "size": tuple(row["size"])}) for row in _in_child({**job, "target": target})]
        except MissingError as error:
            rows.append(_unmeasured(target, "student", f"{error.what}; {error.hint}", settings))
    if absent_teacher:
        rows.insert(1, _unmeasured("torch", "teacher", absent_teacher, settings))
    return BenchResult(model, _header(settings), _with_speedups(rows, resolve_device(settings.device)))


def _unmeasured(target: str, network: str, reason: str, settings: BenchSettings) -> BenchRow:
    return BenchRow(target, network, target, settings.precision, False, f"not measured: {reason}", settings.frames, settings.size)


def _check(settings: BenchSettings) -> None:
    for target in settings.targets:
        if target not in TARGETS:
            raise SettingsError(f"--target {target} is unknown", f"one of: {', '.join(TARGETS)}, all")
        if settings.precision not in _PRECISIONS[target]:
            raise SettingsError(f"--target {target} has no {settings.precision}", f"--dtype {' or '.join(_PRECISIONS[target])}")
    if settings.repeats < 1 or settings.warmup < 1:
        raise SettingsError("--repeats and --warmup must be at least 1")


def _header(settings: BenchSettings) -> str:
    device = resolve_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    threads = settings.threads or torch.get_num_threads()
    return (
        f"{name} ({device.type}), {threads} of {os.cpu_count()} threads{load}; torch {torch.__version__}, turbovaed {__version__}"
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )


def _with_speedups(rows: Sequence[BenchRow], device: torch.device) -> list[BenchRow]:
    """Beside the teacher's time, where both ran on the same device."""
    reference = next((row.p50_ms for row in rows if row.network == "teacher" and row.measured), None)
    return [
        replace(row, speedup=reference / row.p50_ms)
        if reference and row.p50_ms and (row.target == "torch" or device.type == "cpu")
        else row
        for row in rows
    ]


def as_row(row: BenchRow) -> tuple[str, ...]:
    """One line of the table."""
    numbers = (row.first_ms, row.p50_ms, row.p90_ms, row.fps, row.peak_mb)
    speedup = f"{row.speedup:.2f}x" if row.speedup else "-"
    return (
        row.target,
        row.network,
        row.precision,
        *("-" if n is None else f"{n:.0f}" if n >= 100 else f"{n:.1f}" for n in numbers),
        speedup,
        row.status,
    )


def as_document(result: BenchResult) -> dict[str, Any]:
    """The JSON document of `bench --json`."""
    return {"schema_version": 1, "model": result.model, "machine": result.header, "rows": [asdict(row) for row in result.rows]}


# --- in the child -------------------------------------------------------------------------------------------------


def _in_child(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `job` in a fresh interpreter; its error becomes ours."""
    done = subprocess.run(
        [sys.executable, "-m", "turbovaed_cli.bench"],
        input=json.dumps(job, default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TurboVaedError(
            f"the process for {job['target']} ended early: {last}", "use a smaller --size or --frames if memory ran out"
        ) from None
    if "error" in answer:
        raise (
            MissingError(answer["error"], answer["hint"]) if answer["exit_code"] == MissingError.exit_code else _as_it_was(answer)
        )
    return list(answer["rows"])


def _as_it_was(answer: dict[str, Any]) -> TurboVaedError:
    error = TurboVaedError(answer["error"], answer["hint"])
    error.exit_code = answer["exit_code"]
    return error


def _child() -> None:
    job = json.loads(sys.stdin.read())
    job["settings"] = BenchSettings(
        **{**job["settings"], "size": tuple(job["settings"]["size"]), "targets": tuple(job["settings"]["targets"])}
    )
    if job["settings"].threads:
        torch.set_num_threads(job["settings"].threads)
    try:
        answer: dict[str, Any] = {"rows": _WORK[job["target"]](job)}
    except TurboVaedError as error:
        answer = {"error": error.what, "hint": error.hint, "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer) + "\n")


def _pair(job: dict[str, Any]) -> Pair:
    settings = job["settings"]
    return load_pair(
        job["model"],
        job["teacher"],
        config=job["config"],
        with_teacher=bool(job["with_teacher"]),
        device=resolve_device(settings.device),
        dtype=resolve_dtype(settings.precision),
    )


def _decoders(pair: Pair, settings: BenchSettings) -> dict[str, Callable[[], None]]:
    """One decode of the same latents by each network: the student as it decodes and, where that differs, by its modules."""
    student = pair.student
    latents = check_latents(student, ExportSettings(settings.frames, (settings.size,))).to(pair.device, student.dtype)

    @torch.no_grad()
    def by_student() -> None:
        student.decode(latents)
        _synchronize(pair.device)

    @torch.no_grad()
    def by_modules() -> None:
        student(latents)
        _synchronize(pair.device)

    def by_teacher() -> None:
        assert pair.teacher is not None
        pair.teacher.decode(latents)
        _synchronize(pair.device)

    decoders = {"student": by_student}
    if student.decodes_fast:
        decoders[MODULES] = by_modules
    return decoders | ({"teacher": by_teacher} if pair.teacher is not None else {})


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _time(calls: Mapping[str, Callable[[], object]], settings: BenchSettings) -> dict[str, tuple[float, list[float]]]:
    """(first, samples) in ms of each call, taking turns so that what else the machine does hits all alike."""
    firsts = {name: _once(call) for name, call in calls.items()}
    for _ in range(settings.warmup - 1):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(settings.repeats):
        for name, call in calls.items():
            samples[name].append(_once(call))
    return {name: (firsts[name], samples[name]) for name in calls}


def _once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _row(job: dict[str, Any], network: str, runtime: str, times: tuple[float, list[float]], **more: Any) -> dict[str, Any]:
    settings, (first, samples) = job["settings"], times
    p50, p90 = (float(np.percentile(samples, q)) for q in (50, 90))
    row = BenchRow(
        job["target"], network, runtime, settings.precision, True, "measured", settings.frames, settings.size,
        first_ms=first, p50_ms=p50, p90_ms=p90, fps=settings.frames / p50 * 1e3, samples_ms=samples,
    )  # fmt: skip
    return asdict(replace(row, **more))


def _bench_torch(job: dict[str, Any]) -> list[dict[str, Any]]:
    if job.get("memory_of"):
        return [{"peak_mb": _peak_of(job)}]
    pair = _pair(job)
    times = _time(_decoders(pair, job["settings"]), job["settings"])
    peaks = {
        network: _in_child({**job, "settings": asdict(job["settings"]), "memory_of": network})[0]["peak_mb"] for network in times
    }
    runtime, forms = f"torch {torch.__version__}, {pair.device.type}", {}
    if pair.student.decodes_fast:
        forms = {"student": f"; {pair.student.ready().speedups}", MODULES: "; module by module"}
    return [_row(job, network, runtime + forms.get(network, ""), times[network], peak_mb=peaks[network]) for network in times]


def _peak_of(job: dict[str, Any]) -> float | None:
    """Highest memory in MB while one network, alone in this process, decodes."""
    pair = _pair({**job, "with_teacher": job["memory_of"] == "teacher"})
    call = _decoders(pair, job["settings"])[job["memory_of"]]
    forget_peak(pair.device)
    call()
    return peak_mb(pair.device)


def _exported(job: dict[str, Any], target: str, precision: str, folder: Path) -> tuple[Any, torch.Tensor]:
    settings = job["settings"]
    wanted = ExportSettings(settings.frames, (settings.size,), (precision,))
    student = load_student(job["model"], job["config"])
    result = export_student(student, (target,), folder, wanted)
    raise_for_misses(result)
    (artifact,) = result.artifacts
    return artifact, check_latents(student, wanted)


def _bench_onnx(job: dict[str, Any]) -> list[dict[str, Any]]:
    import onnxruntime  # noqa: PLC0415 - only this target needs it

    from turbovaed_cli.exporters.onnx import session  # noqa: PLC0415

    settings = job["settings"]
    with tempfile.TemporaryDirectory() as folder:
        if job.get("memory_of"):
            path, latents = Path(job["path"]), torch.load(job["latents"], weights_only=True)
            running = session(path, settings.threads)
            forget_peak(torch.device("cpu"))
            running.run(None, {"latents": latents.numpy()})
            return [{"peak_mb": peak_mb(torch.device("cpu"))}]
        artifact, latents = _exported(job, "onnx", settings.precision, Path(folder))
        torch.save(latents, Path(folder) / "latents.pt")
        began = time.perf_counter()
        running = session(artifact.path, settings.threads)
        load_s = time.perf_counter() - began
        feed = {"latents": latents.numpy()}
        times = _time({"student": lambda: running.run(None, feed)}, settings)
        memory_job = {
            **job,
            "settings": asdict(settings),
            "memory_of": "student",
            "path": str(artifact.path),
            "latents": str(Path(folder) / "latents.pt"),
        }
        peak = _in_child(memory_job)[0]["peak_mb"]
        remarks = [f"loads in {load_s:.1f} s; {artifact.size_mb:.1f} MB; max abs {artifact.max_abs:.1e} against the fp32 student"]
        return [
            _row(
                job,
                "student",
                f"ONNX Runtime {onnxruntime.__version__}, CPU",
                times["student"],
                peak_mb=peak,
                size_mb=artifact.size_mb,
                remarks=remarks,
            )
        ]


def _bench_coreml(job: dict[str, Any]) -> list[dict[str, Any]]:
    from turbovaed_cli.exporters.coreml import runs_here  # noqa: PLC0415 - only this target needs it

    settings = replace(job["settings"], precision="fp16")  # the Neural Engine's only precision
    job = {**job, "settings": settings}
    with tempfile.TemporaryDirectory() as folder:
        artifact, latents = _exported(job, "coreml", "fp16", Path(folder))
        operators = ", ".join(f"{count} {name}" for name, count in list(artifact.operators.items())[:6])
        remarks = [
            f"{artifact.size_mb:.1f} MB, fp16, {sum(artifact.operators.values())} operators ({operators}, ...), {artifact.gmacs:.1f} GMAC per decode, rank <= {artifact.max_rank}",
            f"numbers: {artifact.psnr_db:.1f} dB against the fp32 student ({artifact.status})",
        ]
        if not runs_here():
            status = (
                "did not run here: converted only. Core ML runs on a Mac (macOS 14 or later): turbovaed bench --target coreml"
            )
            row = BenchRow(
                "coreml",
                "student",
                "Core ML",
                "fp16",
                False,
                status,
                settings.frames,
                settings.size,
                size_mb=artifact.size_mb,
                remarks=remarks,
            )
            return [asdict(row)]
        return _run_coreml(job, artifact.path, latents, artifact.size_mb, remarks)


def _run_coreml(
    job: dict[str, Any], path: Path, latents: torch.Tensor, megabytes: float, remarks: list[str]
) -> list[dict[str, Any]]:
    """On a Mac: every choice of compute units, one row each."""
    import coremltools  # noqa: PLC0415

    rows = []
    for units in ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"):
        began = time.perf_counter()
        model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[units])
        load = f"{units}: loads in {time.perf_counter() - began:.1f} s"
        times = _time({"student": lambda model=model: model.predict({"latents": latents.numpy()})}, job["settings"])  # type: ignore[misc]
        rows.append(_row(job, "student", f"Core ML, {units}", times["student"], size_mb=megabytes, remarks=[load, *remarks]))
    return rows


_WORK: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {
    "torch": _bench_torch,
    "onnx": _bench_onnx,
    "coreml": _bench_coreml,
}

if __name__ == "__main__":
    _child()
