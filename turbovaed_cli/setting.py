"""A setting as a dataclass field: its value, its sentence and its panel in `--help`, typed once."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

# The panels that `--help` shows, in this order, and those that `--help-all` adds.
PANELS = ("Input and output", "Model", "Student", "Training", "Clips", "Video", "Format", "Measuring", "Device", "Terminal")
MORE_PANELS = (
    "Design of the student", "Schedule", "Losses", "Speed and memory", "Windows of --compare", "Several workers", "Reading videos",
    "Latents", "Weights of metrics", "Measuring in detail", "Apple devices", "Checkpoints and logs",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """The option of a setting. Without a panel there is none, and a recipe or `--set` sets it."""

    sentence: str  # for help; {choices} stands for the choices
    panel: str = ""
    flag: str = ""  # the option's names by blanks, if they are not the field's
    metavar: str = ""  # what stands for the value in help
    choices: Sequence[str] = ()  # all values there are, or the only ones worth completing if `parse` takes others too
    parse: Callable[[str], Any] | None = None  # from the text of an option; raises SettingsError
    many: bool = False  # several values, of which `parse` and `choices` are of one
    by_commas: bool = True  # as well as by repeating the option
    complete: Callable[[str], Sequence[str]] | None = None  # values for a shell to complete, if they are no fixed list
    shown: str = ""  # the default in words, if its value is not what people would write


def setting(default: Any, sentence: str, panel: str = "", **option: Any) -> Any:
    """Return a dataclass field with a default and its option; see Setting."""
    return field(default=default, metadata={"setting": Setting(sentence, panel, **option)})


def setting_of(settings_class: type, name: str) -> Setting:
    """Return the option of a field."""
    return _field(settings_class, name).metadata["setting"]


def same(settings_class: type, name: str, **changes: Any) -> Any:
    """Return a field with the default and the option of another class's field, or with some of them changed."""
    default = changes.pop("default", _field(settings_class, name).default)
    return field(default=default, metadata={"setting": replace(setting_of(settings_class, name), **changes)})


def _field(settings_class: type, name: str) -> Field[Any]:
    return next(one for one in fields(settings_class) if one.name == name)
