"""Tables fit 80 columns, and are readable at 60: lines break between words, and never inside of a number."""

import re
import sys
from dataclasses import replace

import pytest

from turbovaed_cli.benchmarking.published import SPEEDS, estimate_on_phone
from turbovaed_cli.benchmarking.results import BenchResult, BenchRow, Change, MemoryRow
from turbovaed_cli.cli import bench_tables, eval_tables
from turbovaed_cli.cli.app import main
from turbovaed_cli.cli.table import Table, print_table, print_tables
from turbovaed_cli.evaluation.evaluate import evaluate
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.settings import EvalSettings


@pytest.fixture
def printed(capsys, monkeypatch):
    def run(columns: int, show) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        show()
        return capsys.readouterr().out.splitlines()

    return run


def _words(texts) -> set[str]:
    return {word for text in texts for word in text.replace("\n", " ").split()}


def _check(lines: list[str], tables: list[Table], columns: int) -> None:
    """Every word of every table is whole in some line, and no line is too long."""
    assert max(map(len, lines)) <= columns
    shown = _words(lines)
    for table in tables:
        spare = [i for i, name in enumerate(table.columns) if name in table.spare]
        cells = [cell for row in table.rows for i, cell in enumerate(row) if i not in spare]
        long = {word for word in _words(cells) if len(word) > 30}  # a path, or a hash
        missing = {word.rstrip(",") for word in _words(cells) - long} - {word.rstrip(",") for word in shown} - {"-", ""}
        assert not missing, (table.title, missing)


def test_the_tables_of_an_evaluation_fit(printed, videos):
    settings = EvalSettings(frames=5, size=(32, 32), clips_per_video=1, metrics=("psnr", "ssim", "flicker"))
    result = evaluate(load_pair("tiny"), videos, settings)
    for every_clip in (False, True):
        tables = eval_tables.as_tables([result], videos, every_clip=every_clip)
        for columns in (80, 60):
            lines = printed(columns, lambda tables=tables: print_tables(tables))
            _check(lines, tables, columns)
            assert not [line for line in lines if line.rstrip().endswith("±")]


def test_more_metrics_than_fit_are_tables_below_one_another(printed, videos):
    """With intervals beside the values; names of models leave less room."""
    settings = EvalSettings(frames=3, size=(32, 32), clips_per_video=1, metrics=("psnr",))
    few = evaluate(load_pair("tiny"), videos, settings)
    names = ["psnr", "ssim", "st_lpips", "vmaf", "flicker", "grid", "seam", "banding"]
    intervals = {side: dict.fromkeys(names, (0.0, 0.8)) for side in ("teacher", "student", "ratio")}
    clips = [replace(clip, **{side: dict.fromkeys(names, 0.9) for side in ("teacher", "student")}) for clip in few.clips]
    means = {side: dict.fromkeys(names, 0.9) for side in intervals}
    many = replace(few, clips=clips, means=means, intervals=intervals)
    for results, counts in (([many], [4, 4]), ([many, many], [3, 3, 2]), ([few], [1])):
        scores = [
            table for table in eval_tables.as_tables(results, videos) if "teacher" in {row[0].strip() for row in table.rows}
        ]
        assert [len(table.columns) - 1 for table in scores] == counts
        assert [bool(table.title) for table in scores] == [True] + [False] * (len(counts) - 1)
        lines = printed(80, lambda tables=scores: print_tables(tables))
        assert max(map(len, lines)) <= 80 and len(lines) == 1 + sum(2 + len(table.rows) for table in scores)
    assert [name for table in scores for name in table.columns] == ["", "PSNR dB\n(higher)"]


def _row(target: str, network: str, ms: float, **more) -> BenchRow:
    """As a run on two cores measured it, at 9 frames of 64x64."""
    times = {"first_ms": 2 * ms, "p50_ms": ms, "p90_ms": 1.27 * ms, "fps": 9000 / ms, "realtime": 375 / ms, "samples_ms": [ms]}
    figures = {"size_mb": 3.25, "load_s": 0.142, "peak_mb": 36.4, "psnr_db": 128.1, "speedup": 700 / ms} | times | more
    return BenchRow(target, network, "PyTorch 2.11", "CPU", "fp32", "4d-cat", True, "measured", 9, (64, 64), **figures)


