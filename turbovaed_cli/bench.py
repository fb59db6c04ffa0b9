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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import (
    CheckFailedError,
    MissingError,
    OutputExistsError,
    SettingsError,
    TurboVaedError,
    UnavailableError,
)
from turbovaed_cli.export import MIN_PSNR_DB, export_student, first_videos, latents_for, psnr_of, raise_for_misses
from turbovaed_cli.exporters import Graph, exporters
from turbovaed_cli.exporters.coreml import runs_here
from turbovaed_cli.exporters.cost import cost
from turbovaed_cli.files.documents import names_only
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import room_for, whole_folder, write_json
from turbovaed_cli.machine.devices import DTYPES, apple_device, forget_peak, peak_mb, resolve_dtype, torch_device, warn_of_cudnn
from turbovaed_cli.models.export_form import export_form
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.memory import held_bytes
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import LAYOUTS, BenchSettings, ExportSettings
from turbovaed_cli.targets import STUDENT, TEACHER, Exported, Running, Target, Variant, Work, targets
from turbovaed_cli.targets.coreml import attached_device
from turbovaed_cli.targets.ios_project import write_project
from turbovaed_cli.targets.published import SPEEDS, estimate_on_phone, why_no_estimate
from turbovaed_cli.targets.results import VIDEO_FPS, BenchResult, BenchRow, MemoryRow, row_of
from turbovaed_cli.version import __version__
from turbovaed_cli.video import VideoInfo, read_clip
from turbovaed_cli.video.usable import Skipped

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
    for frames in (settings.frames, *settings.memory_frames):
        student.latent_shape(frames, settings.size)
    device = torch_device(settings.device, report)
    if "torch" in settings.targets:
        for precision in settings.precisions:
            if precision in DTYPES:
                warn_of_cudnn(device, resolve_dtype(precision), report)
    if apple_device(settings.device):
        _check_attached(settings)
    where, absent_teacher = _teacher_of(model, teacher, config, settings, consent)
    rows: list[BenchRow] = []
    loads: dict[str, tuple[float, float]] = {}
    failures: list[TurboVaedError] = []
    with tempfile.TemporaryDirectory(prefix="turbovaed-bench-") as folder:
        with room_for(Path(folder)):
            decoded, skipped = _write_inputs(Path(folder), model, teacher, config, student, settings, consent, report)
        job = {
            "model": model,
            "teacher": None if absent_teacher else where,
            "config": config,
            "settings": asdict(settings),
            "folder": folder,
        }
        for target in report.track(chosen, "benchmarking"):
            report.note(f"{target.name}: in a process of its own")
            try:
                answer = _in_child({**job, "target": target.name}, settings)
            except TurboVaedError as error:  # the other targets are still worth having
                rows.append(_unmeasured(target, STUDENT, "; ".join(filter(None, (error.what, error.hint))), settings))
                failures += [] if isinstance(error, MissingError) else [error]
            else:
                rows += [row_of(row) for row in answer["rows"]]
                loads[target.name] = tuple(answer["load_average"])
            if target.name == "torch" and absent_teacher:
                rows.append(_unmeasured(target, TEACHER, absent_teacher, settings))
        memory = [
            MemoryRow(form, frames, _peak_in_child({**job, "target": "torch", "memory": [form, frames]}, settings)[0])
            for form in ("whole clip", "streamed")
            for frames in report.track(settings.memory_frames, f"memory, {form}")
        ]
    gmacs = _gmacs(student, settings) if "coreml" in settings.targets else None
    return BenchResult(
        model,
        _header(settings),
        decoded,
        num_params(student),
        _with_speedups(rows, device),
        loads,
        memory,
        {student.config.teacher: SPEEDS[student.config.teacher]} if student.config.teacher in SPEEDS else {},
        estimate_on_phone(gmacs, settings.frames) if gmacs is not None else None,
        why_no_estimate(gmacs) if gmacs is not None else "",
        failures,
        skipped,
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
) -> list[Skipped]:
    """Write a Swift package that measures `model` on a phone into the folder `out`: whole, or not at all; gives the videos passed over."""
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} is there already", "add --overwrite to replace it")
    (target,) = _check(replace(settings, targets=("coreml",)))
    if len(settings.precisions) > 1 or len(settings.layouts) > 1:
        raise SettingsError("--ios-project holds one artefact", "one --dtype and one --layout")
    precision, layout = target.chosen(settings.precisions)[0], settings.layouts[0]
    student = load_student(model, config, consent=consent)
    wanted = _export_settings(settings, precision, layout)
    videos, skipped = first_videos(wanted, report)
    latents = _latents(model, teacher, config, student, settings, videos, consent, report)
    with tempfile.TemporaryDirectory() as folder:
        result = export_student(student, ("coreml",), Path(folder) / "student.mlpackage", wanted, report, latents=latents)
        raise_for_misses(result)
        (artifact,) = result.artifacts
        example = latents[0][settings.size][0]
        with torch.no_grad():
            video = student(example)
        case = {
            "model": names_only(model),
            "params": num_params(student),
            "precision": precision,
            "layout": layout,
            "size_mb": artifact.size_mb,
            "least_psnr_db": MIN_PSNR_DB.get(precision, MIN_PSNR_DB["fp16"]),
        }
        with whole_folder(out, overwrite=overwrite) as made:
            write_project(made, artifact.path, example, video, case)
    return skipped


