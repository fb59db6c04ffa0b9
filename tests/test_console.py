"""Results go to stdout, everything else to stderr; scripts get one JSON document, people get lines that fit."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from turbovaed_cli import console
from turbovaed_cli.errors import TurboVaedError


@dataclass(frozen=True)
class Result:
    path: Path
    rate: Fraction
    values: list[float]


def test_json_is_one_document_with_a_version_and_plain_values(capsys):
    console.print_json(Result(Path("a/b"), Fraction(30000, 1001), [1.0, float("inf")]))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema_version": 1, "path": "a/b", "rate": "30000/1001", "values": [1.0, None]}
    assert err == ""


def test_an_error_is_two_lines_whatever_is_in_it(capsys):
    console.print_error(TurboVaedError("cannot read [red]a\nb\x1b[2J.mp4", "do this"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: cannot read [red]a\\nb\\x1b[2J.mp4\nhint: do this\n"


def test_a_strangers_file_name_breaks_no_line_and_steers_no_terminal(capsys):
    name = "[red]a\nb\x1b[2J\u202egpm.:star:\udcff.mp4"
    shown = r"[red]a\nb\x1b[2J\u202egpm.:star:\xff.mp4"
    console.warn(name)
    console.note(name)
    console.ConsoleReporter().note(name)
    assert capsys.readouterr().err.splitlines() == [f"warning: {shown}", shown, shown]
    console.print_table("T", ["name"], [(name,)])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[2:]] == ["[red]a", shown.partition(r"\n")[2]]
    console.print_json({"name": name})
    assert json.loads(capsys.readouterr().out)["name"] == name


def test_a_table_in_a_pipe_is_never_cut(capsys):
    console.print_table("T", ["name", "n"], [("x" * 150, 1.5), ("[bold]", 2)])
    out, _ = capsys.readouterr()
    assert "x" * 150 in out and "[bold]" in out


def test_progress_without_a_terminal_is_lines_with_figures(capsys, monkeypatch):
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", 0.0)
    reporter = console.ConsoleReporter()
    items = []
    for item in reporter.track(range(3), "working", total=5, start=2):
        reporter.note(loss=0.12345, clips_per_s=3.0)
        items.append(item)
    out, err = capsys.readouterr()
    assert items == [0, 1, 2]
    assert out == ""
    assert "working: 5/5" in err and "loss 0.1235  clips/s 3" in err
    assert "\x1b" not in err


def test_quiet_says_nothing_and_yields_everything(capsys):
    reporter = console.ConsoleReporter(quiet=True)
    reporter.note("hello")
    assert list(reporter.track([1, 2], "x")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_nobody_is_asked():
    assert console.confirm("Download?") is False


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(1_680_000_000, "1.68 GB"), (84_000_000, "84 MB"), (2_000, "2 kB"), (7, "7 bytes")]
)
def test_sizes_are_for_people(num_bytes, text):
    assert console.human_bytes(num_bytes) == text


def test_spans_have_units():
    assert [console.human_span(s) for s in (0.2, 59.6, 744, 66_750)] == ["1 s", "1 min 0 s", "12 min 24 s", "18 h 32 min"]
