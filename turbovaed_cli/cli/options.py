"""Options made from settings classes, and those that mean the same in every command."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from turbovaed_cli.choices import check_choice
from turbovaed_cli.cli import console
from turbovaed_cli.cli.completion import complete_family, complete_model, complete_teacher, completion_of
from turbovaed_cli.errors import MissingWeightsError, OutputExistsError, SettingsError
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.system import check_system
from turbovaed_cli.registry.download import RemoteFile
from turbovaed_cli.registry.hub import hides_cached
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.setting import MORE_PANELS, Setting, same, setting, setting_of
from turbovaed_cli.settings import ClipSettings, DistillSettings, ExportSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.units import format_size, human_bytes, parse_count, parse_size

if TYPE_CHECKING:
    from turbovaed_cli.models.pair import Pair

Command = TypeVar("Command", bound=Callable[..., None])
_OPTIONAL = {bool: bool | None, int: int | None, float: float | None, str: str | None, Path: Path | None}
_PLACEHOLDERS = {int: "N", float: "X", Path: "PATH"}  # for values in help; NAME for others


# --- options from settings classes ----------------------------------------------------------------------------------


class RecipeChanges(dict[str, Any]):
    """The fields of a recipe and of its stages that were given, as DistillSettings.with_changes takes them."""


def spread(function: Command) -> Command:
    """Make options of every parameter that is a settings class, one for each field with a panel, and hand the settings over."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[tuple[type, Field[Any]]]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind: type = hints[name]
        if kind is RecipeChanges or is_dataclass(kind):
            groups[name] = kind, list(_with_options(kind))
            parameters += [_parameter(home, one, kind) for home, one in groups[name][1]]
        else:
            parameters.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))
    if any(panel in MORE_PANELS for panel in map(_panel_of, parameters)):
        parameters.append(inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_HelpAll))

    @functools.wraps(function)
    def run(**given: Any) -> None:
        given.pop("help_all", None)
        for name, (kind, made_of) in groups.items():
            values = ((home, one, given.pop(one.name)) for home, one in made_of)
            read = {one.name: _read(home, one, value) for home, one, value in values if value not in (None, [])}
            given[name] = kind(**read)
        function(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]


def _with_options(kind: type) -> Iterator[tuple[type, Field[Any]]]:
    for home in (Stage, DistillSettings) if kind is RecipeChanges else (kind,):
        for one in fields(home):
            if "setting" in one.metadata and one.metadata["setting"].panel:
                yield home, one


def _parameter(home: type, one: Field[Any], kind: type) -> inspect.Parameter:
    """One option as a parameter. What is not given is None, so that defaults come from the class, or the recipe."""
    option: Setting = one.metadata["setting"]
    shown = "recipe's" if kind is RecipeChanges else _default_in_words(option, one.default)
    value = _kind_of(home, one)
    is_path = Path in (value, *get_args(value))
    made = made_option(option, one.name, shown, None if value is bool else _PLACEHOLDERS.get(value, "NAME"))
    if option.many:
        annotation: Any = list[Path] | None if is_path else list[str] | None
    else:
        annotation = str | None if option.parse or option.choices else _OPTIONAL[value]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, made])


def made_option(option: Setting, name: str, shown: str = "", placeholder: str | None = None) -> Any:
    """Return the typer option of a setting; `shown` is its default for help, `placeholder` stands for the value."""
    sentence = option.sentence.replace("{choices}", one_of(option.choices) if option.choices else "")
    return typer.Option(
        *flags_of(option, name),
        help=sentence,
        rich_help_panel=option.panel,
        show_default=shown or False,
        metavar=option.metavar or placeholder,
        autocompletion=completion_of(option),
    )


def field_option(settings_class: type, name: str) -> Any:
    """Return the typer option of a field, for commands that take it alone."""
    return made_option(setting_of(settings_class, name), name)


def option(flag: str, sentence: str, panel: str, **more: Any) -> Any:
    """Return the typer option of a parameter that is in no settings class; see Setting."""
    made = Setting(sentence, panel, flag, **more)
    return made_option(made, "", made.shown, "PATH")


def flags_of(option: Setting, name: str) -> list[str]:
    """The names of an option as typer wants them."""
    return option.flag.split() or [f"--{name.replace('_', '-')}"]


