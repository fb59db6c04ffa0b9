"""`bench`: time a student's decode next to its teacher's on every available runtime, each target in a separate process.

All variants decode the same latents, take turns, and are compared with the fp32 student. Peak memory is measured in another
process that loads one network and decodes once, since a shared one could not separate them. A target that cannot run on this
machine is converted and described, and its row gives the reason. Estimates and published figures are kept apart.
"""

import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from turbovaed_cli.benchmarking.child import decoder_in_job, export_settings, in_child, num_threads, peak_in_child
from turbovaed_cli.benchmarking.ios_project import write_project
from turbovaed_cli.benchmarking.published import SPEEDS, estimate_on_phone, why_no_estimate
from turbovaed_cli.benchmarking.results import BenchResult, BenchRow, DecoderFacts, MemoryRow, row_of
from turbovaed_cli.benchmarking.target import STUDENT, TEACHER, Target
from turbovaed_cli.benchmarking.targets.coreml import attached_device
from turbovaed_cli.benchmarking.targets.table import targets
from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import (
    MissingError,
    OutputExistsError,
    SettingsError,
    TurboVaedError,
    UnavailableError,
)
from turbovaed_cli.export.checked_on import first_videos, latents_for
from turbovaed_cli.export.compare import MIN_PSNR_DB, decoded
from turbovaed_cli.export.cost import cost
from turbovaed_cli.export.export import export_student, raise_for_misses
from turbovaed_cli.export.export_form import export_form
from turbovaed_cli.export.format import Graph
from turbovaed_cli.export.formats.coreml import runs_here
from turbovaed_cli.export.formats.table import exporters
from turbovaed_cli.files.documents import names_only
from turbovaed_cli.files.whole import room_for, whole_folder
from turbovaed_cli.machine.devices import DTYPES, apple_device, resolve_dtype, torch_device, warn_of_cudnn
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import latent_shape, num_params_of
from turbovaed_cli.models.pair import Pair, load_pair, named_decoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import LAYOUTS, BenchSettings
from turbovaed_cli.version import __version__
from turbovaed_cli.video import VideoInfo, read_clip
from turbovaed_cli.video.usable import Skipped


@dataclass(frozen=True)
class _Asked:
    """The decoder that is timed, as it was named; see load_pair."""

    model: str
    teacher: str | None = None
    family: str | None = None
    config: str | None = None
    consent: Consent = no_consent

    def load(self, **options: Any) -> Pair:
        """Load it, with the teacher unless `with_teacher` is False."""
        return load_pair(self.model, self.teacher, family=self.family, config=self.config, consent=self.consent, **options)


