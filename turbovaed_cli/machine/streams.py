"""stdin, stdout and stderr of a process: open even if the caller closed them, and never the reason why a command fails."""

import codecs
import io
import os
import select
import sys
from typing import Any, TextIO

# What an ASCII or Latin-1 stream gets for characters that our own texts use.
_SIMPLER = {"±": "+-", "×": "x", "–": "-", "…": "...", "→": "->"}
_ERRORS = "turbovaed"  # of codecs: the name of _replaced


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: by a similar character, else by an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters), error.end


codecs.register_error(_ERRORS, _replaced)


def reserve_descriptors() -> None:
    """Open the null device on each of 0, 1 and 2 that is closed.

    Otherwise the next file that is opened gets that number, and a child process uses it as its stdin, stdout or stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


class _LastingFile(io.FileIO):
    """A descriptor that accepts all writes: after the first error, which is kept, the data is dropped."""

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        while self.failed is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failed = error
            else:
                if written is not None:
                    return written
                select.select([], [self.fileno()], [])  # a pipe that does not block is full
        return len(data)


def open_standard_streams() -> None:
    """Make sys.stdin, sys.stdout and sys.stderr of this process usable and lasting; streams that were replaced stay.

    A reader that has gone, a full disk or an encoding without some character raises nothing in the middle of a command:
    `lost_output` returns the error afterwards.
    """
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None and (stream is not getattr(sys, f"__{name}__") or isinstance(_raw(stream), _LastingFile)):
            continue  # a test's, a notebook's, or done already
        if isinstance(stream, io.TextIOWrapper) and os.name == "nt" and stream.isatty():
            stream.reconfigure(errors=_ERRORS)  # the Windows console takes no bytes
            continue
        if stream is not None:
            stream.flush()
        raw = _LastingFile(number, "wb", closefd=False)
        lines = name == "stderr" or raw.isatty()
        encoding = "utf-8" if stream is None else stream.encoding
        lasting = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors=_ERRORS, line_buffering=lines)
        setattr(sys, name, lasting)
        setattr(sys, f"__{name}__", lasting)


def _raw(stream: object) -> object:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def lost_output() -> OSError | None:
    """Return the error that cut stdout short; None if all was written, or if its reader closed the pipe."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    failed = raw.failed if isinstance(raw, _LastingFile) else None
    return None if isinstance(failed, BrokenPipeError) else failed


def fitting(text: str, stream: TextIO) -> str:
    """Return the text as `stream` can show it: characters that its encoding lacks are replaced."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, _ERRORS).decode(encoding) if not is_utf8(stream) else text


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream can show every character."""
    return (stream.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
