"""How a command ends: errors as two lines, signals, exit codes, and inputs that were skipped."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.options import Command, spread
from turbovaed_cli.errors import InterruptedRunError, TurboVaedError, UnwritableError
from turbovaed_cli.files.places import UNWRITABLE
from turbovaed_cli.machine.signals import signals_handled_by


class _TerminatedError(BaseException):
    """SIGTERM, as an exception, so that half-written things are cleaned up on the way out."""


@contextmanager
def _signals_as_exceptions() -> Iterator[list[int]]:
    """Collect the signals that came: what is raised for one inside of a library's native code may come out as something else."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _TerminatedError

    with signals_handled_by(handle):
        yield received


# What is left of a command that did not come to its end, by function. `distill` has its own words after a checkpoint.
NOTHING_WRITTEN = "nothing was written; run it again"
LOST_OUTPUT = "files that it names are whole; run it again for what it prints"
GOES_ON = "what was finished is kept; the same command goes on"
LEFT_BY = {
    "cache_latents": GOES_ON,
    "distill": GOES_ON,
    "models_pull": GOES_ON,
    "push": "the repository is unchanged; files that were sent whole are not sent again",
    "export": "what export.json lists is whole, nothing else was written; run it again for the rest",
}
# What takes less memory, by function: the options that help there.
LESS_MEMORY = {
    "cache_latents": "less memory: --memory 4GB (frames in tiles), --batch-size 1, a smaller --size or --frames, or --device cpu",
    "distill": "less memory: --crop, --gradient-checkpointing, a smaller --batch-size, --dtype bf16, --perceptual ssim",
    "reconstruct": "less memory: --memory 4GB (smaller pieces), --dtype bf16, --window 17 with --compare, or --device cpu",
    "evaluate": "less memory: --memory 4GB (frames in tiles), a smaller --size or --frames, --dtype bf16, or --device cpu",
    "export": "less memory: a smaller --size or --frames, or one --format at a time",
    "bench": "less memory: a smaller --size or --frames, --dtype bf16, --no-teacher, or --device cpu",
}


def command(function: Command) -> Command:
    """Make a command of a function: options of its settings, and its errors and signals as two lines and an exit code.

    ~ is expanded in what was given.
    """
    spread_out = spread(function)

    @functools.wraps(spread_out)
    def run(**given: Any) -> None:
        with _signals_as_exceptions() as received:
            try:
                spread_out(**{name: _expanded(value) for name, value in given.items()})
            except typer.Exit:  # a RuntimeError by birth
                raise
            except BaseException as error:
                code = _print_end(error, received, function.__name__)
                if code is None or (os.environ.get("TURBOVAED_DEBUG") and code not in (130, 143)):
                    raise
                raise typer.Exit(code) from None

    return run  # type: ignore[return-value]


def _expanded(value: Any) -> Any:
    """The value of an option with ~ and ~user replaced, which shells leave alone in --data=~/videos."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))  # noqa: PTH111 - which leaves an unknown user's alone
    return value


def _out_of_memory(error: BaseException) -> str:
    """The words for an error that means too little memory; "" for others."""
    if "torch" not in sys.modules:  # too early for all other errors of that kind
        return "out of memory" if isinstance(error, MemoryError) else ""
    from turbovaed_cli.machine.devices import is_out_of_memory, out_of_memory_in_words

    return out_of_memory_in_words(error) if is_out_of_memory(error) else ""


def _print_end(error: BaseException, received: Sequence[int], name: str) -> int | None:
    """Print what ended the command of the function `name`, and what is left of it; return its exit code, None for a mistake of ours."""
    left = LEFT_BY.get(name, NOTHING_WRITTEN)
    if isinstance(error, TurboVaedError) and (not received or isinstance(error, InterruptedRunError)):
        console.print_error(error)
        return error.exit_code
    if received or isinstance(error, KeyboardInterrupt):
        number = received[0] if received else signal.SIGINT
        what = "interrupted" if number == signal.SIGINT else "terminated"
        console.print_error(TurboVaedError(what, left))
        return 128 + number
    if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is not None:
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else error.filename
        what = f"cannot read or write {where}: {UNWRITABLE[error.errno]}"
        console.print_error(TurboVaedError(what, "give another place, such as with --out, --report or --run"))
        return UnwritableError.exit_code
    if what := _out_of_memory(error):
        console.print_error(TurboVaedError(what, LESS_MEMORY.get(name, "close other programs, or take a smaller input")))
        return 1
    if isinstance(error, RuntimeError | OSError | UnicodeError):  # of a file name that is no text, UnicodeError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "TURBOVAED_DEBUG=1 shows where; please report it"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            hint = f"free some space; {left}"
        elif lines[0].startswith("[Errno 2] No usable temporary directory"):  # tempfile's words
            hint = "set TMPDIR to a folder that can be written"
        console.print_error(TurboVaedError(lines[0], hint))
        return 1
    return None


def finish(skipped: list[Any], check: Callable[[], None] = lambda: None) -> None:
    """Name what was skipped, whatever `check` then raises, and end with 5 if anything was."""
    for item in skipped:
        console.warn(f"skipped: {item.path}: {item.reason_alone}")
    check()
    if skipped:
        raise typer.Exit(5)