def bench(
    model: str,
    settings: BenchSettings = BenchSettings(),
    *,
    teacher: str | None = None,
    family: str | None = None,
    config: str | None = None,
    against: Sequence[str] = (),
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> BenchResult:
    """Time `model` on every target of `settings`, and the teacher's decoder too if its weights are on this machine.

    `model` is any decoder that `load_decoder` takes; `against` names decoders of the same latents, PLACE or FAMILY:PLACE, which
    get rows of their own. Raises SettingsError for an unknown target or precision and for decoders of other latents, ShapeError
    for sizes the decoder cannot make, and MissingWeightsError if its weights are not here.
    """
    chosen = _check(settings)
    asked = _Asked(model, teacher, family, config, consent)
    pair = asked.load(against=against, with_teacher=False)
    student = pair.student
    for frames in (settings.frames, *settings.memory_frames):
        for decoder in pair.decoders:
            latent_shape(decoder, frames, settings.size)
    device = torch_device(settings.device, report)
    if "torch" in settings.targets:
        for precision in settings.precisions:
            if precision in DTYPES:
                warn_of_cudnn(device, resolve_dtype(precision), report)
    if apple_device(settings.device):
        _check_attached(settings)
    where, absent_teacher = _teacher_of(asked, settings)
    with tempfile.TemporaryDirectory(prefix="turbovaed-bench-") as folder:
        with room_for(Path(folder)):
            described, skipped = _write_inputs(Path(folder), asked, student, settings, report)
        job = {
            "decoders": _decoders_of(pair, asked),
            "teacher": None if absent_teacher else where,
            "settings": asdict(settings),
            "folder": folder,
        }
        rows, loads, failures = _measure_each(chosen, job, absent_teacher, settings, report)
        memory = _memory_over_length(job, settings, report)
    gmacs = _gmacs(student, settings) if "coreml" in settings.targets else None
    return BenchResult(
        model,
        _header(settings),
        described,
        num_params_of(student),
        _with_speedups(rows, device),
        loads,
        memory,
        {student.teacher: SPEEDS[student.teacher]} if _is_student(student) and student.teacher in SPEEDS else {},
        estimate_on_phone(gmacs, settings.frames) if gmacs is not None else None,
        why_no_estimate(gmacs) if gmacs is not None else "",
        failures,
        skipped,
        _facts(pair),
    )


def _facts(pair: Pair) -> list[DecoderFacts]:
    return [
        DecoderFacts(label, decoder.family, num_params_of(decoder), decoder.licence)
        for label, decoder in zip((pair.name, *pair.labels), pair.decoders, strict=True)
    ]


def _is_student(decoder: Decoder) -> bool:
    return isinstance(decoder, StudentDecoder)


def _decoders_of(pair: Pair, asked: _Asked) -> list[dict[str, Any]]:
    """Return the entries of a job: the decoder of the model, then those beside it."""
    family, place = named_decoder(asked.model)
    entries = [
        decoder_in_job(
            place, place, family=asked.family or family, config=asked.config, is_student=_is_student(pair.student),
            teacher=None if _is_student(pair.student) else pair.teacher_is,
        )
    ]  # fmt: skip
    for label, one in zip(pair.labels, pair.beside, strict=True):
        family, place = named_decoder(one.name)
        entries.append(decoder_in_job(place, label, family=family, teacher=pair.teacher_is, is_student=_is_student(one.decoder)))
    return entries


def _memory_over_length(job: dict[str, Any], settings: BenchSettings, report: Reporter) -> list[MemoryRow]:
    """Measure the memory of a decode at each length of `memory_frames`, whole and streamed, by each decoder that can."""
    rows = []
    for number, entry in enumerate(job["decoders"]):
        for form in ("whole clip", "streamed"):
            name = f"{entry['label']}, {form}" if number else form
            for frames in report.track(settings.memory_frames, f"memory, {name}"):
                asked = {**job, "target": "torch", "memory": [form, frames], "of": number}
                peak = peak_in_child(asked, settings)[0]
                if peak is not None or number == 0:  # those beside need not stream
                    rows.append(MemoryRow(name, frames, peak))
    return rows


def _measure_each(
    chosen: Sequence[Target], job: dict[str, Any], absent_teacher: str, settings: BenchSettings, report: Reporter
) -> tuple[list[BenchRow], dict[str, tuple[float, float]], list[TurboVaedError]]:
    """Measure each target in a separate process; return the rows, the machine's load before and after each, and the failures."""
    rows: list[BenchRow] = []
    loads: dict[str, tuple[float, float]] = {}
    failures: list[TurboVaedError] = []
    for target in report.track(chosen, "benchmarking"):
        report.note(f"{target.name}: in a separate process")
        try:
            answer = in_child({**job, "target": target.name}, settings)
        except TurboVaedError as error:  # the other targets are still useful
            rows.append(_unmeasured(target, STUDENT, "; ".join(filter(None, (error.what, error.hint))), settings))
            failures += [] if isinstance(error, MissingError) else [error]
        else:
            rows += [row_of(row) for row in answer["rows"]]
            loads[target.name] = tuple(answer["load_average"])
        if target.name == "torch" and absent_teacher:
            rows.append(_unmeasured(target, TEACHER, absent_teacher, settings))
    return rows, loads, failures


def write_ios_project(
    out: Path,
    model: str,
    settings: BenchSettings = BenchSettings(),
    *,
    teacher: str | None = None,
    config: str | None = None,
    overwrite: bool = False,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> list[Skipped]:
    """Write a Swift package that measures `model` on a phone into the folder `out`, whole or not at all; return skipped videos.

    Raises OutputExistsError if `out` exists and `overwrite` is false, SettingsError for more than one precision or layout, and
    CheckFailedError if the artefact differs too much from the student.
    """
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} is there already", "add `overwrite` to replace it")
    (target,) = _check(replace(settings, targets=("coreml",)))
    if len(settings.precisions) > 1 or len(settings.layouts) > 1:
        raise SettingsError("`ios_project` holds one artefact", "one `dtype` and one `layout`")
    precision, layout = target.chosen(settings.precisions)[0], settings.layouts[0]
    asked = _Asked(model, teacher, None, config, consent)
    student = asked.load(with_teacher=False).student
    if not isinstance(student, StudentDecoder):
        raise SettingsError("`ios_project` is for students", "`model` NAME of a student")
    wanted = export_settings(settings, precision, layout)
    videos, skipped = first_videos(wanted, report)
    latents = _latents(asked, student, settings, videos, report)
    with tempfile.TemporaryDirectory() as folder:
        result = export_student(student, ("coreml",), Path(folder) / "student.mlpackage", wanted, report, latents=latents)
        raise_for_misses(result)
        (artifact,) = result.artifacts
        example = latents[0][settings.size][0]
        with torch.no_grad():
            video = student(example)
        case = {
            "model": names_only(model),
            "params": num_params_of(student),
            "precision": precision,
            "layout": layout,
            "size_mb": artifact.size_mb,
            "least_psnr_db": MIN_PSNR_DB.get(precision, MIN_PSNR_DB["fp16"]),
        }
        with whole_folder(out, overwrite=overwrite) as made:
            write_project(made, artifact.path, example, video, case)
    return skipped


def _gmacs(student: Decoder, settings: BenchSettings) -> float | None:
    """Return the GMACs of one decode in the export form; None for a decoder that has none."""
    if not isinstance(student, StudentDecoder):
        return None
    latents = torch.zeros(1, *student.latent_shape(settings.frames, settings.size))
    return cost(Graph(export_form(student), {"latents": latents}), itemsize=2).gmacs


def _teacher_of(asked: _Asked, settings: BenchSettings) -> tuple[str | None, str]:
    """Return the place of the teacher to time, or None, and the reason why it is missing ("" if it is there or not wanted).

    A named teacher that does not fit is an error; one that cannot be found becomes a row with the reason.
    """
    if not settings.teacher or "torch" not in settings.targets:
        return None, ""
    try:
        return asked.load().teacher_is, ""
    except MissingError as error:
        return None, f"{error.what}; {error.hint}"
    except SettingsError as error:
        if asked.teacher is not None:
            raise
        return None, error.what


def _check_attached(settings: BenchSettings) -> None:
    """Raise SettingsError or UnavailableError if the device that --device names cannot be measured; before any conversion."""
    if "coreml" not in settings.targets:
        raise SettingsError(f"`device` {settings.device} is for Core ML", "`target` coreml")
    if not settings.apple_team:
        raise SettingsError(
            f"`device` {settings.device} needs `apple_team`",
            "`apple_team` ID, the development team with which coremltools signs the app that it runs there",
        )
    if not runs_here():
        raise UnavailableError(
            f"`device` {settings.device} needs a Mac with Xcode", "here: `ios_project` DIR writes a package to run there"
        )
    attached_device(settings.device)


def _unmeasured(target: Target, network: str, reason: str, settings: BenchSettings) -> BenchRow:
    precision, status = target.chosen(settings.precisions)[0], f"not measured: {reason}"
    return BenchRow(target.name, network, target.name, "", precision, "", False, status, settings.frames, settings.size)


def _check(settings: BenchSettings) -> list[Target]:
    """Return the chosen rows of the table. Raises SettingsError for settings that cannot be measured."""
    table = targets()
    for name in settings.targets:
        check_choice("`target`", name, [*table, "all"])
        if settings.precisions and not set(settings.precisions) & set(table[name].precisions):
            raise SettingsError(
                f"`target` {name} has no {' or '.join(settings.precisions)}", f"`dtype` {' or '.join(table[name].precisions)}"
            )
    chosen = [table[name] for name in dict.fromkeys(settings.targets)]
    for precision in settings.precisions:
        if not any(precision in target.precisions for target in chosen):
            raise SettingsError(
                f"none of these targets has `dtype` {precision}",
                f"one of: {', '.join(dict.fromkeys(name for target in chosen for name in target.precisions))}",
            )
    _check_layouts(chosen, settings)
    if settings.repeats < 1 or settings.warmup < 1 or settings.clips < 1:
        raise SettingsError("`repeats` and `warmup` must be at least 1")
    if settings.threads < 0:
        raise SettingsError(f"`threads` {settings.threads} is below 0", "0 takes as many as torch does")
    if settings.data is not None and settings.latents is not None:
        raise SettingsError("`data` and `latents` cannot be combined: both choose the latents to decode", "give one of them")
    calibrated = {name for target in chosen if target.name in exporters() for name in exporters()[target.name].calibrated}
    if calibrated & set(settings.precisions) and settings.data is None and settings.latents is None:
        raise SettingsError(
            "int8 is calibrated on real latents, and there are none", "give `data` DIR of videos, or `latents` FILE"
        )
    return chosen


def _check_layouts(chosen: Sequence[Target], settings: BenchSettings) -> None:
    for layout in settings.layouts or ("",):
        check_choice("`layout`", layout, LAYOUTS)
        for target in chosen:
            taken = exporters()[target.name].layouts if target.name in exporters() else LAYOUTS
            if layout not in taken:
                raise SettingsError(f"{target.name} does not take `layout` {layout}", f"`layout` {' or '.join(taken)}")


def _write_inputs(
    folder: Path, asked: _Asked, student: Decoder, settings: BenchSettings, report: Reporter
) -> tuple[str, list[Skipped]]:
    """Write the latents, the fp32 student's videos of them and their source clips to a file in `folder`.

    Returns a description of the latents, and the skipped videos.
    """
    videos, skipped = first_videos(export_settings(settings), report)
    by_size, described = _latents(asked, student, settings, videos, report)
    latents = by_size[settings.size]
    tensors = {f"latents_{i}": item for i, item in enumerate(latents)}
    tensors |= {f"reference_{i}": decoded(student, item) for i, item in enumerate(latents)}
    tensors |= {f"source_{i}": read_clip(info, settings.frames, settings.size)[None] for i, info in enumerate(videos)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "inputs.safetensors")
    return described, skipped


def _latents(
    asked: _Asked, student: Decoder, settings: BenchSettings, videos: Sequence[VideoInfo], report: Reporter
) -> tuple[dict[tuple[int, int], list[Tensor]], str]:
    """Return latents by size, and their description; the teacher is loaded if videos have to be encoded."""
    loaded = asked.load().teacher if settings.data is not None else None
    return latents_for(student, export_settings(settings), loaded, videos, report)


def _header(settings: BenchSettings) -> str:
    device = torch_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name} ({device.type}), {num_threads(settings)} of {os.cpu_count()} threads; torch {torch.__version__}, turbovaed {__version__}"


def cpu_name() -> str:
    """Return the name of this machine's processor as the operating system gives it."""
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
    """Add the speed-up over the teacher in the same precision, else in fp32, to rows that ran on the teacher's device."""
    teachers = {row.precision: row.p50_ms for row in rows if row.network == TEACHER and row.p50_ms}
    found = []
    for row in rows:
        over = row.precision if row.precision in teachers else "fp32"
        alike = row.target == "torch" or (device.type == "cpu" and row.unit.partition(",")[0] == "CPU")
        if row.p50_ms and alike and over in teachers:
            row = replace(row, speedup=teachers[over] / row.p50_ms, speedup_over=over)  # noqa: PLW2901 - the same row, completed
        found.append(row)
    return found
