"""What a person or a script sees: results on stdout, everything else on stderr, live bars only on a terminal."""

import dataclasses
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.prompt import Confirm
from rich.table import Table

from turbovaed_cli.errors import TurboVaedError

SCHEMA_VERSION = 1
_PLAIN_INTERVAL_S = 10.0  # between progress lines where there is no terminal

Item = TypeVar("Item")

stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def print_json(value: object) -> None:
    """One JSON document on stdout, with schema_version; dataclasses and paths as plain values."""
    plain = _plain(value)
    document = (
        {"schema_version": SCHEMA_VERSION, **plain}
        if isinstance(plain, dict)
        else {"schema_version": SCHEMA_VERSION, "items": plain}
    )
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
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
    return str(value) if isinstance(value, Path | Fraction) else value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, on_stderr: bool = False) -> None:
    """One table on stdout, or beside the notes, below its title. Numbers line up on the right; a table without column names is a list of facts."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    table = Table(
        show_header=any(columns),
        box=None,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        is_numeric = bool(texts) and all(_looks_numeric(row[i]) for row in texts)
        table.add_column(escape(column), justify="right" if is_numeric else "left", overflow="fold")
    for row in texts:
        table.add_row(*(escape("\n".join(map(one_line, cell.split("\n")))) for cell in row))
    # A pipe has no width: nothing may be folded or cut there.
    stream = sys.stderr if on_stderr else sys.stdout
    out = Console(file=stream, highlight=False, emoji=False, width=None if stream.isatty() else 240)
    if title:
        out.print(f"[bold]{escape(one_line(title))}[/]")
    out.print(table)


def _looks_numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] == "-"


_quiet = False


def be_quiet(quiet: bool) -> None:
    """With -q, leave out notes: results, warnings and errors remain."""
    global _quiet  # noqa: PLW0603 - one terminal, one loudness
    _quiet = quiet


def leave_it_to_another() -> None:
    """Let this process show nothing but its reporter's warnings: one of several that do the same work, of which another reports."""
    stderr.quiet = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the process ends
    warnings.simplefilter("ignore")


def note(text: str) -> None:
    """One line for people, on stderr; left out with -q."""
    if not _quiet:
        stderr.print(escape(one_line(text)))


def warn(text: str) -> None:
    """One line that should be seen, on stderr."""
    stderr.print(f"[yellow]warning:[/] {escape(one_line(text))}")


def print_error(error: TurboVaedError) -> None:
    """`error: what` and `hint: the command that mends it`, each one line, on stderr."""
    stderr.print(f"[bold red]error:[/] {escape(one_line(error.what))}")
    if error.hint:
        stderr.print(f"[bold]hint:[/] {escape(one_line(error.hint))}")


def one_line(text: str) -> str:
    """The text with what is not printable escaped: a stranger's file name breaks no line, steers no terminal, and can be printed."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text.rstrip())


def _escaped(letter: str) -> str:
    is_byte = 0xDC80 <= ord(letter) <= 0xDCFF  # of a name that is no UTF-8
    return f"\\x{ord(letter) - 0xDC00:02x}" if is_byte else letter.encode("unicode_escape").decode()


def is_interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on a terminal; False where there is none to ask on."""
    try:
        return is_interactive() and Confirm.ask(question, console=stderr, default=False)
    except EOFError:
        return False


def human_bytes(num_bytes: int) -> str:
    """1_680_000_000 as "1.68 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def human_age(seconds: float) -> str:
    """7_300 as "2 h": the largest whole unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def human_span(seconds: float) -> str:
    """66_720 as "18 h 32 min", 744 as "12 min 24 s": its two largest units."""
    whole = max(round(seconds), 1)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class ConsoleReporter:
    """Draws progress: a live bar on a terminal, a line every ten seconds elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._values = ""
        self._bar: Progress | None = None

    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        """Yield `items` unchanged and show how many of `total` are done; see Reporter."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        self._values = ""
        if self.quiet:
            yield from items
        elif stderr.is_terminal:
            yield from self._with_bar(items, label, total, start)
        else:
            yield from self._with_lines(items, label, total, start)

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        """Say a sentence, or keep figures for the progress of the moment; see Reporter."""
        if values:
            self._values = "  ".join(f"{name.replace('_per_s', '/s')} {_figure(value)}" for name, value in values.items())
        if warning:
            (Console(stderr=True, highlight=False, soft_wrap=True) if stderr.quiet else stderr).print(
                f"[yellow]warning:[/] {escape(one_line(text))}"
            )
        elif text and not self.quiet:
            stderr.print(escape(one_line(text)))

    def _with_bar(self, items: Iterable[Item], label: str, total: int | None, start: int) -> Iterator[Item]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=stderr, transient=not self.verbose) as bar:
            task = bar.add_task(label, total=total, completed=start, values="")
            for item in items:
                yield item
                bar.update(task, advance=1, values=self._values)

    def _with_lines(self, items: Iterable[Item], label: str, total: int | None, start: int) -> Iterator[Item]:
        began = last_said = time.monotonic()
        done = start
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - last_said >= _PLAIN_INTERVAL_S:
                last_said = now
                left = f", {human_duration((now - began) / (done - start) * (total - done))} left" if total else ""
                stderr.print(escape(f"{label}: {done}{f'/{total}' if total else ''}{left}  {self._values}".rstrip()))


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def human_duration(seconds: float) -> str:
    """7_300 as "2:01:40"; what is less than a second as "0:01"."""
    minutes, seconds = divmod(max(int(seconds), 1), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
