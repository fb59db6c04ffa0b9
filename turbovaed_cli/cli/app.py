"""Which commands there are, and `main`. Verbs are imported inside the commands' bodies, so that help is quick."""

import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from turbovaed_cli.cli import console
from turbovaed_cli.cli.bench import bench
from turbovaed_cli.cli.cache_latents import cache_latents
from turbovaed_cli.cli.distill import distill
from turbovaed_cli.cli.env import env, show_version, show_version_as
from turbovaed_cli.cli.eval import evaluate
from turbovaed_cli.cli.exits import LOST_OUTPUT, command
from turbovaed_cli.cli.export import export
from turbovaed_cli.cli.models import models_design, models_list, models_pull, models_root, models_show
from turbovaed_cli.cli.reconstruct import reconstruct
from turbovaed_cli.cli.runs import runs
from turbovaed_cli.errors import SettingsError, TurboVaedError
from turbovaed_cli.machine.launch import end_process, end_with_launcher, is_beside_another
from turbovaed_cli.machine.streams import lost_output, open_standard_streams


class PlainHelp(TyperGroup):
    """A group whose help texts are no rich markup: `[[stages]]` is printed as it is written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for one in (self, *self.commands.values()):
            if one is self or not isinstance(one, PlainHelp):
                one.help = one.help and escape(one.help)
                for param in one.params:
                    if text := getattr(param, "help", None):
                        setattr(param, "help", escape(text))  # noqa: B010 - click's parameters have none in their type


app = typer.Typer(
    cls=PlainHelp,
    help="Distil the VAE decoders of video diffusion models into small ones that run anywhere, and use them.",
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(
    cls=PlainHelp, help="The registry: list it, show a row, pull its weights.", no_args_is_help=False, invoke_without_command=True
)


@command
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Distil the VAE decoders of video diffusion models into small ones that run anywhere, and use them."""
    if version:
        show_version_as(json=json)
        raise typer.Exit
    if json:
        raise SettingsError("--json is an option of commands", "write it after the command, as in: turbovaed models --json")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(SettingsError.exit_code)


def show_help(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="A command, such as distill or models show.")
    ] = None,
) -> None:
    """Show the help of a command, as its --help does."""
    app([*(names or ()), "--help"], prog_name="turbovaed", standalone_mode=False)


app.callback()(root)
app.command("cache-latents")(cache_latents)
app.command("distill")(distill)
app.command("reconstruct")(reconstruct)
app.command("eval")(evaluate)
app.command("export")(export)
app.command("bench")(bench)
app.command("runs")(runs)
app.command("env")(env)
app.command("help")(show_help)
app.command("version")(show_version)
app.add_typer(models_app, name="models")
models_app.callback()(models_root)
models_app.command("list")(models_list)
models_app.command("show")(models_show)
models_app.command("design")(models_design)
models_app.command("pull")(models_pull)


def main() -> None:
    """The `turbovaed` executable: the app, with its usage errors in our two lines."""
    open_standard_streams()
    # torch's words about an NVIDIA driver that is too old, which any import may bring up: --device has ours (gpus.py).
    warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
    if sys.argv[1:2] == ["distill"]:
        end_with_launcher()
        if is_beside_another():
            console.leave_it_to_another()
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:  # before the command began
        code = 130
    except Exception as error:
        # Typer carries its own click, which is not ours to import: its usage errors are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        where = getattr(getattr(error, "ctx", None), "command_path", "turbovaed")
        console.print_error(SettingsError(error.format_message(), f"{where} --help"))
        code = 2
    code = code if isinstance(code, int) else 0
    if (lost := lost_output()) is not None:
        console.print_error(TurboVaedError(f"stdout could not be written: {(lost.strerror or str(lost)).lower()}", LOST_OUTPUT))
        code = code or TurboVaedError.exit_code
    end_process(code)
