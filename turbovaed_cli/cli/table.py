"""One table for people: it fits the terminal, breaks lines between words alone, and keeps a number on one line."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from turbovaed_cli.cli.console import in_flags, one_line
from turbovaed_cli.machine.streams import fitting

_INDENT = 2  # of a row's facts below its name
_PIPE_WIDTH = 10_000  # columns: wider than any table
# Blanks where a line may break: not inside "28.5 ± 2.6", nor between a number and its unit.
_BREAK = re.compile(r"(?<!±) (?!(?:[kMG]?B|bytes|M|dB|%|ms|s|min|h|d)(?:\W|$))")
_BLANK = re.compile(" ")  # of headings, which may break at each
_LEAST_TEXT = 30  # columns of a list's texts if their longest word does not fit
_NUMBER = re.compile(r"[-+]?(?:[\d.,/]+(?:e[-+]?\d+)?[%x]?)?(?: ± [\d.]+)?(?: [^\s\d]{1,5})?", re.DOTALL)

Rows = list[list[str]]


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, the rows, all text, and the columns that a narrow terminal leaves out."""

    title: str
    columns: list[str]
    rows: list[tuple[str, ...]]
    spare: Sequence[str] = ()


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables on stdout; see print_table."""
    for table in tables:
        print_table(table.title, table.columns, table.rows, spare=table.spare)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = (), on_stderr: bool = False
) -> None:
    """Print one table below its title, on stdout, or on stderr if the result is another. Numbers line up on the right.

    Without names of columns it is a list of facts. If it is too wide, what is the same in every row becomes one line, the
    columns named in `spare` are left out, the last first, and what is still too wide is printed row by row.
    """
    stream = sys.stderr if on_stderr else sys.stdout
    texts = [["" if cell is None else _shown_in_cell(str(cell), stream) for cell in row] for row in rows]
    names = [fitting(column, stream) for column in columns]
    console = Console(file=stream, highlight=False, emoji=False, width=None if stream.isatty() else _width_of_a_pipe())
    with console.capture() as captured:
        if title:
            console.print(Text(fitting(one_line(title), stream), style="bold"))
        _print_rows(console, names, texts, [fitting(column, stream) for column in spare])
    text = captured.get()
    stream.write(text if stream.isatty() else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))
    stream.flush()


def _print_rows(console: Console, names: list[str], rows: Rows, spare: list[str]) -> None:
    """The rows as a table, made narrower step by step until it fits."""
    if not _fits(console, names, rows) and len(rows) > 1:
        names, rows, same = _without_the_same(names, rows)
        if same:
            console.print(Text(", ".join(same)))
    while spare and not _fits(console, names, rows):
        left_out = spare.pop()
        if left_out in names:
            at = names.index(left_out)
            names, rows = _without(names, at), [_without(row, at) for row in rows]
    if _fits(console, names, rows) or not any(names):
        console.print(_table(names, rows, console.width))
        return
    for row in rows:
        console.print(Text(f"{names[0]} {row[0]}".strip(), style="bold"))
        facts = [[" ".join(name.split()), cell] for name, cell in zip(names[1:], row[1:], strict=True) if cell]
        console.print(Padding(_table(["", ""], facts, console.width - _INDENT), (0, 0, 0, _INDENT)))


def _without(items: list[str], at: int) -> list[str]:
    return items[:at] + items[at + 1 :]


def _without_the_same(names: list[str], rows: Rows) -> tuple[list[str], Rows, list[str]]:
    """The columns that differ between rows, and the others in words; the first column stays."""
    keep = [i for i in range(len(names)) if i == 0 or len({row[i] for row in rows}) > 1]
    same = [
        f"{' '.join(name.split())} {rows[0][i]}" for i, name in enumerate(names) if i not in keep and rows[0][i] not in ("", "-")
    ]
    return [names[i] for i in keep], [[row[i] for i in keep] for row in rows], same


def _fits(console: Console, names: list[str], rows: Rows) -> bool:
    """Return whether the longest words of all columns fit beside each other."""
    return sum(_longest_words(names, rows)) + len(names) - 1 <= console.width


def _longest_words(names: list[str], rows: Rows) -> list[int]:
    return [
        max(
            cell_len(word)
            for cell, blank in _with_breaks(name, rows, i)
            for line in cell.split("\n")
            for word in blank.split(line)
        )
        for i, name in enumerate(names)
    ]


def _with_breaks(name: str, rows: Rows, column: int) -> list[tuple[str, re.Pattern[str]]]:
    """The cells of a column, and where the lines of each may break."""
    return [(name, _BLANK), *((row[column], _BREAK) for row in rows)]


def _table(names: list[str], rows: Rows, width: int) -> RichTable:
    widths, gap = _widths(names, rows, width)
    table = RichTable(show_header=any(names), box=None, pad_edge=False, collapse_padding=gap == 1)
    for i, name in enumerate(names):
        is_numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(
            escape(_folded(name, widths[i], _BLANK)), justify="right" if is_numeric else "left", overflow="fold", width=widths[i]
        )
    for row in rows:
        table.add_row(*(escape(_folded(cell, widths[i])) for i, cell in enumerate(row)))
    return table


def _widths(names: list[str], rows: Rows, most: int) -> tuple[list[int], int]:
    """Widths of columns, and of the gaps between them, so that lines break between words.

    The names of a list of facts stay on one line while there is room for the texts. The last column gives way if nothing fits.
    """
    columns = [[cell for cell, _ in _with_breaks(name, rows, i)] for i, name in enumerate(names)]
    widths = [max(map(cell_len, "\n".join(cells).split("\n"))) for cells in columns]
    words = _longest_words(names, rows)
    if not any(names) and len(names) == 2:
        words[1] = words[1] if words[0] + 2 + words[1] <= most else _LEAST_TEXT
        words[0] = max(words[0], min(widths[0], most - 2 - words[1]))
    gap = 2 if sum(words) + 2 * (len(columns) - 1) <= most else 1
    room = most - gap * (len(columns) - 1)
    while sum(widths) > room and widths != words:
        widest = max((i for i in range(len(columns)) if widths[i] > words[i]), key=widths.__getitem__)
        widths[widest] -= 1
    widths[-1] = max(widths[-1] - max(sum(widths) - room, 0), 1)
    return widths, gap


def _folded(cell: str, width: int, blank: re.Pattern[str] = _BREAK) -> str:
    """A cell in lines of at most `width` columns, unless a word is longer."""
    lines = []
    for text in cell.split("\n"):
        line, *words = blank.split(text)
        for word in words:
            if cell_len(line) + 1 + cell_len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}"
        lines.append(line)
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    """Return whether a cell is one number, perhaps with its unit and interval, or empty."""
    return _NUMBER.fullmatch(cell.replace("\n", " ")) is not None


def _shown_in_cell(cell: str, stream: TextIO) -> str:
    return fitting("\n".join(map(one_line, in_flags(cell).split("\n"))), stream)


def _width_of_a_pipe() -> int:
    """The width that COLUMNS asks for; without it a pipe has none, and nothing is folded or cut there."""
    asked = os.environ.get("COLUMNS", "")
    return min(int(asked), _PIPE_WIDTH) if asked.isdecimal() and int(asked) else _PIPE_WIDTH
