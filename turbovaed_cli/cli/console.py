"""Output for people and scripts: results on stdout, everything else on stderr, live bars only on a terminal."""

import dataclasses
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.prompt import Confirm
from rich.text import Text

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.machine.streams import fitting, is_utf8
from turbovaed_cli.units import human_duration

DOCUMENT_VERSION = 1
_PLAIN_INTERVAL_S = 10.0  # between progress lines where there is no terminal

Item = TypeVar("Item")

stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def print_json(value: object) -> None:
    """Print one JSON document on stdout, with schema_version; dataclasses and paths as plain values."""
    plain = _plain(value)
    document = (
        {"schema_version": DOCUMENT_VERSION, **plain}
        if isinstance(plain, dict)
        else {"schema_version": DOCUMENT_VERSION, "items": plain}
    )
    text = json.dumps(document, indent=2, ensure_ascii=not is_utf8(sys.stdout), allow_nan=False)
    # Bytes of a file name that are no UTF-8 are \udcff in Python, in JSON too, and cannot be written as they are.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return in_flags(value)
    return str(value) if isinstance(value, Path | Fraction) else value


def print_text(text: str) -> None:
    """A text of several lines on stdout, as a result."""
    sys.stdout.write(fitting(text, sys.stdout))
    sys.stdout.flush()


_NAMED = re.compile(r"`([a-z_0-9]+)(?:=([^`]*))?`")
_flags: dict[str, str] = {}  # of the command that runs: the names of its arguments, as they are typed


def call_arguments(flags: Mapping[str, str]) -> None:
    """Print arguments that errors and notes name in backticks as these options, from here on."""
    _flags.clear()
    _flags.update(flags)


def in_flags(text: str) -> str:
    """The text with arguments as options: `lr` as --lr, `batch_size=1` as --batch-size 1, `fast=False` as --no-fast."""
    return _NAMED.sub(lambda found: _flag(found[1], found[2]) or found[0], text)


def _flag(name: str, value: str | None) -> str:
    """An argument as it is typed; "" for what is no argument of the command."""
    flag, _, opposite = _flags.get(name, "").partition("/")
    if value == "False":
        return opposite or (flag and f"--no-{flag.removeprefix('--')}")
    return flag and (flag if value in (None, "True") else f"{flag}{'=' if flag.startswith('--set ') else ' '}{value}")


_loudness = {"quiet": False}  # of this process, which has one terminal


def be_quiet(quiet: bool) -> None:
    """With -q, leave out notes: results, warnings and errors remain."""
    _loudness["quiet"] = quiet


def leave_it_to_another() -> None:
    """Let this process show nothing but its reporter's warnings: one of several that do the same work, of which another reports."""
    stderr.quiet = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the process ends
    warnings.simplefilter("ignore")


def note(text: str) -> None:
    """Print one line on stderr; -q leaves it out."""
    if not _loudness["quiet"]:
        stderr.print(_shown(text))


def warn(text: str) -> None:
    """Print one warning on stderr."""
    stderr.print(f"[yellow]warning:[/] {_shown(text)}")


def print_error(error: TurboVaedError) -> None:
    """Print `error: what` and `hint: the command that mends it`, each one line, on stderr."""
    stderr.print(f"[bold red]error:[/] {_shown(error.what)}")
    if error.hint:
        stderr.print(f"[bold]hint:[/] {_shown(error.hint)}")


def _shown(text: str) -> str:
    return escape(one_line(in_flags(text)))


def one_line(text: str) -> str:
    """The text with what is not printable escaped: a stranger's file name breaks no line, steers no terminal, and can be printed."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text.rstrip())


def _escaped(letter: str) -> str:
    is_byte = 0xDC80 <= ord(letter) <= 0xDCFF  # of a name that is no UTF-8
    return f"\\x{ord(letter) - 0xDC00:02x}" if is_byte else letter.encode("unicode_escape").decode()


def is_interactive() -> bool:
    """Return whether there is a terminal to ask on."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on a terminal; return False if there is none."""
    try:
        return is_interactive() and Confirm.ask(question, console=stderr, default=False)
    except EOFError:
        return False


