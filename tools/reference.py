"""Write docs/reference/cli.md and docs/reference/recipes.md from the commands and the settings themselves.

    python tools/reference.py            # prints the pages that differ from the code; exit code 1 if there are any
    python tools/reference.py --write    # writes them

The first has every option with the sentence and the default of `--help`; the second has every recipe as a file that `--recipe` accepts.
"""

import argparse
import html
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import typer

from turbovaed_cli.cli.app import app
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.setting import setting_of
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.recipes import RECIPES

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
_CLI_HEAD = """# Commands and options
<!-- Made by tools/reference.py from the commands themselves. -->
Every command takes `--help`. Options that mean the same everywhere have the same name everywhere.
[Exit codes](exit-codes.md) and [environment variables](environment.md) have pages of their own.
`turbovaed --install-completion` installs completion for your shell.
"""


def commands(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (words, command) of every command that help shows; a group comes before what is in it."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if not command.hidden:
            yield (*words, name), command
            if hasattr(command, "commands"):
                yield from commands(command, (*words, name))


def help_of(described: Any) -> str:
    """Return the help of a command or option as plain text on one line, without the marks of rich."""
    text = re.sub(r"\\(?=\[)", "", described.help or "")
    return " ".join(text.split())


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    value = "" if param.is_flag or not param.metavar else f" {param.metavar}"
    return f"`{', '.join([*param.opts, *param.secondary_opts])}{value}`"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if isinstance(param.show_default, str):
        return param.show_default
    if (
        param.default is None
        or param.default is False
        or param.default in ("", (), [])
        or callable(param.default)
        or not param.show_default
    ):
        return ""
    if getattr(param, "is_flag", False):
        return f"`{param.opts[0]}`"
    return f"`{', '.join(map(str, param.default)) if isinstance(param.default, (list, tuple)) else param.default}`"


def _panels(command: Any) -> dict[str, list[Any]]:
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if not getattr(param, "hidden", False) and param.name != "help":
            named = getattr(param, "rich_help_panel", None)
            panels.setdefault(named if isinstance(named, str) else "", []).append(param)
    return panels


def _section(words: tuple[str, ...], command: Any) -> list[str]:
    context = command.context_class(command, info_name=f"turbovaed {' '.join(words)}", max_content_width=200, terminal_width=200)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    lines = [f"{'#' * (len(words) + 1)} {' '.join(words)}", help_of(command), "", "```text", usage, "```", ""]
    for panel, params in _panels(command).items():
        lines += [f"**{panel}**", ""] if panel else []
        lines += ["| option | default | what |", "|---|---|---|"]
        rows = [(_name(param), _default(param), html.escape(help_of(param), quote=False)) for param in params]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        lines.append("")
    return lines


def cli_page() -> str:
    """Return docs/reference/cli.md."""
    lines = [_CLI_HEAD]
    for words, command in commands():
        lines += _section(words, command)
    return "\n".join(lines).rstrip() + "\n"


_RECIPES_HEAD = """# Recipes
<!-- Made by tools/reference.py from the recipes themselves. -->
A recipe is a schedule of stages. `turbovaed distill --recipe NAME` takes one of these; `--recipe FILE.toml` takes a file of your own.
Options such as `--lr` change every stage, and `--steps` scales the whole schedule. Sizes are `[height, width]`.
[Distil your own VAE](../guides/distill.md) shows how to choose one; [GPU memory](../gpu-memory.md) lists what each one needs.
"""


def _sentence(settings_class: type, name: str) -> str:
    """Return the sentence that the field is declared with."""
    described = setting_of(settings_class, name)
    return html.escape(described.sentence.replace("{choices}", ", ".join(described.choices)), quote=False)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _own_fields(settings: DistillSettings | Stage) -> list[tuple[str, object]]:
    named = [field.name for field in fields(settings) if field.name not in ("stages", "recipe") and _differs(settings, field)]
    return [(name, getattr(settings, name)) for name in named]


def _differs(settings: DistillSettings | Stage, field: Field[Any]) -> bool:
    return field.default is MISSING or getattr(settings, field.name) != field.default


def as_toml(settings: DistillSettings) -> str:
    """Return the schedule as a file for `--recipe`, without the fields that have their default."""
    lines = [f"{name} = {_toml(value)}" for name, value in _own_fields(settings)]
    for stage in settings.stages:
        lines += ["", "[[stages]]", *(f"{name} = {_toml(value)}" for name, value in _own_fields(stage))]
    return "\n".join(lines).lstrip() + "\n"


def _fields_table(settings_class: type) -> list[str]:
    rows = ["| field | default | what |", "|---|---|---|"]
    for field in fields(settings_class):
        if field.name not in ("stages", "recipe"):
            default = "" if field.default in (MISSING, None) else f"`{_toml(field.default)}`"
            rows.append(f"| `{field.name}` | {default} | {_sentence(settings_class, field.name)} |")
    return rows


def recipes_page() -> str:
    """Return docs/reference/recipes.md."""
    lines = [_RECIPES_HEAD, "| recipe | stages | steps | clips seen | default for |", "|---|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        teachers = ", ".join(f"`{spec.name}`" for spec in MODELS.values() if spec.recipe == name)
        stages = ", ".join(stage.name for stage in recipe.stages)
        lines.append(f"| `{name}` | {stages} | {recipe.steps:,} | {recipe.clips:,} | {teachers} |")
    for name, recipe in RECIPES.items():
        lines += ["", f"## {name}", "", "```toml", as_toml(recipe).rstrip(), "```"]
    lines += [
        "",
        "## Fields of a schedule",
        "",
        *_fields_table(DistillSettings),
        "",
        "## Fields of a stage",
        "",
        *_fields_table(Stage),
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page, "recipes.md": recipes_page}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages")
    write = parser.parse_args().write
    stale = False
    for name, page in PAGES.items():
        text, path = page(), FOLDER / name
        if write:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale = True
            print(f"{path} is not current: python tools/reference.py --write")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
