"""How long-running library functions report to their caller: they print nothing themselves, and silence other libraries."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Reporter(Protocol):
    """Receives progress and notes. `console.py` draws them; `quiet` drops them; a notebook may bring its own."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        """Yield `items` unchanged while showing how many of `total` are done; `start` were done before."""
        ...

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        """Report a sentence, figures by name (shown next to the current progress), or both.

        A `warning` should be shown even if nothing else is.
        """
        ...


class _Quiet:
    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        yield from items

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        pass


class WarningsOf(_Quiet):
    """Passes on only warnings, each with the name of its process: for a process other than the one that reports."""

    def __init__(self, report: Reporter, who: str) -> None:
        self._report, self._who = report, who

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        if warning:
            self._report.note(f"{self._who}: {text}", warning=True)


quiet: Reporter = _Quiet()


@contextmanager
def hushed() -> Iterator[None]:
    """Keep the progress bars, warnings and logs of other libraries, native code included, off the terminal.

    Exceptions pass through.
    """
    names = ("coremltools", "torch.onnx", "onnxscript", "torch.export", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with _native_silence():
                yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _native_silence() -> Iterator[None]:
    """Point the file descriptors of stdout and stderr at the null device inside the context."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    saved = {}
    try:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # a closed one needs no silence
                saved[descriptor] = os.dup(descriptor)
                os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
