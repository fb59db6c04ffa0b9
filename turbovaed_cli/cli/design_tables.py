"""The table and the drawing of a design: the student that was chosen, among others that cost more or less."""

from typing import TYPE_CHECKING

from turbovaed_cli.cli import console
from turbovaed_cli.cli.scatter import Point, scatter
from turbovaed_cli.cli.table import print_table

if TYPE_CHECKING:
    from turbovaed_cli.models.design import Candidate, Design

_COLUMNS = ["student", "channels", "layers", "M params", "GFLOPs", "ms", "of\nfull", "of\nteacher", "change", "in\nbudget"]
_CHOSEN = "#"


def show_design(design: "Design", *, on_stderr: bool = False) -> None:
    """Print the candidates around the choice, on stderr if the result is another; with the drawing if it is the result."""
    from turbovaed_cli.models.design import as_sentence

    title = f"Students of {design.model} for {design.budget}"
    rows = [_row_of(one, design) for one in design.table]
    left_out = [] if design.budget.ms else [_COLUMNS.index("ms")]
    columns, rows = ([[cell for i, cell in enumerate(row) if i not in left_out] for row in found] for found in ([_COLUMNS], rows))
    print_table(title, columns[0], rows, spare=["of\nteacher", "of\nfull"], on_stderr=on_stderr)
    if not on_stderr:
        console.print_text(_drawing(design))
    console.note(as_sentence(design))


def _row_of(one: "Candidate", design: "Design") -> list[str]:
    from turbovaed_cli.models.design import listed

    ms = "" if one.ms is None else f"{one.ms:.0f}" if one.is_measured else f"~{one.ms:.0f}"
    return [
        one.name or one.layout,
        listed(one.channels),
        listed(one.layers),
        f"{one.params / 1e6:.3f}",
        f"{one.gflops:.1f}",
        ms,
        f"{_cost_of(one, design) / _cost_of(design.published, design):.0%}",
        f"{one.of_teacher:.1%}" if one.of_teacher is not None else "",
        f"{2**one.change:.2f}x",
        "chosen" if one == design.chosen else "yes" if one.fits else "no",
    ]


def _cost_of(one: "Candidate", design: "Design") -> float:
    """The cost that a share of the full student is of: milliseconds if they are limited, else GFLOPs."""
    return one.ms if design.budget.ms and one.ms is not None else one.gflops


def _drawing(design: "Design") -> str:
    """The table as a drawing, with a letter for each student of the family."""
    marks = {design.published.name: "F", f"{design.model}-lite": "L", f"{design.model}-nano": "N"}
    points = [Point(_cost_of(one, design), one.params / 1e6, marks.get(one.name, "o")) for one in design.table]
    points.append(Point(_cost_of(design.chosen, design), design.chosen.params / 1e6, _CHOSEN))
    unit = "ms" if design.budget.ms else "GFLOPs"
    return f"{scatter(points, unit, 'M params')}\n{_CHOSEN} chosen, F full, L lite, N nano, o others\n"