class ConsoleReporter:
    """Draws progress: a live bar on a terminal, a line every ten seconds elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._values = ""

    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        """Yield `items` unchanged and show how many of `total` are done; see Reporter."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        self._values = ""
        if self.quiet or (total is not None and start >= total):  # nothing to watch
            yield from items
        elif stderr.is_terminal:
            yield from self._with_bar(items, label, total, start)
        else:
            yield from self._with_lines(items, label, total, start)

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        """Print a sentence, or keep figures for the progress of the moment; see Reporter."""
        if values:
            self._values = "  ".join(f"{name.replace('_per_s', '/s')} {_figure(value)}" for name, value in values.items())
        if warning:
            (Console(stderr=True, highlight=False, soft_wrap=True) if stderr.quiet else stderr).print(
                f"[yellow]warning:[/] {_shown(text)}"
            )
        elif text and not self.quiet:
            stderr.print(_shown(text))

    def _with_bar(self, items: Iterable[Item], label: str, total: int | None, start: int) -> Iterator[Item]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _TimeColumn(pace := Pace(total, start)),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=stderr, transient=not self.verbose) as bar:
            task = bar.add_task(label, total=total, completed=start, values="")
            for item in items:
                yield item
                pace.advance()
                bar.update(task, advance=1, values=self._values)

    def _with_lines(self, items: Iterable[Item], label: str, total: int | None, start: int) -> Iterator[Item]:
        pace, last_shown = Pace(total, start), time.monotonic()
        for item in items:
            yield item
            pace.advance()
            if time.monotonic() - last_shown >= _PLAIN_INTERVAL_S:
                last_shown = time.monotonic()
                of = f"/{total}" if total else ""
                stderr.print(escape(f"{label}: {pace.done}{of}, {pace}  {self._values}".rstrip()))


class Pace:
    """How long something has taken, and how long the rest will take, once that can be known.

    The first item does not count: it pays for planning, compiling and warming up. There is no estimate before 5 % or ten
    seconds have gone by, while the rate of the last half differs from that of the whole, and after the last item.
    """

    def __init__(self, total: int | None, start: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._start, self._clock = total, start, clock
        self.done = start
        self._began = clock()
        self._marks: list[tuple[float, int]] = []  # (time, items done) after the first item and after some of the others

    def advance(self) -> None:
        """Count one more item that is done."""
        self.done += 1
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= (now - self._marks[0][0]) / _MOST_MARKS:
            self._marks.append((now, self.done))

    def gone(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def left(self) -> float | None:
        """Seconds until the end at the rate of the items so far; None while that is not known, and after the last item."""
        if self._total is None or self.done >= self._total or not self._marks:
            return None
        if self.done - self._start < _SHARE * (self._total - self._start) and self.gone() < _SECONDS:
            return None
        now, (first, _) = self._clock(), self._marks[0]
        middle = next(mark for mark in reversed(self._marks) if mark[0] <= (first + now) / 2)
        whole, half = self._seconds_per_item(self._marks[0], now), self._seconds_per_item(middle, now)
        if whole is None or half is None or not 1 / _STEADY <= half / whole <= _STEADY:
            return None
        return (whole + half) / 2 * (self._total - self.done)

    def _seconds_per_item(self, since: tuple[float, int], now: float) -> float | None:
        items = self.done - since[1]
        return (now - since[0]) / items if items >= _FEWEST_ITEMS and now > since[0] else None

    def __str__(self) -> str:
        """`0:12 gone, 1:30 left`, or how much time is gone alone."""
        left = self.left()
        return f"{human_duration(self.gone())} gone" + ("" if left is None else f", {human_duration(left)} left")


_SHARE, _SECONDS = 0.05, 10.0  # of the items, and of time: no estimate before either
_FEWEST_ITEMS = 2  # that a rate is made of
_STEADY = 1.5  # by which factor the last half may differ from the whole
_MOST_MARKS = 64  # that a Pace spreads over its time


class _TimeColumn(ProgressColumn):
    """The times of a Pace, next to a bar."""

    max_refresh = 0.5

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, _task: Task) -> Text:
        """The times as text."""
        return Text(str(self._pace))


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