def _gmacs(student: StudentDecoder, settings: BenchSettings) -> float:
    """Of one decode in the export form."""
    latents = torch.zeros(1, *student.latent_shape(settings.frames, settings.size))
    return cost(Graph(export_form(student), {"latents": latents}), itemsize=2).gmacs


def _teacher_of(
    model: str, teacher: str | None, config: str | None, settings: BenchSettings, consent: Consent
) -> tuple[str | None, str]:
    """Where the teacher is whose decoder is timed beside the student, and why it is not, "" where it is or was not asked for.

    A teacher that was named and does not fit is an error; one that cannot be found is a row that says so.
    """
    if not settings.teacher or "torch" not in settings.targets:
        return None, ""
    try:
        return load_pair(model, teacher, config=config, consent=consent).teacher_is, ""
    except MissingError as error:
        return None, f"{error.what}; {error.hint}"
    except SettingsError as error:
        if teacher is not None:
            raise
        return None, error.what


def _check_attached(settings: BenchSettings) -> None:
    """Raise where the device that --device names cannot be measured, before anything is converted."""
    if "coreml" not in settings.targets:
        raise SettingsError(f"--device {settings.device} is for Core ML", "--target coreml")
    if not settings.apple_team:
        raise SettingsError(
            f"--device {settings.device} needs --apple-team",
            "--apple-team ID, the development team with which coremltools signs the app that it runs there",
        )
    if not runs_here():
        raise UnavailableError(
            f"--device {settings.device} needs a Mac with Xcode", "here: --ios-project DIR writes a package to run there"
        )
    attached_device(settings.device)


def _unmeasured(target: Target, network: str, reason: str, settings: BenchSettings) -> BenchRow:
    precision, status = target.chosen(settings.precisions)[0], f"not measured: {reason}"
    return BenchRow(target.name, network, target.name, "", precision, "", False, status, settings.frames, settings.size)


def _check(settings: BenchSettings) -> list[Target]:
    """The chosen rows of the table; SettingsError for what is not in it."""
    table = targets()
    for name in settings.targets:
        check_choice("--target", name, [*table, "all"])
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
    _check_layouts(chosen, settings)
    if settings.repeats < 1 or settings.warmup < 1 or settings.clips < 1:
        raise SettingsError("--repeats and --warmup must be at least 1")
    if settings.threads < 0:
        raise SettingsError(f"--threads {settings.threads} is below 0", "0 takes as many as torch does")
    if settings.data is not None and settings.latents is not None:
        raise SettingsError("--data and --latents both say what to decode", "give one of them")
    calibrated = {name for target in chosen if target.name in exporters() for name in exporters()[target.name].calibrated}
    if calibrated & set(settings.precisions) and settings.data is None and settings.latents is None:
        raise SettingsError(
            "int8 is calibrated on real latents, and there are none", "give --data DIR of videos, or --latents FILE"
        )
    return chosen


def _check_layouts(chosen: Sequence[Target], settings: BenchSettings) -> None:
    for layout in settings.layouts or ("",):
        check_choice("--layout", layout, LAYOUTS)
        for target in chosen:
            taken = exporters()[target.name].layouts if target.name in exporters() else LAYOUTS
            if layout not in taken:
                raise SettingsError(f"{target.name} does not take --layout {layout}", f"--layout {' or '.join(taken)}")


