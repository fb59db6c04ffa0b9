"""Results go to stdout, everything else to stderr; scripts get one JSON document, people get lines that fit."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from turbovaed_cli import units
from turbovaed_cli.cli import console
from turbovaed_cli.cli.table import print_table
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
    print_table("T", ["name"], [(name,)])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[2:]] == ["[red]a", shown.partition(r"\n")[2]]
    console.print_json({"name": name})
    assert json.loads(capsys.readouterr().out)["name"] == name


def test_a_table_in_a_pipe_is_never_cut(capsys):
    print_table("T", ["name", "n"], [("x" * 150, 1.5), ("[bold]", 2)])
    out, _ = capsys.readouterr()
    assert "x" * 150 in out and "[bold]" in out


def test_a_table_in_a_pipe_obeys_columns_and_is_padded_nowhere(capsys, monkeypatch):
    rows = [("first", "a text of several words"), ("second one", "b" * 12)]
    print_table("A title that is longer than its table, and stays one line in a pipe", ["name", "text"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A title that is longer than its table, and stays one line in a pipe"
    assert all(line == line.rstrip() for line in lines) and "first       a text of several words" in lines
    monkeypatch.setenv("COLUMNS", "24")
    print_table("T", ["name", "text"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 24
    assert lines[-1].split() == ["one", "b" * 12] or lines[-1].endswith("b" * 12)  # words stay whole while they fit


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
    assert "working: 5/5, 0:01 gone  loss 0.1235  clips/s 3" in err
    assert "left" not in err.splitlines()[-1]
    assert "\x1b" not in err


def test_nothing_is_drawn_of_nothing(capsys, monkeypatch):
    monkeypatch.setattr(console.stderr, "_force_terminal", True)
    assert list(console.ConsoleReporter().track([], "memory, whole clip")) == []
    assert list(console.ConsoleReporter(verbose=True).track(range(0), "distilling", total=5, start=5)) == []
    assert capsys.readouterr().err == ""


def test_a_bar_names_both_times(capsys, monkeypatch):
    monkeypatch.setattr(console.stderr, "_force_terminal", True)
    assert list(console.ConsoleReporter(verbose=True).track(range(3), "working")) == [0, 1, 2]
    assert "0:01 gone" in capsys.readouterr().err


def paces(total, seconds):
    """(items done, seconds gone, estimate or None) after each item of a Pace, when each takes as long as `seconds` says."""
    now = 0.0
    pace = console.Pace(total, clock=lambda: now)
    for second in seconds:
        now += second
        pace.advance()
        yield pace.done, now, pace.left()


def test_the_first_item_makes_no_estimate_and_spoils_none():
    """A reconstruction whose first frame takes 23 s, planning included, and each of the 131 others half a second."""
    estimates = list(paces(132, [23.0] + [0.5] * 131))
    assert estimates[0][2] is None
    for done, _, left in estimates[3:-1]:
        assert left == pytest.approx(0.5 * (132 - done), rel=0.01)
    assert estimates[-1][2] is None  # n/n


def test_there_is_no_estimate_before_a_twentieth_or_ten_seconds():
    assert all(left is None for _, _, left in paces(1000, [0.1] * 49))
    assert all(left is not None for _, gone, left in paces(1000, [1.0] * 30) if gone >= 10)
    assert [left is not None for _, _, left in paces(20, [0.1] * 6)] == [False, False, False, True, True, True]


def test_there_is_no_estimate_while_the_rate_is_not_steady():
    """Ten slow items, then quick ones: neither rate is that of the rest until the new one has lasted."""
    estimates = list(paces(200, [0.0] + [4.0] * 10 + [0.5] * 150))
    assert estimates[10][2] == pytest.approx(4.0 * 189)
    assert any(left is None for _, _, left in estimates[20:60])


def test_frames_that_come_in_bursts_give_a_rate_that_is_near():
    """Eight frames at once every four seconds, as a streaming decoder gives them."""
    seconds = [30.0] + [0.001] * 7 + ([4.0] + [0.001] * 7) * 40
    for done, _, left in list(paces(328, seconds))[40:-8]:
        if left is not None:
            assert left == pytest.approx(0.5 * (328 - done), rel=0.5)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:01"), (90, "1:30"), (7_300, "2 h 01 min"), (133_944, "37 h 12 min")])
def test_times_are_for_people(seconds, text):
    assert units.human_duration(seconds) == text


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
    assert units.human_bytes(num_bytes) == text


def test_spans_have_units():
    assert [units.human_span(s) for s in (0.2, 59.6, 744, 66_750)] == ["1 s", "1 min 0 s", "12 min 24 s", "18 h 32 min"]
