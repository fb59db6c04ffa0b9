"""Results of `bench`: rows, their JSON document, comparison with an earlier run, thresholds."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np

from turbovaed_cli.benchmarking.published import SOURCE, Estimate, PublishedSpeed
from turbovaed_cli.benchmarking.target import TEACHER
from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import CheckFailedError, CorruptFileError, SettingsError, TurboVaedError, UnavailableError
from turbovaed_cli.files.documents import check_fields
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.settings import THRESHOLDS
from turbovaed_cli.video.usable import Skipped

VIDEO_FPS = 24  # frames per second at a real-time factor of 1
_TEXTS = ("model", "machine", "latents")  # of a document
_LEAST, _MOST = 1e-9, 1e12  # of times and rates: values beyond were not measured
_KEY = ("target", "network", "unit", "precision", "layout", "frames", "size")  # of BenchRow.key


@dataclass(frozen=True)
class BenchRow:
    """One network on one target. Times are in milliseconds per decode; None if `measured` is false."""

    target: str
    network: str  # student; "student, plain", "student, compiled"; teacher (its decoder); the name of a decoder beside them
    runtime: str
    unit: str  # the hardware that computed
    precision: str
    layout: str  # of the exported graph; "" for torch
    measured: bool
    status: str
    frames: int
    size: tuple[int, int]
    size_mb: float | None = None
    load_s: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    fps: float | None = None
    realtime: float | None = None  # fps over VIDEO_FPS
    peak_mb: float | None = None  # that loading and one decode add to a process
    psnr_db: float | None = None  # against the fp32 student; the range is 2
    source_psnr_db: float | None = None  # against the videos that the latents were encoded from
    speedup: float | None = None  # the teacher's P50 in this run over this row's
    speedup_over: str = ""  # the teacher's precision
    samples_ms: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)  # by the runtime, such as operators by compute unit
    is_beside: bool = False  # whether it is of a decoder beside the student and its teacher

    @property
    def key(self) -> tuple[object, ...]:
        """The fields that identify the same row in another run; versions may differ."""
        return self.target, self.network, self.unit, self.precision, self.layout, self.frames, tuple(self.size)


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory that one decode of a clip of some length adds, in torch."""

    form: str  # "whole clip" or "streamed"; before it the name of a decoder beside the student
    frames: int
    peak_mb: float | None


@dataclass(frozen=True)
class DecoderFacts:
    """What is known of a decoder that was timed."""

    name: str
    family: str
    params: int
    licence: str


@dataclass(frozen=True)
class BenchResult:
    """The result of a benchmark: all rows, and the machine they are from."""

    model: str
    header: str
    latents: str  # what was decoded
    params: int  # of the student
    rows: list[BenchRow]
    load_average: dict[str, tuple[float, float]] = field(default_factory=dict)  # by target: before and after
    memory: list[MemoryRow] = field(default_factory=list)
    published: Mapping[str, Sequence[PublishedSpeed]] = field(default_factory=dict)  # of the teacher's published student
    estimate: Estimate | None = None
    no_estimate: str = ""  # why there is no estimate, if one was wanted
    failures: list[TurboVaedError] = field(default_factory=list)  # of targets that should have run here and did not
    skipped: list[Skipped] = field(default_factory=list)  # videos that could not be read; other videos took their places
    decoders: list[DecoderFacts] = field(default_factory=list)  # the one of `model`, then those beside it


def row_of(record: Mapping[str, Any]) -> BenchRow:
    """Read a row from JSON; unknown fields of other versions are ignored."""
    known = {item.name for item in fields(BenchRow)}
    row = BenchRow(**{name: value for name, value in record.items() if name in known})
    return replace(row, size=cast(tuple[int, int], tuple(row.size)))


def bench_document(result: BenchResult, compared: "Sequence[Change]" = ()) -> dict[str, Any]:
    """Return the JSON document of `bench --json`."""
    return {
        "schema_version": 1,
        "model": result.model,
        "params": result.params,
        "decoders": [asdict(one) for one in result.decoders],
        "machine": result.header,
        "latents": result.latents,
        "load_average": result.load_average,
        "rows": [asdict(row) for row in result.rows],
        "memory": [asdict(row) for row in result.memory],
        "compared": [
            {**dict(zip(_KEY, item.row.key, strict=True)), "ratio": item.ratio, "low": item.low, "high": item.high}
            for item in compared
        ],
        "published": [
            asdict(speed) | {"student_of": name, "source": SOURCE}
            for name, speeds in result.published.items()
            for speed in speeds
        ],
        "estimates": [asdict(result.estimate)] if result.estimate else [],
        "no_estimate": result.no_estimate or None,
        "skipped": [asdict(item) for item in result.skipped],
    }


