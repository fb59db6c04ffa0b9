"""`bench`: time a student's decode beside its teacher's on every runtime there is, each target in a process of its own.

All decode the same latents, take turns, and are compared with the fp32 student. Peak memory comes from yet another process
that loads one network and decodes once, since a shared one would tell nothing. What cannot run on this machine is converted,
described, and said not to have run; estimates and published figures lie apart.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from turbovaed_cli import __version__
from turbovaed_cli.devices import forget_peak, peak_mb, resolve_device, resolve_dtype
from turbovaed_cli.errors import MissingError, OutputExistsError, SettingsError, TurboVaedError
from turbovaed_cli.export import MIN_PSNR_DB, export_student, latents_for, psnr_of, raise_for_misses
from turbovaed_cli.exporters import Graph, exporters
from turbovaed_cli.exporters.cost import cost
from turbovaed_cli.models.export_form import LAYOUTS, export_form
from turbovaed_cli.models.memory import held_bytes
from turbovaed_cli.models.pair import Pair, load_pair
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder, load_student, num_params
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import read_json, whole_folder, write_json
from turbovaed_cli.settings import BenchSettings, ExportSettings
from turbovaed_cli.targets import STUDENT, TEACHER, Exported, Target, Variant, Work, targets
from turbovaed_cli.targets.ios_project import write_project
from turbovaed_cli.targets.published import SPEEDS, estimate_on_phone
from turbovaed_cli.targets.results import VIDEO_FPS, BenchResult, BenchRow, MemoryRow, row_of
from turbovaed_cli.targets.torch import device_of
from turbovaed_cli.video import list_videos, read_clip
from turbovaed_cli.weights import Consent, no_consent

_ENOUGH_MS, _FEWEST = 30e3, 3  # a row that has taken so long is called no more, once it has so many samples
_STREAMED_FRAMES = 2  # latent frames at once, where memory over length is measured


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
    chosen = _check(settings)
    student = load_student(model, config, consent=consent)
    student.latent_shape(settings.frames, settings.size)
    resolve_device(device_of(settings.device))
    absent_teacher = _why_no_teacher(model, teacher, config, settings, consent)
    rows: list[BenchRow] = []
    loads: dict[str, tuple[float, float]] = {}
    memory: list[MemoryRow] = []
    with tempfile.TemporaryDirectory(prefix="turbovaed-bench-") as folder:
        decoded = _write_inputs(Path(folder), model, teacher, config, student, settings, consent, report)
        job = {
            "model": model,
            "teacher": teacher,
            "config": config,
            "settings": asdict(settings),
            "with_teacher": settings.teacher and not absent_teacher,
            "folder": folder,
        }
        for target in report.track(list(chosen), "benchmarking"):
            report.note(f"{target.name}: in a process of its own")
            try:
                answer = _in_child({**job, "target": target.name}, settings)
            except MissingError as error:
                rows.append(_unmeasured(target, STUDENT, f"{error.what}; {error.hint}", settings))
                continue
            rows += [row_of(row) for row in answer["rows"]]
            loads[target.name] = tuple(answer["load_average"])
        if absent_teacher:
            rows.insert(1, _unmeasured(chosen[0], TEACHER, absent_teacher, settings))
        for form in ("whole clip", "streamed") if settings.memory_frames else ():
            for frames in report.track(settings.memory_frames, f"memory, {form}"):
                answer = _in_child({**job, "target": "torch", "memory": [form, frames]}, settings)
                memory.append(MemoryRow(form, frames, answer["peak_mb"]))
    return BenchResult(
        model,
        _header(settings),
        decoded,
        num_params(student),
        _with_speedups(rows, resolve_device(device_of(settings.device))),
        loads,
        memory,
        {student.config.teacher: SPEEDS[student.config.teacher]} if student.config.teacher in SPEEDS else {},
        estimate_on_phone(_gmacs(student, settings), settings.frames) if "coreml" in settings.targets else None,
    )


def write_ios_project(
    out: Path,
    model: str,
    settings: BenchSettings = BenchSettings(),  # noqa: B008 - frozen
    *,
    teacher: str | None = None,
    config: str | None = None,
    overwrite: bool = False,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> None:
    """Write a Swift package that measures `model` on a phone into the folder `out`: whole, or not at all."""
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} is there already", "add --overwrite to replace it")
    (target,) = _check(replace(settings, targets=("coreml",)))
    precision, layout = next(iter(settings.precisions), target.precisions[0]), settings.layouts[0]
    student = load_student(model, config, consent=consent)
    wanted = _export_settings(settings, precision, layout)
    loaded = load_pair(model, teacher, config=config, consent=consent).teacher if settings.data is not None else None
    latents = latents_for(student, wanted, loaded, report)
    with tempfile.TemporaryDirectory() as folder:
        result = export_student(student, ("coreml",), Path(folder) / "student.mlpackage", wanted, report, latents=latents)
        raise_for_misses(result)
        (artifact,) = result.artifacts
        example = latents[0][settings.size][0]
        with torch.no_grad():
            video = student(example)
        case = {
            "model": model,
            "params": num_params(student),
            "precision": precision,
            "layout": layout,
            "size_mb": artifact.size_mb,
            "least_psnr_db": MIN_PSNR_DB.get(precision, MIN_PSNR_DB["fp16"]),
        }
        with whole_folder(out, overwrite=overwrite) as made:
            write_project(made, artifact.path, example, video, case)


def _gmacs(student: StudentDecoder, settings: BenchSettings) -> float:
    """Of one decode in the export form."""
    latents = torch.zeros(1, *student.latent_shape(settings.frames, settings.size))
    return cost(Graph(export_form(student), {"latents": latents}), itemsize=2).gmacs


def _why_no_teacher(model: str, teacher: str | None, config: str | None, settings: BenchSettings, consent: Consent) -> str:
    """Why its decoder is not beside the student, "" where it is, or was not asked for."""
    if not settings.teacher or "torch" not in settings.targets:
        return ""
    try:
        load_pair(model, teacher, config=config, consent=consent)
    except MissingError as error:
        return f"{error.what}; {error.hint}"
    except SettingsError as error:
        return error.what
    return ""


def _unmeasured(target: Target, network: str, reason: str, settings: BenchSettings) -> BenchRow:
    precision = next((name for name in settings.precisions if name in target.precisions), target.precisions[0])
    return BenchRow(
        target.name, network, target.name, "", precision, "", False, f"not measured: {reason}", settings.frames, settings.size
    )


def _check(settings: BenchSettings) -> list[Target]:
    """The chosen rows of the table; SettingsError for what is not in it."""
    table = targets()
    for name in settings.targets:
        if name not in table:
            raise SettingsError(f"--target {name} is unknown", f"one of: {', '.join(table)}, all")
        if settings.precisions and not set(settings.precisions) & set(table[name].precisions):
            raise SettingsError(
                f"--target {name} has no {' or '.join(settings.precisions)}", f"--dtype {' or '.join(table[name].precisions)}"
            )
    chosen = [table[name] for name in dict.fromkeys(settings.targets)]
    for precision in settings.precisions:
        if not any(precision in target.precisions for target in chosen):
            raise SettingsError(
                f"--dtype {precision} is of none of these targets",
                f"one of: {', '.join(dict.fromkeys(name for target in chosen for name in target.precisions))}",
            )
    for layout in settings.layouts:
        if layout not in LAYOUTS:
            raise SettingsError(f"--layout {layout} is unknown", f"one of: {', '.join(LAYOUTS)}")
    if settings.repeats < 1 or settings.warmup < 1:
        raise SettingsError("--repeats and --warmup must be at least 1")
    if settings.data is not None and settings.latents is not None:
        raise SettingsError("--data and --latents both say what to decode", "give one of them")
    calibrated = {name for target in chosen if target.name in exporters() for name in exporters()[target.name].calibrated}
    if calibrated & set(settings.precisions) and settings.data is None and settings.latents is None:
        raise SettingsError(
            "int8 is calibrated on real latents, and there are none", "give --data DIR of videos, or --latents FILE"
        )
    return chosen


def _write_inputs(
    folder: Path,
    model: str,
    teacher: str | None,
    config: str | None,
    student: StudentDecoder,
    settings: BenchSettings,
    consent: Consent,
    report: Reporter,
) -> str:
    """Latents, the fp32 student's videos of them, and what they were encoded from; says what the latents are."""
    wanted = _export_settings(settings)
    loaded = load_pair(model, teacher, config=config, consent=consent).teacher if settings.data is not None else None
    by_size, decoded = latents_for(student, wanted, loaded, report)
    latents = by_size[settings.size]
    tensors = {f"latents_{i}": item for i, item in enumerate(latents)}
    with torch.no_grad():
        tensors |= {f"reference_{i}": student(item) for i, item in enumerate(latents)}
    if settings.data is not None:
        for i, path in enumerate(islice(list_videos(settings.data), settings.clips)):
            tensors[f"source_{i}"] = read_clip(path, frames=settings.frames, size=settings.size)[None]
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "inputs.safetensors")
    return decoded


