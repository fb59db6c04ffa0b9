"""The results of `bench` as tables of text."""

from collections.abc import Mapping, Sequence

from turbovaed_cli.benchmarking.published import SOURCE, Estimate, PublishedSpeed
from turbovaed_cli.benchmarking.results import VIDEO_FPS, BenchResult, BenchRow, Change, DecoderFacts, MemoryRow, number
from turbovaed_cli.cli.table import Table

_NAMES = ["target", "network", "unit", "dtype"]  # columns of _named


def tables(result: BenchResult, compared: Sequence[Change] = ()) -> list[Table]:
    """Return what ran and what it takes, how fast it was, and separately what was not measured here."""
    found = [
        _what_ran(result.rows),
        _how_fast(result.rows),
        _not_measured(result.rows),
        _against_the_earlier(compared),
        _memory(result.memory),
        _decoders(result.decoders),
        _published(result.published),
        _estimated(result.estimate),
    ]
    return [table for table in found if table.rows]


def _what_ran(rows: Sequence[BenchRow]) -> Table:
    height, width = rows[0].size
    figures = [(row.size_mb, row.load_s, row.peak_mb, row.psnr_db, row.source_psnr_db) for row in rows]
    return Table(
        f"What ran: {rows[0].frames} frames of {width}x{height}; memory in MB, quality in dB",
        [*_NAMES, "layout", "size", "load s", "peak", "PSNR", "source"],
        [(*_named(row), row.layout or "-", *map(number, of_row)) for row, of_row in zip(rows, figures, strict=True)],
        spare=["layout", "source", "load s"],
    )


def _how_fast(rows: Sequence[BenchRow]) -> Table:
    return Table(
        f"How fast: ms per decode; x24: times real time at {VIDEO_FPS} frames a second; speed-up over the teacher in the same "
        "precision, else fp32",
        [*_NAMES, "first", "P50", "P90", "FPS", "x24", "speed-up"],
        [
            (
                *_named(row),
                *map(number, (row.first_ms, row.p50_ms, row.p90_ms, row.fps, row.realtime)),
                f"{row.speedup:.2f}x" if row.speedup else "-",
            )
            for row in rows
            if row.measured
        ],
        spare=["x24", "first"],
    )


def _not_measured(rows: Sequence[BenchRow]) -> Table:
    return Table(
        "Not measured here",
        ["target", "network", "dtype", "why"],
        [(row.target, row.network, row.precision, row.status.removeprefix("not measured: ")) for row in rows if not row.measured],
    )


def _against_the_earlier(compared: Sequence[Change]) -> Table:
    return Table(
        "Against the earlier run: times as fast, with the 95 % interval",
        [*_NAMES, "ratio", "from", "to"],
        [(*_named(item.row), f"{item.ratio:.2f}", f"{item.low:.2f}", f"{item.high:.2f}") for item in compared],
    )


def _memory(rows: Sequence[MemoryRow]) -> Table:
    return Table(
        "Memory over length: MB that one decode adds",
        ["form", "frames", "peak"],
        [(row.form, str(row.frames), number(row.peak_mb)) for row in rows],
    )


def _decoders(decoders: Sequence[DecoderFacts]) -> Table:
    return Table(
        "Decoders",
        ["decoder", "family", "parameters", "licence"],
        [(one.name, one.family, f"{one.params / 1e6:.3f} M", one.licence) for one in decoders],
    )


def _published(published: Mapping[str, Sequence[PublishedSpeed]]) -> Table:
    return Table(
        f"Published frames per second, on other machines ({SOURCE})",
        ["student of", "size", "GPU teacher", "GPU student", "iPhone teacher", "iPhone student"],
        [
            (name, f"{speed.size[1]}x{speed.size[0]}", *(number(fps) for fps in (*speed.gpu, *speed.phone)))
            for name, speeds in published.items()
            for speed in speeds
        ],
    )


def _estimated(estimate: Estimate | None) -> Table:
    rows: list[tuple[str, ...]] = []
    if estimate is not None:
        rows = [
            (estimate.device, f"{number(estimate.fps_low)} to {number(estimate.fps_high)} frames per second"),
            ("from", estimate.how.partition(" (")[0]),
            ("published in", SOURCE),
        ]
    return Table("Estimated, not measured", ["", ""], rows)


def said(row: BenchRow) -> list[str]:
    """A row's remarks, and what its runtime reported, in sentences."""
    lines = list(row.remarks)
    if "speedups" in row.told:
        lines.append(f"{row.network}, {row.precision}: {row.told['speedups']}")
    if "gpu_form" in row.told:
        lines.append(f"{row.network}, {row.precision}: decodes in the form {row.told['gpu_form']}")
    if row.told.get("operators_by_unit"):
        counts = ", ".join(f"{count} on {unit}" for unit, count in row.told["operators_by_unit"].items())
        slowest = ", ".join(f"{item['operator']} {100 * item['share']:.1f} %" for item in row.told["slowest_operators"])
        lines.append(f"{row.unit}, {row.precision}: operators meant to run: {counts}; slowest: {slowest}")
    if "not_told" in row.told:
        lines.append(f"{row.unit}, {row.precision}: no plan of its operators ({row.told['not_told']})")
    return lines


def _named(row: BenchRow) -> tuple[str, str, str, str]:
    return row.target, row.network, row.unit, row.precision
