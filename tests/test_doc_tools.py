"""The tools that make and check pages and packages do what their first lines state."""

import re

import check_package
import docs_check
import outputs
import pages
import pictures
import pytest


def test_the_output_of_a_command_replaces_the_old_one(tmp_path):
    block = "$ echo one; pwd\nold\n$ printf 'a: 1/2, 0:03 gone\\nb\\n'\n$ printf '1\\n2\\n3\\n'\nold\nold\n...\n"
    new = outputs.refreshed(block, tmp_path, tmp_path)
    assert new == (
        f"$ echo one; pwd\none\n{tmp_path}\n$ printf 'a: 1/2, 0:03 gone\\nb\\n'\nb\n$ printf '1\\n2\\n3\\n'\n1\n2\n...\n"
    )


def test_the_path_of_the_folder_is_left_out(tmp_path):
    assert outputs.run("echo $PWD/in.mp4; echo wrong >&2", tmp_path, tmp_path) == ["in.mp4", "wrong"]


PAGE = """
```sh
true                    # a comment
turbovaed models &      # in the background
echo "$HEX" > made; cat \\
  in.mp4
make demo
false
```

```console
$ echo 20 frames at 640x360, 1.3 GB, in 1 h 5 min; echo a; echo b
5 frames at 64x64, 20 MB, in 8 s
a
...
$ echo said
asked
```
"""


class Shelf:
    """A shelf with one file."""

    def __init__(self, folder):
        self.environment, self.makers, self.folder = {}, {"in.mp4": None, "made": None}, folder

    def take(self, name):
        (self.folder / name).write_text("of the shelf")
        return self.folder / name


@pytest.fixture
def commands(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    monkeypatch.setattr(docs_check, "name_of", lambda path: path.name)
    return docs_check.commands_of(path)


def test_every_command_of_a_page_is_found(commands):
    assert [command.title for command in commands] == [
        "true", "turbovaed models &", "make demo", "false", "echo 20 frames at 640x360, 1.3 GB, in 1 h 5 min; echo a; echo b", "echo said",
    ]  # fmt: skip
    assert [bool(command.reason_left_out) for command in commands] == [False, False, True, False, False, False]
    assert commands[1].writes == {"made"}


def test_a_command_that_fails_and_output_that_differs_are_seen(commands, tmp_path):
    reader = docs_check.Reader(tmp_path / "reader", Shelf(tmp_path), {"made"})
    true, _, _, false, same, other = commands
    assert reader.run(true) == [] and reader.run(false) == ["exit code 1", "$ false"]
    assert reader.run(same) == []
    assert reader.run(other)[-2:] == ["-asked", "+said"]


def test_a_reader_is_brought_what_no_command_of_the_page_writes(commands, tmp_path):
    reader = docs_check.Reader(tmp_path / "reader", Shelf(tmp_path), {"made"})
    reader.bring(commands[1].small)
    assert [path.name for path in reader.folder.iterdir()] == ["in.mp4"]


def test_every_row_of_the_tables_is_of_use():
    """A row whose pattern no command matches is left over from a page that has changed."""
    found = [command for path in pages.PAGES for command in docs_check.commands_of(path)]
    assert len(found) > 100
    for pattern, *_ in (*docs_check.LEFT_OUT, *docs_check.OTHER_CODES):
        assert any(re.search(pattern, command.title) for command in found), pattern
    for pattern, *_ in docs_check.REPLACED:
        before = [docs_check.small(command.text, until=pattern) for command in found]
        assert any(re.search(pattern, text, re.MULTILINE) for text in before), pattern


def test_every_command_of_turbovaed_is_run_or_left_out_with_a_reason():
    for path in pages.PAGES:
        lines = "\n".join(command.text for command in docs_check.commands_of(path))
        missing = [words for words in pages.commands(path) if words[0] not in lines]
        assert missing == [] and lines.count("turbovaed") >= len(list(pages.commands(path)))


def test_a_package_without_weights_with_tests_or_too_large_is_seen(tmp_path):
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"")
    good = [*check_package.NEEDED, "turbovaed_cli/benchmarking/bench.py"]
    assert check_package.check(wheel, good) == []
    assert check_package.check(wheel, good[1:]) == [f"a.whl has no {good[0]}"]
    assert check_package.check(wheel, [*good, "tests/data/a.safetensors", "Makefile"]) == [
        "a.whl has tests/data/a.safetensors",
        "a.whl has Makefile",
    ]
    with wheel.open("wb") as file:
        file.truncate(check_package.MOST_BYTES + 1)
    assert "more than" in check_package.check(wheel, good)[0]


def test_a_picture_of_a_terminal_has_its_text_and_asks_no_other_site():
    svg = pictures.as_terminal("$ turbovaed\n\x1b[1mtable\x1b[0m", "a title")
    assert "table" in svg and "a&#160;title" in svg.replace(" ", "&#160;") and "@font-face" not in svg and "url(http" not in svg