def _export_settings(settings: BenchSettings, precision: str = "", layout: str = "4d-cat") -> ExportSettings:
    return ExportSettings(
        settings.frames, (settings.size,), (precision,) if precision else (), layout,
        seed=settings.seed, latents=settings.latents, data=settings.data, clips=settings.clips,
    )  # fmt: skip


def _header(settings: BenchSettings) -> str:
    device = resolve_device(device_of(settings.device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name} ({device.type}), {_threads(settings)} of {os.cpu_count()} threads; torch {torch.__version__}, turbovaed {__version__}"


def _threads(settings: BenchSettings) -> int:
    return settings.threads or torch.get_num_threads()


def cpu_name() -> str:
    """Of this machine, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )


def _with_speedups(rows: Sequence[BenchRow], device: torch.device) -> list[BenchRow]:
    """Beside the teacher's time, where both ran on the same device."""
    reference = next((row.p50_ms for row in rows if row.network == TEACHER and row.measured), None)
    return [
        replace(row, speedup=reference / row.p50_ms)
        if reference and row.p50_ms and (row.target == "torch" or (device.type == "cpu" and row.unit.startswith("CPU")))
        else row
        for row in rows
    ]


# --- in the child -------------------------------------------------------------------------------------------------


def _in_child(job: dict[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Run `job` in a fresh interpreter with its threads pinned; its error becomes ours."""
    threads = str(_threads(settings))
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
    with tempfile.TemporaryDirectory(dir=job["folder"]) as folder:
        answered = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "turbovaed_cli.bench"],
            input=json.dumps({**job, "threads": int(threads), "answer": str(answered)}, default=str),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | dict.fromkeys(pools, threads),
        )
        answer = read_json(answered) if answered.is_file() else None
    if answer is None:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TurboVaedError(
            f"the process for {job['target']} ended early: {last}", "use a smaller --size or --frames if memory ran out"
        )
    if "error" in answer:
        missing = answer["exit_code"] == MissingError.exit_code
        raise MissingError(answer["error"], answer["hint"]) if missing else _as_it_was(answer)
    return answer


def _as_it_was(answer: dict[str, Any]) -> TurboVaedError:
    error = TurboVaedError(answer["error"], answer["hint"])
    error.exit_code = answer["exit_code"]
    return error


def _child() -> None:
    job = json.loads(sys.stdin.read())
    record = job["settings"]
    for name in ("size", "targets", "precisions", "layouts", "memory_frames"):
        record[name] = tuple(record[name])
    for name in ("data", "latents"):
        record[name] = Path(record[name]) if record[name] else None
    settings = BenchSettings(**record)
    torch.set_num_threads(job["threads"])
    with suppress(AttributeError, OSError):  # Linux alone; runtimes with pools of their own stay on these cores too
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


def _work(job: dict[str, Any], settings: BenchSettings) -> tuple[Work, list[Variant]]:
    target = targets()[job["target"]]
    inputs = Path(job["folder"]) / "inputs.safetensors"

    def pair(precision: str, with_teacher: bool) -> Pair:
        return load_pair(
            job["model"],
            job["teacher"],
            config=job["config"],
            with_teacher=with_teacher,
            device=resolve_device(device_of(settings.device)),
            dtype=resolve_dtype(precision),
        )

    def exported(name: str, precision: str, layout: str) -> Exported:
        folder = Path(job["folder"]) / f"{name}-{precision}-{layout}"
        if not (folder / "export.json").is_file():  # otherwise by the process that asks for the peak
            items = [item for label, item in load_file(inputs).items() if label.startswith("latents_")]
            result = export_student(
                load_student(job["model"], job["config"]),
                (name,),
                folder,
                _export_settings(settings, precision, layout),
                latents=({settings.size: items}, "the same latents"),
            )
            raise_for_misses(result)
        (record,) = read_json(folder / "export.json")["artifacts"]
        return Exported(
            folder / record["path"], record["size_mb"], record["status"], record["psnr_db"], record["operators"], record["gmacs"]
        )

    precisions = tuple(name for name in settings.precisions if name in target.precisions) or target.precisions[:1]
    shape = tuple(load_file(inputs)["latents_0"].shape)
    work = Work(settings, precisions, pair, exported, bool(job["with_teacher"]), shape, job["threads"])
    return work, target.variants(work)


def _measure(job: dict[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Every variant of one target: loaded, called once, compared, then timed in turns."""
    before = _load_average()
    work, variants = _work(job, settings)
    inputs = load_file(Path(job["folder"]) / "inputs.safetensors")
    latents = inputs["latents_0"]
    rows, running = [], {}
    for number, variant in enumerate(variants):
        row = BenchRow(
            job["target"], variant.network, variant.runtime, variant.unit, variant.precision, variant.layout,
            False, "", settings.frames, settings.size, size_mb=variant.size_mb, remarks=list(variant.remarks),
        )  # fmt: skip
        try:
            began = time.perf_counter()
            loaded = variant.load()
            load_s = getattr(loaded, "load_s", None) or time.perf_counter() - began  # some runtimes tell it themselves
            first_ms = loaded.once(latents)
            quality = _quality(loaded.video, inputs, against_student=variant.network != TEACHER)
        except TurboVaedError as error:
            row = replace(row, status="; ".join(filter(None, (f"not measured: {error.what}", error.hint))))
        except Exception as error:
            line = next(iter(str(error).splitlines()), "")
            row = replace(row, status=f"not measured: {type(error).__name__}: {line}")
        else:
            running[number] = loaded
            row = replace(row, measured=True, status="measured", load_s=load_s, first_ms=first_ms, **quality)
        rows.append(row)
    samples: dict[int, list[float]] = {number: [] for number in running}
    spent = dict.fromkeys(running, 0.0)
    for call in range(settings.warmup - 1 + settings.repeats):
        for number, loaded in running.items():
            if spent[number] < _ENOUGH_MS or len(samples[number]) < _FEWEST:
                milliseconds = loaded.once(latents)
                spent[number] += milliseconds
                if call >= settings.warmup - 1:
                    samples[number].append(milliseconds)
    for number, times in samples.items():
        if len(times) < settings.repeats:
            rows[number].remarks.append(
                f"{rows[number].network}, {rows[number].precision}: slow, so {len(times)} calls were timed"
            )
        p50, p90 = (float(np.percentile(times, q)) for q in (50, 90))
        fps = settings.frames / p50 * 1e3
        try:
            told = dict(running[number].told(latents))
        except Exception as error:
            told = {"not_told": f"{type(error).__name__}: {error}"}
        rows[number] = replace(
            rows[number], p50_ms=p50, p90_ms=p90, fps=fps, realtime=fps / VIDEO_FPS, samples_ms=times, told=told,
            peak_mb=_in_child({**job, "settings": asdict(settings), "peak_of": number}, replace(settings, threads=work.threads))["peak_mb"],
        )  # fmt: skip
    return {"rows": [asdict(row) for row in rows], "load_average": [before, _load_average()]}


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _quality(decode: Callable[[Tensor], Tensor], inputs: Mapping[str, Tensor], *, against_student: bool) -> dict[str, Any]:
    """PSNR over all latents, against the fp32 student's videos and against the source's where there is one."""
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
    """Memory in MB that loading one variant, alone in this process, and decoding once adds."""
    _, variants = _work(job, settings)
    latents = load_file(Path(job["folder"]) / "inputs.safetensors")["latents_0"]
    device = resolve_device(device_of(settings.device)) if job["target"] == "torch" else torch.device("cpu")
    forget_peak(device)
    before = held_bytes(device)
    variants[job["peak_of"]].load().once(latents)
    return _above(before, device)


@torch.no_grad()
def _memory_of_length(job: dict[str, Any], settings: BenchSettings) -> float | None:
    """What one decode of a clip of some length adds, whole or streamed."""
    form, frames = job["memory"]
    device = resolve_device(device_of(settings.device))
    pair = load_pair(job["model"], job["teacher"], config=job["config"], with_teacher=False, device=device)
    latents = torch.zeros(1, *pair.student.latent_shape(frames, settings.size), device=device)
    pair.student.decode(latents[:, :, :1])  # kernels are chosen, libraries loaded
    forget_peak(device)
    before = held_bytes(device)
    if form == "streamed":
        for _ in StreamingDecoder(pair.student).decode(iter(latents.split(_STREAMED_FRAMES, dim=2))):
            pass
    else:
        pair.student.decode(latents)
    return _above(before, device)


def _above(before: int, device: torch.device) -> float | None:
    peak = peak_mb(device)
    return None if peak is None else max(0.0, peak - before / 1e6)


if __name__ == "__main__":
    _child()
