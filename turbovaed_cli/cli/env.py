"""The commands `turbovaed env` and `turbovaed version`."""

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command
from turbovaed_cli.cli.options import Json, Show
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.version import __version__

EXAMPLES = "turbovaed env\nturbovaed env --json\nturbovaed env > bug-report.txt"


@command
def env(*, json: Json = False) -> None:
    """Versions and hardware: a block to paste into a bug report."""
    from turbovaed_cli.machine.devices import environment, resolve_device
    from turbovaed_cli.video.ffmpeg import version as ffmpeg_version

    facts = environment(resolve_device("auto", Show().report)) | {"ffmpeg": ffmpeg_version()}
    if json:
        console.print_json(facts)
        return
    packages = facts.pop("packages")
    rows = [(key, "none" if value is None else str(value)) for key, value in [*facts.items(), *packages.items()]]
    print_table("Environment", ["", ""], rows)


@command
def show_version(*, json: Json = False) -> None:
    """Print the version, as --version does."""
    show_version_as(json=json)


def show_version_as(*, json: bool) -> None:
    """Print the version, as text or as JSON."""
    if json:
        console.print_json({"turbovaed": __version__})
    else:
        typer.echo(f"turbovaed {__version__}")