def _write_inputs(
    folder: Path,
    model: str,
    teacher: str | None,
    config: str | None,
    student: StudentDecoder,
    settings: BenchSettings,
    consent: Consent,
    report: Reporter,
) -> tuple[str, list[Skipped]]:
    """Latents, the fp32 student's videos of them, and what they were encoded from; gives what the latents are, and the videos passed over."""
    videos, skipped = first_videos(_export_settings(settings), report)
    by_size, decoded = _latents(model, teacher, config, student, settings, videos, consent, report)
    latents = by_size[settings.size]
    tensors = {f"latents_{i}": item for i, item in enumerate(latents)}
    with torch.no_grad():
        tensors |= {f"reference_{i}": student(item) for i, item in enumerate(latents)}
    tensors |= {f"source_{i}": read_clip(info, settings.frames, settings.size)[None] for i, info in enumerate(videos)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "inputs.safetensors")
    return decoded, skipped


def _latents(
    model: str,
    teacher: str | None,
    config: str | None,
    student: StudentDecoder,
    settings: BenchSettings,
    videos: Sequence[VideoInfo],
    consent: Consent,
    report: Reporter,
) -> tuple[dict[tuple[int, int], list[Tensor]], str]:
    """What is decoded, and what it is; the teacher is loaded where videos have to be encoded."""
    loaded = load_pair(model, teacher, config=config, consent=consent).teacher if settings.data is not None else None
    return latents_for(student, _export_settings(settings), loaded, videos, report)


def _export_settings(settings: BenchSettings, precision: str = "", layout: str = "4d-cat") -> ExportSettings:
    return ExportSettings(
        settings.frames, (settings.size,), (precision,) if precision else (), layout,
        seed=settings.seed, latents=settings.latents, data=settings.data, clips=settings.clips,
        latents_are=settings.latents_are, latents_shape=settings.latents_shape,
    )  # fmt: skip


def _header(settings: BenchSettings) -> str:
    device = torch_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name} ({device.type}), {_threads(settings)} of {os.cpu_count()} threads; torch {torch.__version__}, turbovaed {__version__}"


def _threads(settings: BenchSettings) -> int:
    return settings.threads or torch.get_num_threads()


def cpu_name() -> str:
    """Of this machine, as the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    elif platform.system() == "Darwin":
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        lines = asked.stdout.splitlines()
    else:
        lines = []
    return next(iter(lines), "") or platform.processor() or platform.machine()


def _with_speedups(rows: Sequence[BenchRow], device: torch.device) -> list[BenchRow]:
    """Beside the teacher's time in the same precision, else in fp32, where both ran on the same device."""
    teachers = {row.precision: row.p50_ms for row in rows if row.network == TEACHER and row.p50_ms}
    found = []
    for row in rows:
        over = row.precision if row.precision in teachers else "fp32"
        alike = row.target == "torch" or (device.type == "cpu" and row.unit.partition(",")[0] == "CPU")
        if row.p50_ms and alike and over in teachers:
            row = replace(row, speedup=teachers[over] / row.p50_ms, speedup_over=over)  # noqa: PLW2901 - the same row, told more
        found.append(row)
    return found


# --- in the child -------------------------------------------------------------------------------------------------


