"""Which commands there are, and `main`. Verbs are imported inside the commands' bodies, so that help is quick."""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from turbovaed_cli.cli import bench, cache_latents, console, distill, env, export, models, push, reconstruct, runs
from turbovaed_cli.cli import eval as evaluation
from turbovaed_cli.cli.exits import LOST_OUTPUT, command
from turbovaed_cli.cli.help import HelpfulCommand, HelpfulGroup
from turbovaed_cli.errors import SettingsError, TurboVaedError
from turbovaed_cli.machine.launch import end_process, end_with_launcher, is_beside_another
from turbovaed_cli.machine.streams import lost_output, open_standard_streams

EXAMPLES = """\
turbovaed reconstruct in.mp4 --compare
turbovaed distill --teacher ltx --data videos
turbovaed help distill"""
# Help is plain text: `[[stages]]` is no markup.
app = typer.Typer(
    cls=HelpfulGroup,
    epilog=EXAMPLES,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(
    cls=HelpfulGroup,
    help="The registry: list it, show a row, pull its weights.",
    epilog=models.EXAMPLES,
    invoke_without_command=True,
)


@command
def root(
    *,
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Distil the VAE decoders of video diffusion models into small ones that run anywhere, and use them."""
    if version:
        env.show_version_as(json=json)
        raise typer.Exit
    if json:
        raise SettingsError("--json is an option of commands", "write it after the command, as in: turbovaed models --json")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(SettingsError.exit_code)


def show_help(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="A command, such as distill or models show.")
    ] = None,
) -> None:
    """Show the help of a command, as its --help does."""
    app([*(names or ()), "--help"], prog_name="turbovaed", standalone_mode=False)


COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("cache-latents", cache_latents.cache_latents, cache_latents.EXAMPLES),
    ("distill", distill.distill, distill.EXAMPLES),
    ("reconstruct", reconstruct.reconstruct, reconstruct.EXAMPLES),
    ("eval", evaluation.evaluate, evaluation.EXAMPLES),
    ("export", export.export, export.EXAMPLES),
    ("bench", bench.bench, bench.EXAMPLES),
    ("push", push.push, push.EXAMPLES),
    ("runs", runs.runs, runs.EXAMPLES),
    ("env", env.env, env.EXAMPLES),
    ("help", show_help, "turbovaed help\nturbovaed help distill\nturbovaed help models show"),
    ("version", env.show_version, "turbovaed version\nturbovaed -V\nturbovaed version --json"),
)
app.callback()(root)
app.add_typer(models_app, name="models")
models_app.callback()(models.models_root)
for group, commands in ((app, COMMANDS), (models_app, models.COMMANDS)):
    for name, function, examples in commands:
        group.command(name, cls=HelpfulCommand, epilog=examples)(function)


# Loggers that warn on stderr when diffusers looks at a torchao that is too old, such as the one that litert brings.
_CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def main() -> None:
    """The `turbovaed` executable: the app, with its usage errors in our two lines."""
    open_standard_streams()
    # torch's words about an NVIDIA driver that is too old, which any import may bring up: --device has ours (gpus.py).
    warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
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
