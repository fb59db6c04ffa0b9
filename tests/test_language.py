"""Plain technical English: the worst habits stay out of README, docs/, the changelog and the help of options."""

import re
import tokenize

import pages
import pytest
import reference
from pages import ROOT, WRITTEN, name_of

HABITS = re.compile(r"\bbehind\b|\bso (?:many|much)\b|\bfor ever\b|\b(?:some|no)body\b|\bwhoever\b", re.IGNORECASE)
PAGES = [*WRITTEN, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "THIRD_PARTY_NOTICES.md"]
HELPS = {
    f"{' '.join(words)} {param.opts[0]}": reference.help_of(param)
    for words, command in reference.commands()
    for param in command.params
} | {" ".join(words): reference.help_of(command) for words, command in reference.commands()}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_have_no_bad_habits(path):
    assert HABITS.findall(pages.prose(path)) == []


def test_helps_have_no_bad_habits():
    assert len(HELPS) > 150
    assert {name for name, text in HELPS.items() if HABITS.search(text)} == set()


SOURCES = sorted((ROOT / "turbovaed_cli").rglob("*.py"))


def test_comments_docstrings_and_messages_have_no_bad_habits():
    """To be behind in a comparison is plain English."""
    found = []
    for path in SOURCES:
        with path.open("rb") as file:
            texts = [token for token in tokenize.tokenize(file.readline) if token.type in (tokenize.COMMENT, tokenize.STRING)]
        found += [
            (name_of(path), token.start[0]) for token in texts if HABITS.search(token.string.replace("furthest behind", ""))
        ]
    assert len(SOURCES) > 100 and found == []


def test_docstrings_are_sentences():
    """No fragment such as "Of one stage." stands for one."""
    fragments = re.compile(r'"""(?:Of|Those) ')
    assert [name_of(path) for path in SOURCES if fragments.search(path.read_text(encoding="utf-8"))] == []


def test_a_bad_habit_is_seen():
    """The control of the tests above."""
    found = HABITS.findall("Behind it, somebody waits for ever for so many frames, whoever that is; behindhand is another word.")
    assert len(found) == 5