def read_document(path: Path) -> dict[str, Any]:
    """Read an earlier `bench --json`, with its rows as BenchRow. Raises SettingsError if the file is not one."""
    try:
        document = read_json(path)
        check_fields(document, {"rows": list[dict[str, Any]], "params": float | None, **dict.fromkeys(_TEXTS, str)}, path)
        for number_, record in enumerate(document["rows"], start=1):
            optional = {
                item.name for item in fields(BenchRow) if item.default is not MISSING or item.default_factory is not MISSING
            }
            hints = {name: hint for name, hint in get_type_hints(BenchRow).items() if name in record or name not in optional}
            check_fields(record, hints, path, f"rows.{number_}.")
        rows = [row_of(record) for record in document["rows"]]
    except (OSError, CorruptFileError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        why = why.removeprefix(f"{path}: ").removeprefix(f"{path} is ")
        raise SettingsError(f"{path} is no result of bench --json: {why}", "turbovaed bench --json > old.json") from error
    if not rows or not all(map(_is_sound, rows)):
        raise SettingsError(
            f"{path} is no result of bench --json: rows without samples, or none", "turbovaed bench --json > old.json"
        )
    return {**document, "rows": rows}


def _is_sound(row: BenchRow) -> bool:
    """Whether a row is complete, and its figures can be divided by and drawn."""
    times = [row.p50_ms or 0.0, row.fps or 0.0, *(row.samples_ms or [0.0])]
    shape = (row.frames, *row.size)
    others = [value for value in (row.speedup, row.psnr_db, row.source_psnr_db, row.peak_mb) if value is not None]
    return min(shape) > 0 and (not row.measured or min(times) > _LEAST) and max(map(abs, [*times, *shape, *others])) < _MOST


def same_machine(a: str, b: str) -> bool:
    """Whether two headers name the same machine; versions and threads may differ."""
    return a.partition(" (")[0] == b.partition(" (")[0]


@dataclass(frozen=True)
class Change:
    """The speed ratio of one row between two runs, with the 95 % interval of a bootstrap over both runs' samples."""

    row: BenchRow
    ratio: float  # P50 then over P50 now
    low: float
    high: float


def changes(rows: Sequence[BenchRow], earlier: Sequence[BenchRow]) -> list[Change]:
    """Return the change of every row that both runs measured."""
    then = {row.key: row for row in earlier if row.measured}
    found = []
    draws = np.random.default_rng(0)
    for row in rows:
        old = then.get(row.key)
        if not row.measured or old is None:
            continue
        medians = [np.median(draws.choice(samples, (2000, len(samples))), axis=1) for samples in (old.samples_ms, row.samples_ms)]
        low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5))
        assert old.p50_ms is not None and row.p50_ms is not None
        found.append(Change(row, old.p50_ms / row.p50_ms, float(low), float(high)))
    return found


def thresholds(asked: Sequence[str]) -> dict[str, float]:
    """Parse texts such as "fps=24" to names and numbers. Raises SettingsError for anything else."""
    found = {}
    for item in asked:
        name, _, value = item.partition("=")
        with suppress(ValueError):
            found[name] = float(value)
        if name not in THRESHOLDS or not math.isfinite(found.get(name, math.nan)):
            raise SettingsError(
                f"`fail_under={item}` is not understood",
                hint_for(name, THRESHOLDS, f"NAME=NUMBER, such as fps=24; NAME is one of {', '.join(THRESHOLDS)}")
                if name not in THRESHOLDS
                else f"NAME=NUMBER, such as {name}=24",
            )
    return found


def raise_for_thresholds(result: BenchResult, least: Mapping[str, float]) -> None:
    """Raise CheckFailedError if the student's best row on a target is below a threshold, UnavailableError without a figure.

    The best row of a target is the fastest one, for the PSNR too.
    """
    missed = []
    for target in dict.fromkeys(row.target for row in result.rows) if least else ():
        rows = [row for row in result.rows if row.target == target and row.network != TEACHER and not row.is_beside and row.fps]
        if not rows:
            status = next(row.status for row in result.rows if row.target == target)
            raise UnavailableError(
                f"`fail_under`: {target} was {status}", "leave it out of `targets`, or use a machine that has it"
            )
        best = max(rows, key=lambda row: row.fps or 0.0)
        for name, value in least.items():
            found = getattr(best, name)
            if found is None:
                raise UnavailableError(
                    f"`fail_under={name}`: {target} has none", "a speed-up needs the teacher's weights on the same device"
                )
            if found < value:
                missed.append(f"{target} ({best.unit}, {best.precision}): {name} {found:.4g} is below {value:g}")
    if missed:
        quality_alone = all(": psnr_db " in item for item in missed)
        hint = (
            "`precisions=fp32` or fp16 is more accurate" if quality_alone else "more repeats and a quiet machine reduce the noise"
        )
        raise CheckFailedError("; ".join(missed), hint)


def number(value: float | None) -> str:
    """Format a number with about three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
