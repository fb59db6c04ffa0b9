"""The test card of `eval` as tables of text."""

from collections.abc import Sequence

from turbovaed_cli.cli.table import Table
from turbovaed_cli.evaluation.scores import own_side
from turbovaed_cli.evaluation.testcard.scores import (
    CardResult,
    PatternScores,
    figure_text,
    summary_rows,
    worst_patterns,
)
from turbovaed_cli.units import counted

_COLUMNS = (  # heading, side, figure
    ("PSNR\nteacher", "teacher", "psnr"),
    ("\n{own}", "student", "psnr"),
    ("to\nteacher", "student", "psnr_to_teacher"),
    ("ΔE\nmean", "student", "colour_mean"),
    ("ΔE\nworst", "student", "colour_worst"),
    ("\ngrid", "student", "grid"),
    ("\nbanding", "student", "banding"),
    ("\nborder", "student", "border"),
    ("\nflicker", "student", "flicker"),
)


def card_tables(cards: Sequence[CardResult], *, every_pattern: bool = False) -> list[Table]:
    """The test card of each model: its figures, its summary, and why a pattern is worth a look.

    Of the flat colours only the worst are in the table, unless `every_pattern` is set.
    """
    return [table for card in cards for table in _tables(card, every_pattern)]


def _tables(card: CardResult, every_pattern: bool) -> list[Table]:
    worst = worst_patterns(card)
    named = {one.name for _, one in worst}
    own = own_side(card.family)
    rows = [_row(one) for one in card.patterns if every_pattern or one.colour is None or one.name in named]
    height, width = card.size
    of = counted(card.frames, "frame")
    title = f"{card.model}: test card of {len(card.patterns)} patterns, at most {of} at {width}x{height}"
    columns = ["", *(heading.format(own=own) for heading, _, _ in _COLUMNS)]
    facts: list[tuple[str, ...]] = [*summary_rows(card), *((one.label, roles) for roles, one in worst)]
    hidden = len(card.patterns) - len(rows)
    if hidden:
        facts.append(("not shown", f"{hidden} flat colours (-v shows every pattern)"))
    return [Table(title, columns, rows), Table("", ["", ""], facts)]


def _row(one: PatternScores) -> tuple[str, ...]:
    return (one.label, *(figure_text(name, getattr(one, side).get(name)) for _, side, name in _COLUMNS))