def one_of(names: Sequence[str]) -> str:
    """The names as a choice: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def _kind_of(home: type, one: Field[Any]) -> Any:
    """The type of a field, without None."""
    hint = get_type_hints(home)[one.name]
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(hint) else hint


def _default_in_words(option: Setting, default: Any) -> str:
    if option.shown:
        return option.shown
    if default is MISSING or default is None or default is False or default in ("", ()):
        return ""
    if default is True:
        return flags_of(option, "")[0].partition("/")[0]
    values = [format_size(one) if option.parse is parse_size else str(one) for one in (default if option.many else [default])]
    return ",".join(values)


def _panel_of(parameter: inspect.Parameter) -> str:
    return next((info.rich_help_panel or "" for info in getattr(parameter.annotation, "__metadata__", ())), "")


def read_field(settings_class: type, name: str, given: Any) -> Any:
    """Return the value of a field from what was given for `field_option`."""
    return _read(settings_class, next(one for one in fields(settings_class) if one.name == name), given)


def _read(home: type, one: Field[Any], given: Any) -> Any:
    """The value of a field from what was given for its option."""
    option: Setting = one.metadata["setting"]
    flag = next(name for name in flags_of(option, one.name) if name.startswith("--"))
    if option.many:
        items = listed(given) if option.by_commas else given
        if not items and one.default:
            raise SettingsError(f"{flag} names nothing", f"leave it out for {_default_in_words(option, one.default)}")
        return tuple(_read_one(option, str, flag, item) for item in items)
    return _read_one(option, _kind_of(home, one), flag, given)


def _read_one(option: Setting, kind: Any, flag: str, given: Any) -> Any:
    if option.parse:
        try:
            return option.parse(given)
        except SettingsError as error:  # names the option itself, or its value alone
            raise type(error)(error.what if error.what.startswith("`") else f"{flag} {error.what}", error.hint) from None
    if option.choices:
        check_choice(flag, given, option.choices)
        return kind(given)
    return given


# --- options that mean the same everywhere --------------------------------------------------------------------------


def _show_all(context: typer.Context, asked: bool) -> None:
    if asked:
        context.meta["help_all"] = True
        typer.echo(context.get_help())
        raise typer.Exit


_HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", help="Show every option.", is_eager=True, callback=_show_all, rich_help_panel="Terminal", show_default=False
    ),
]


@dataclass(frozen=True)
class Show:
    """How a result is shown, and what else is printed."""

    json: bool = setting(False, "Print one JSON document on stdout.", "Terminal")
    quiet: bool = setting(False, "Print only results, warnings and errors.", "Terminal", flag="-q --quiet")
    verbose: bool = setting(False, "Print more notes.", "Terminal", flag="-v --verbose")

    def __post_init__(self) -> None:
        console.be_quiet(self.quiet)

    @property
    def report(self) -> console.ConsoleReporter:
        """The reporter that -q and -v ask for."""
        return console.ConsoleReporter(quiet=self.quiet, verbose=self.verbose)


@dataclass(frozen=True)
class Downloads:
    """Whether downloads are agreed to."""

    yes: bool = setting(False, "Agree to downloads.", "Terminal")

    def consent(self, files: Sequence[RemoteFile], total_bytes: int) -> bool:
        """Agree because of --yes, or by asking on a terminal after printing the size; never otherwise."""
        if not self.yes and not console.is_interactive():
            return False
        if not total_bytes:  # the list of a repository's files, of which the download is asked for next
            return True
        for file in files:
            console.note(f"{file.label}: {file.filename} from {file.repo}, licence {file.licence}")
        if self.yes:
            console.note(f"downloading {human_bytes(total_bytes)}")
            return True
        if not console.confirm(f"Download {human_bytes(total_bytes)}?"):
            raise MissingWeightsError(
                f"nothing was downloaded, as you chose; this needs {', '.join(dict.fromkeys(file.label for file in files))}",
                "run it again and answer y, or add `yes=True`",
            )
        return True


@dataclass(frozen=True)
class ModelChoice(Downloads):
    """Which student, and which teacher it belongs to."""

    model: str | None = setting(
        None, "Name, run folder, model folder, weight file or hub id.", "Model", complete=complete_model, shown=DEFAULT_MODEL
    )
    teacher: str | None = setting(None, "Teacher of --model, if that does not name it.", "Model", complete=complete_teacher)
    family: str | None = setting(
        None,
        "Family of a weight file given as --model, if its keys cannot tell.",
        "Measuring in detail",
        complete=complete_family,
    )
    config: str | None = setting(None, "JSON config of a weight file given as --model.", "Model", metavar="FILE")

    @property
    def name(self) -> str:
        """The model that was named, or the embedded pair, with a note that names it."""
        return named_model(self.model)

    def load(self, **options: Any) -> "Pair":
        """Load the student, and its teacher unless `with_teacher` is False; `options` are those of load_pair."""
        from turbovaed_cli.models.pair import load_pair

        return load_pair(self.name, self.teacher, family=self.family, config=self.config, consent=self.consent, **options)


@dataclass(frozen=True)
class Against:
    """Decoders that are put beside that of --model."""

    against: tuple[str, ...] = setting(
        (), "More decoders of the same latents; FAMILY:M names a family.", "Measuring in detail", metavar="MODEL", many=True,
        by_commas=False, complete=complete_model,
    )  # fmt: skip

    def with_more(self, more: Sequence[str] | None) -> tuple[str, ...]:
        """Return the models of --against, with those that follow its last one. Raises SettingsError for models without it."""
        if more and not self.against:
            raise SettingsError(f"unexpected: {' '.join(more)}", f"--against {more[0]} for a decoder beside that of --model")
        return (*self.against, *(more or ()))


MoreModels = Annotated[
    list[str] | None, typer.Argument(metavar="MODEL", help="Further models of --against.", rich_help_panel="Measuring in detail")
]


@dataclass(frozen=True)
class ComparedModel(ModelChoice):
    """The same, with what the teacher's decoder is given when it is compared with the student."""

    decode_timestep: float | None = same(ClipSettings, "decode_timestep")

    def load(self, **options: Any) -> "Pair":
        """Load as ModelChoice does, with this timestep of the teacher's decoder."""
        return super().load(decode_timestep=self.decode_timestep, **options)


