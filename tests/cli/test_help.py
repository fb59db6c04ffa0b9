"""Help: one screen for what is common, everything on request, examples that parse, and no sentence typed twice."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from turbovaed_cli.cli.app import app, main
from turbovaed_cli.setting import MORE_PANELS, PANELS

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_OPTIONS = 50, 12
LONG = ("distill", "eval", "bench", "cache-latents", "export", "reconstruct")
OWN_WORDS = typer.main.get_command(app)  # typer's own object of a command, whose options have the texts


def _commands(command, *words):
    yield words, command
    for name, one in getattr(command, "commands", {}).items():
        yield from _commands(one, *words, name)


COMMANDS = dict(_commands(OWN_WORDS))


@pytest.fixture
def help_of(capsys, monkeypatch):
    def run(*words: str, columns: int = 80) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["turbovaed", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capsys.readouterr().out.splitlines()

    return run


def _has_more(command) -> bool:
    return any(param.name == "help_all" for param in command.params)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_text_is_printed_as_it_is_written(help_of, words):
    """No bracket is taken for markup: `[[stages]]` is a part of the text."""
    command = COMMANDS[words]
    shown = " ".join(" ".join(help_of(*words, "--help-all" if _has_more(command) else "--help", columns=100)).split())
    texts = [command.help, *(param.help for param in command.params if not getattr(param, "hidden", False))]
    assert [text for text in texts if " ".join(text.split()) not in shown] == []
    assert words != ("distill",) or "a TOML file with [[stages]]." in shown


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 60])
def test_help_fits_its_terminal(help_of, words, columns):
    lines = help_of(*words, "--help", columns=columns)
    start = lines.index("Examples:")
    assert max(map(len, lines[:start])) <= columns
    assert columns < 80 or max(map(len, lines)) <= 80
    assert columns < 80 or len(lines) <= MOST_LINES


@pytest.mark.parametrize("name", LONG)
def test_options_stand_in_panels_and_the_rare_ones_come_on_request(help_of, name):
    common, everything = help_of(name, "--help"), help_of(name, "--help-all")
    panels = [line[:-1] for line in everything if line.removesuffix(":") in (*PANELS, *MORE_PANELS)]
    assert panels == [panel for panel in (*PANELS, *MORE_PANELS) if panel in panels]
    rare = [panel for panel in panels if panel in MORE_PANELS]
    assert rare and not {f"{panel}:" for panel in rare} & set(common)
    assert ", ".join(rare) in " ".join(common)
    for panel in panels:
        start = everything.index(f"{panel}:") + 1
        rows = everything[start : everything.index("", start)]
        assert sum(bool(re.match(r"  \S", row)) for row in rows) <= MOST_OPTIONS, panel
    flags = {flag for param in COMMANDS[name,].params for flag in param.opts if flag.startswith("-")}
    assert all(any(re.search(rf"(^|[ ,]){flag}\b", line) for line in everything) for flag in flags)


def test_every_panel_has_its_place():
    used = {getattr(param, "rich_help_panel", None) for command in COMMANDS.values() for param in command.params} - {None}
    assert used == {*PANELS, *MORE_PANELS}


def test_defaults_are_shown_and_those_of_a_recipe_are_its_own(help_of):
    text = " ".join(" ".join(help_of("distill", "--help-all")).split())
    for flag in ("--steps", "--lr", "--batch-size", "--frames", "--optimizer", "--dtype", "--seed", "--save-every"):
        assert re.search(rf"{flag} \S+ [^\[]*\[recipe's\]", text), flag
    text = " ".join(" ".join(help_of("eval", "--help-all")).split())
    assert all(f"[default: {shown}]" in text for shown in ("17", "256x256", "fp32", "auto", "standard", "tiny", "tonemap"))
    text = " ".join(" ".join(help_of("reconstruct", "--help-all")).split())
    assert "[default: --fast]" in text and "[default: 70 % of free memory]" in text and "[default: 24.0]" in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_ends_with_three_examples_that_parse(help_of, words):
    lines = help_of(*words, "--help")
    start = lines.index("Examples:") + 1
    examples = [line.strip() for line in lines[start : [*lines, ""].index("", start)]]
    assert len(examples) == 3
    for example in examples:
        program, *rest = shlex.split(example.partition(">")[0])
        assert program == "turbovaed"
        command, named = OWN_WORDS, []
        while rest and rest[0] in getattr(command, "commands", {}):
            named.append(rest.pop(0))
            command = command.commands[named[-1]]
        assert words[: len(named)] == tuple(named[: len(words)]) and (named or not words or rest == ["-V"])
        context = command.make_context("turbovaed", list(rest))
        assert not context.args or named == ["models"]


def test_no_sentence_is_typed_twice():
    """Value, sentence and panel of an option are in one place."""
    found: dict[str, int] = {}
    for path in (ROOT / "turbovaed_cli" / "settings.py", *(ROOT / "turbovaed_cli" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                given = [*node.args, *(word.value for word in node.keywords if word.arg in ("help", "sentence"))]
                for text in given if _name(node) in ("setting", "same", "option", "Option", "Argument") else ():
                    if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.endswith("."):
                        found[text.value] = found.get(text.value, 0) + 1
    assert len(found) > 100
    assert [text for text, times in found.items() if times > 1] == []


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
