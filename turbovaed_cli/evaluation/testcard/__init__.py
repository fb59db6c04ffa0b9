"""The test card of decoders: short clips that are drawn, not filmed, and show what real clips hide.

patterns.py    which clips there are, and their sizes
stills.py      pictures that stand still
moving.py      clips that change
measure.py     teacher and student on every clip
scores.py      the scores of a card, its summary, its worst patterns and its document
"""

from turbovaed_cli.evaluation.testcard.measure import measure_testcard, measure_testcards, pattern_frames
from turbovaed_cli.evaluation.testcard.patterns import PATTERNS, Pattern, patterns_for
from turbovaed_cli.evaluation.testcard.scores import CardResult, PatternScores, card_document

__all__ = [
    "PATTERNS",
    "CardResult",
    "Pattern",
    "PatternScores",
    "card_document",
    "measure_testcard",
    "measure_testcards",
    "pattern_frames",
    "patterns_for",
]