def test_the_tables_of_a_benchmark_fit(printed):
    rows = [
        _row("torch", "student", 442.1),
        _row("torch", "student, plain", 218.3),
        _row("torch", "teacher", 1702.4, psnr_db=None),
    ]
    why = "not measured: did not run here: converted only. Core ML runs on a Mac (macOS 14 or later)"
    rows += [_row("executorch", "student, channels last", 85.1), replace(rows[0], target="coreml", measured=False, status=why)]
    memory = [MemoryRow("whole clip", 9, 9.1), MemoryRow("streamed", 17, 10.0)]
    published = {"ltx": SPEEDS["ltx"], "hunyuan": SPEEDS["hunyuan"]}
    result = BenchResult(
        "tiny", "here", "random", 1, rows, memory=memory, published=published, estimate=estimate_on_phone(406.32, 17)
    )
    tables = bench_tables.tables(result, [Change(row, 1.0, 0.9, 1.1) for row in rows[:4]])
    assert len(tables) == 7
    for columns in (80, 60):
        _check(printed(columns, lambda: print_tables(tables)), tables, columns)


@pytest.mark.parametrize("words", ["models", "models show hunyuan", "models show tiny", "models design ltx --params 8M", "env"])
@pytest.mark.parametrize("columns", [80, 60])
def test_the_tables_of_a_command_fit(words, columns, printed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["turbovaed", *words.split()])

    def run() -> None:
        with pytest.raises(SystemExit):
            main()

    whole = printed(10_000, run)
    lines = printed(columns, run)
    assert max(map(len, lines)) <= columns
    numbers = {word for word in _words(whole) if re.fullmatch(r"[\d.,%x]+", word)}
    if "design" not in words:  # which leaves two columns out
        assert numbers <= _words(lines)
        assert {word for word in _words(whole) if len(word) < 30} - _words(lines) == set()
    else:
        first_words = {line.split()[0] for line in whole[3:]}
        assert {word for word in first_words if not word.startswith("+-")} <= _words(lines)  # the axis is as wide as the terminal


def test_what_is_too_wide_is_shortened_step_by_step(printed):
    names = ["target", "network", "unit", "dtype", "P50"]
    rows = [("torch", "student", "CPU", "fp32", "1,234.5 ms"), ("torch", "teacher", "CPU", "fp32", "2.0 ± 0.5")]

    def at(columns: int, spare=()) -> list[str]:
        return printed(columns, lambda: print_table("T", names, rows, spare=spare))

    assert at(80)[:2] == ["T", "target  network  unit  dtype         P50"]
    assert at(36)[1:] == [
        "target network unit dtype        P50",
        "torch  student CPU  fp32  1,234.5 ms",
        "torch  teacher CPU  fp32   2.0 ± 0.5",
    ]
    assert at(30)[1:] == [
        "unit CPU, dtype fp32",
        "target  network         P50",
        "torch   student  1,234.5 ms",
        "torch   teacher   2.0 ± 0.5",
    ]
    assert at(20, ["network"])[1:] == ["unit CPU, dtype fp32", "target         P50", "torch   1,234.5 ms", "torch    2.0 ± 0.5"]
    assert at(22)[1:] == [
        "unit CPU, dtype fp32",
        "target torch",
        "  network  student",
        "  P50      1,234.5 ms",
        "target torch",
        "  network  teacher",
        "  P50      2.0 ± 0.5",
    ]


def test_numbers_line_up_on_the_right_and_texts_on_the_left(printed):
    rows = [("8k+1, at most 57", "8x32x32", "11.9 MB", "1.0e-06", "20/400"), ("4k", "4x8x8", "-", "", "3/400")]
    lines = printed(80, lambda: print_table("", ["frames", "ratio", "size", "max abs", "step"], rows))
    assert lines == [
        "frames            ratio       size  max abs    step",
        "8k+1, at most 57  8x32x32  11.9 MB  1.0e-06  20/400",
        "4k                4x8x8          -            3/400",
    ]
