"""`--help`: panels of options, the rest after `--help-all`, examples. Two columns from 60 columns on, one below."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from turbovaed_cli.cli import console
from turbovaed_cli.setting import MORE_PANELS, PANELS
from turbovaed_cli.training.recipes import changeable

_MOST_COLUMNS = 100  # of text that is pleasant to read
_FEWEST_COLUMNS = 60  # below, a description is below its option
_WIDEST_FLAG = 24
_OTHERS = "Options"
_NO_BREAK, _SHORT = "\xa0", 24  # a default of fewer letters stays on one line
_PLAIN = ("recipe's",)  # defaults that need no word before them
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage or settings, 3 something is missing, 4 a check missed, 5 some inputs were skipped."
)

Row = tuple[str, str]


class HelpfulCommand(TyperCommand):
    """A command with our help, whose errors name arguments as options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_of(self, ctx))

    def invoke(self, ctx: Any) -> Any:
        console.call_arguments(_options_by_argument(self, ctx))
        return super().invoke(ctx)


class HelpfulGroup(TyperGroup):
    """A group with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_of(self, ctx))


def _options_by_argument(command: Any, ctx: Any) -> dict[str, str]:
    """The options that stand for arguments in messages: the command's own, then fields that `--set` sets, then other commands'."""
    every: dict[str, str] = {}
    groups = [ctx.find_root().command]
    for group in groups:  # which grows while it is walked
        for other in getattr(group, "commands", {}).values():
            groups.append(other)
            every = flags_by_name(other) | every
    settable = {name: f"--set {name}" for name in changeable()} if command.name == "distill" else {}
    return every | settable | flags_by_name(command)


def flags_by_name(command: Any) -> dict[str, str]:
    """The options of a command by the names of its arguments, as people type them: --fast/--no-fast has both."""
    found = {}
    for param in command.params:
        if param.param_type_name == "option":
            flag = _longest(param.opts)
            found[param.name] = "/".join([flag, *map(str, param.secondary_opts[:1])])
            found.setdefault(flag.removeprefix("--").replace("-", "_"), found[param.name])  # `dtype` of `precisions`
    if "yes" in found:
        found["consent"] = found["yes"]  # the argument of library calls
    return found


def _longest(names: list[str]) -> str:
    return max(names, key=len)


def help_of(command: Any, ctx: Any) -> str:
    """The help of a command or a group, as wide as the terminal is."""
    width = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    everything = bool(ctx.meta.get("help_all"))
    panels = _panels(command, ctx)
    hidden = [] if everything else [panel for panel in panels if panel in MORE_PANELS]
    lines = [*_wrapped(" ".join(["Usage:", ctx.command_path, *_usage(command)]), width), ""]
    lines += [*_wrapped((command.help or "").replace("\n", " "), width), ""]
    shown = {panel: rows for panel, rows in panels.items() if panel not in hidden}
    column = max((len(flag) for rows in shown.values() for flag, _ in rows if len(flag) <= _WIDEST_FLAG), default=0)
    for panel, rows in shown.items():
        lines += [typer.style(f"{panel}:", bold=True), *(line for row in rows for line in _row(row, column, width)), ""]
    if hidden:
        lines += [*_wrapped(f"--help-all adds: {', '.join(hidden)}.", width), ""]
    if command.epilog:
        lines += [typer.style("Examples:", bold=True), *(f"  {line}" for line in command.epilog.splitlines()), ""]
    if everything or ctx.parent is None:
        lines += _wrapped(EXIT_CODES, width)
    return "\n".join(lines).rstrip("\n") + "\n"


def _usage(command: Any) -> Iterator[str]:
    yield "[OPTIONS]"
    for param in command.params:
        if param.param_type_name == "argument":
            yield _flags(param) if param.required else f"[{_flags(param)}]"
    if hasattr(command, "commands"):
        yield "COMMAND"


def _panels(command: Any, ctx: Any) -> Mapping[str, list[Row]]:
    """Rows of help by panel, in the order of the panels."""
    found: dict[str, list[Row]] = {}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False) and param.name != "help":
            panel = getattr(param, "rich_help_panel", None) or _OTHERS
            found.setdefault(panel, []).append((_flags(param), _description(param)))
    if commands := getattr(command, "commands", {}):
        found["Commands"] = [(name, one.get_short_help_str(limit=400)) for name, one in commands.items() if not one.hidden]
    order = ["Commands", *PANELS, *MORE_PANELS, _OTHERS]
    if "Terminal" in found and set(found) <= {"Commands", "Terminal", _OTHERS}:  # a panel for an option or two says little
        found[_OTHERS] = found.get(_OTHERS, []) + found.pop("Terminal")
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _flags(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"{param.metavar or param.name.upper()}{'...' if param.nargs < 0 else ''}"
    names = ", ".join(sorted(param.opts, key=len)) + "".join(f", {name}" for name in param.secondary_opts)
    return names if param.is_flag else f"{names} {param.metavar or 'VALUE'}"


def _description(param: Any) -> str:
    default = param.show_default if isinstance(param.show_default, str) else param.default
    has_none = default is None or default is False or default in ("", [], ()) or param.show_default is False or callable(default)
    notes = (["required"] if param.required else []) + (
        [] if has_none else [default if default in _PLAIN else f"default: {default}"]
    )
    return " ".join(
        [param.help or "", *(f"[{note}]".replace(" ", _NO_BREAK if len(note) < _SHORT else " ") for note in notes)]
    ).strip()


def _row(row: Row, column: int, width: int) -> Iterator[str]:
    """One option: its names on the left and its description on the right, or below if there is no room."""
    flag, text = row
    indent = column + 4 if width >= _FEWEST_COLUMNS else 6
    described = [line.replace(_NO_BREAK, " ") for line in _wrapped(text, max(width - indent, 20))]
    if len(flag) + 4 <= indent and described:
        yield f"  {flag}".ljust(indent) + described.pop(0)
    else:
        yield f"  {flag}"
    yield from (" " * indent + line for line in described)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