def named_model(model: str | None) -> str:
    """The model that was named, or the embedded pair, with a note that names it."""
    if model is not None and hides_cached(model):
        console.note(f"{model} is the folder here, not the repository of that name in the hub's cache")
    if model is None:
        console.note(f"`model` not given: using the embedded pair, {DEFAULT_MODEL}")
    return model or DEFAULT_MODEL


@dataclass(frozen=True)
class DesignBudget:
    """What a student that is designed may cost."""

    params: int | None = setting(
        None, "Design the student: parameters at most, such as 8M or 800k.", "Student", metavar="COUNT", parse=parse_count
    )
    gflops: float | None = setting(None, "Design the student: GFLOPs at most for one decode of a clip.", "Student")


@dataclass(frozen=True)
class TeacherChoice:
    """Which teacher students learn from."""

    teacher: str = setting(
        DEFAULT_MODEL, "Registry name, diffusers VAE folder, or hub id.", "Input and output", complete=complete_teacher
    )


Json = Annotated[bool, field_option(Show, "json")]
Quiet = Annotated[bool, field_option(Show, "quiet")]
Overwrite = Annotated[bool, field_option(ExportSettings, "overwrite")]
Name = Annotated[
    str, typer.Argument(help="Registry name, alias, VAE folder, or hub id.", autocompletion=complete_teacher, show_default=False)
]


# --- what commands do before their work -----------------------------------------------------------------------------


def warn_of_old_ffmpeg() -> None:
    """Warn of an ffmpeg that is older than those that were tested."""
    from turbovaed_cli.video.ffmpeg import warning_of_age

    if said := warning_of_age():
        console.warn(said)


def check_file(path: Path | None, name: str, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or that is there already, before any work."""
    if path is None:
        return
    check_place(path, name)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already", "add `overwrite=True` to replace it")


def check_folder(place: str, name: str) -> None:
    """Refuse a local folder in which nothing can be written, before any work."""
    if "://" not in place:
        check_place(Path(place), name, folder=True)


def check_system_for(data: Path | None, what: str) -> None:
    """Refuse to read videos on a system that cannot."""
    if data is not None:
        check_system(what)


def listed(items: Sequence[str] | None) -> tuple[str, ...]:
    """The values of an option that is repeated, or takes several by commas."""
    return tuple(name.strip() for item in items or () for name in item.split(",") if name.strip())