def _in_child(job: dict[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Run `job` in a fresh interpreter with its threads pinned; its error becomes ours."""
    threads = str(_threads(settings))
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
    with tempfile.TemporaryDirectory(dir=job["folder"]) as folder:
        answered = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "turbovaed_cli.bench"],  # -P: nothing of the folder it is started in is imported
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
        hint = "use a smaller --size or --frames" if done.returncode in (-9, 137) else None
        raise TurboVaedError(f"the process for {job['target']} ended early (exit code {done.returncode}): {last}", hint)
    if "error" in answer:
        missing = answer["exit_code"] == MissingError.exit_code
        raise MissingError(answer["error"], answer["hint"]) if missing else _as_it_was(answer)
    return answer


def _peak_in_child(job: dict[str, Any], settings: BenchSettings) -> tuple[float | None, list[str]]:
    """Memory that a process of its own tells of, and why it does not."""
    try:
        return _in_child(job, settings)["peak_mb"], []
    except TurboVaedError as error:
        return None, [f"its peak memory is not known: {error.what}"]


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


def _work(job: dict[str, Any], settings: BenchSettings) -> list[Variant]:
    target = targets()[job["target"]]

    def student(precision: str) -> StudentDecoder:
        loaded = load_student(job["model"], job["config"])
        nn.Module.to(loaded, device=torch_device(settings.device), dtype=resolve_dtype(precision))
        return loaded

    def teacher(precision: str) -> Teacher:
        device = torch_device(settings.device)
        return load_teacher(find_model(job["teacher"]), device=device, dtype=resolve_dtype(precision))

    chosen, exported = target.chosen(settings.precisions), partial(_exported, job, settings)
    return target.variants(Work(settings, chosen, student, teacher, exported, job["teacher"] is not None, job["threads"]))


def _exported(job: dict[str, Any], settings: BenchSettings, name: str, precision: str, layout: str) -> Exported:
    """The artefact of a format, written and checked once: a process that is asked for a peak finds it."""
    folder = Path(job["folder"]) / f"{name}-{precision}-{layout}"
    if not (folder / "export.json").is_file():
        inputs = load_file(Path(job["folder"]) / "inputs.safetensors")
        items = [item for label, item in inputs.items() if label.startswith("latents_")]
        wanted = _export_settings(settings, precision, layout)
        student = load_student(job["model"], job["config"])
        result = export_student(student, (name,), folder, wanted, latents=({settings.size: items}, "the same latents"))
        for item in result.missed:
            raise CheckFailedError(
                f"{name} in {precision} is not what the student is: {item.psnr_db:.1f} dB, max abs {item.max_abs:.2g}",
                f"turbovaed export --model {job['model']} --format {name} --dtype {precision} keeps the file to look at",
            )
    (record,) = read_json(folder / "export.json")["artifacts"]
    return Exported(
        folder / record["path"], record["size_mb"], record["status"], record["psnr_db"], record["operators"], record["gmacs"]
    )


def _measure(job: dict[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Every variant of one target: loaded, called once, compared, then timed in turns."""
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
    running.clear()  # what is asked next starts processes, which need the memory
    for number, row in enumerate(rows):
        if row.measured and variants[number].in_process:
            pinned = replace(settings, threads=job["threads"])
            peak, why = _peak_in_child({**job, "settings": asdict(settings), "peak_of": number}, pinned)
            rows[number] = replace(row, peak_mb=peak, remarks=row.remarks + why)
    return {"rows": [asdict(row) for row in rows], "load_average": [before, _load_average()]}


def _started(
    target: str, variant: Variant, inputs: Mapping[str, Tensor], settings: BenchSettings
) -> tuple[BenchRow, Running | None]:
    """The row of a variant that is loaded, called for the first time and compared; or of one that this machine cannot run."""
    row = BenchRow(
        target, variant.network, variant.runtime, variant.unit, variant.precision, variant.layout,
        False, "", settings.frames, settings.size, size_mb=variant.size_mb, remarks=list(variant.remarks),
    )  # fmt: skip
    try:
        began = time.perf_counter()
        loaded = variant.load()
        load_s = getattr(loaded, "load_s", None) or time.perf_counter() - began  # some runtimes tell it themselves
        first_ms = loaded.once(inputs["latents_0"])
        quality = _quality(loaded.video, inputs, against_student=variant.network != TEACHER)
    except Exception as error:
        return _failed(row, error), None
    return replace(row, measured=True, status="measured", load_s=load_s, first_ms=first_ms, **quality), loaded


def _time(rows: list[BenchRow], running: dict[int, Running], latents: Tensor, settings: BenchSettings) -> None:
    """Call what is running in turns, so that what else the machine does hits all alike, and write the times into `rows`."""
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
    """The row of a variant that could not be measured, with the reason."""
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
    variants = _work(job, settings)
    latents = load_file(Path(job["folder"]) / "inputs.safetensors")["latents_0"]
    device = torch_device(settings.device) if job["target"] == "torch" else torch.device("cpu")
    forget_peak(device)
    before = held_bytes(device)
    variants[job["peak_of"]].load().once(latents)
    return _above(before, device)


@torch.no_grad()
def _memory_of_length(job: dict[str, Any], settings: BenchSettings) -> float | None:
    """What one decode of a clip of some length adds, whole or streamed."""
    form, frames = job["memory"]
    device = torch_device(settings.device)
    student = nn.Module.to(load_student(job["model"], job["config"]), device=device)
    latents = torch.zeros(1, *student.latent_shape(frames, settings.size), device=device)
    student.decode(latents[:, :, :1])  # kernels are chosen, libraries loaded
    forget_peak(device)
    before = held_bytes(device)
    if form == "streamed":
        for _ in StreamingDecoder(student).decode(iter(latents.split(_STREAMED_FRAMES, dim=2))):
            pass
    else:
        student.decode(latents)
    return _above(before, device)


def _above(before: int, device: torch.device) -> float | None:
    peak = peak_mb(device)
    return None if peak is None else max(0.0, peak - before / 1e6)


if __name__ == "__main__":
    _child()
