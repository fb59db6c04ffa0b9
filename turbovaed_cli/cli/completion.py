"""The values that a shell offers while one is typed."""

from collections.abc import Callable
from pathlib import Path

from turbovaed_cli.registry.find import names_of_models
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.setting import Setting
from turbovaed_cli.training.recipes import RECIPES


def completion_of(option: Setting) -> Callable[[str], list[str]] | None:
    """Return what completes an option's value, the last one of several by commas; None if that is not known."""
    if not option.choices and not option.complete:
        return None

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if option.many else ("", "", incomplete)
        names = option.complete(last) if option.complete else option.choices
        return [before + comma + name for name in names if name.startswith(last)]

    return complete


def complete_model(incomplete: str) -> list[str]:
    """Names of the registry, run folders in runs/, and paths."""
    runs = [] if "/" in incomplete else [str(place) for place in Path("runs").glob("*") if RunDir.is_run(place)]
    return complete_teacher(incomplete) + runs


def complete_teacher(incomplete: str) -> list[str]:
    """Names of the registry, of teachers and of their students, and paths."""
    return names_of_models() + _paths(incomplete)


def complete_family(incomplete: str) -> list[str]:
    """Families of decoders."""
    from turbovaed_cli.models.decoders import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes, and TOML files."""
    return [*RECIPES, *(path for path in _paths(incomplete) if path.endswith((".toml", "/")))]


def complete_weights(incomplete: str) -> list[str]:
    """Names that `models pull` takes."""
    from turbovaed_cli.registry.pull import METRIC_WEIGHTS

    return [name for name in (*MODELS, *METRIC_WEIGHTS) if name.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    folder, slash, start = incomplete.rpartition("/")
    if not slash and not start:  # nothing was typed: names are enough
        return []
    try:
        found = sorted(Path(folder + slash or ".").iterdir())
    except OSError:
        return []
    return [f"{folder}{slash}{path.name}" + "/" * path.is_dir() for path in found if path.name.startswith(start)]
