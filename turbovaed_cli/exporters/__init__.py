"""Formats a student can be written in: EXPORTERS, one row each. Conversion libraries are imported only when used."""

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass(frozen=True)
class Anatomy:
    """What is inside an artefact: operators by type, and multiply-accumulates of its convolutions for its own shape."""

    operators: Counter[str]
    gmacs: float
    max_rank: int


@dataclass(frozen=True)
class Exporter:
    """One format.

    `write(module, latents, path, precision, metadata)` converts; `run(path, latents)` decodes latents (1, C, t, h, w) with
    the written artefact, as far as this machine can; `verified_by` says in words what that run was.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]
    dynamic: bool  # whether one artefact takes other frame counts and sizes than it was made with
    write: Callable[[nn.Module, Tensor, Path, str, Mapping[str, str]], None]
    run: Callable[[Path, Tensor], Tensor]
    verified_by: Callable[[], str]


def exporters() -> dict[str, Exporter]:
    """The table, by name."""
    from turbovaed_cli.exporters import coreml, onnx  # noqa: PLC0415 - they import this module's types

    return {row.name: row for row in (onnx.EXPORTER, coreml.EXPORTER)}


@contextmanager
def hushed() -> Iterator[None]:
    """Keep converters' own bars, warnings and chatter off the terminal; errors pass as exceptions."""
    names = ("coremltools", "torch.onnx", "onnxscript", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def size_mb(path: Path) -> float:
    """Size of a file, or of all files of a folder, in megabytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
