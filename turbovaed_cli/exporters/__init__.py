"""Formats a student can be written in: one row each. Conversion libraries are imported only when used."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from turbovaed_cli.models.chunks import Decode


@dataclass(frozen=True)
class Graph:
    """What is written: a module, an example of each input by name (int32 or fp32), in its order, and the names of its outputs."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ("video",)

    @property
    def whole_clip(self) -> bool:
        """Latents in, video out; otherwise one chunk of a clip."""
        return len(self.inputs) == 1


@dataclass(frozen=True)
class Anatomy:
    """What is inside a written artefact."""

    operators: Counter[str]  # by type, as the format names them
    num_conv3d: int
    max_rank: int | None = None  # None where the file does not tell
    functions: list[str] = field(default_factory=list)  # where one file holds several


@dataclass(frozen=True)
class Exporter:
    """One format.

    `write(graphs, path, precision, metadata, calibration)` writes one graph, or several of other sizes where `multisize`;
    `load(path, graph)` makes a function that runs the written artefact, as far as this machine can; `verified_by` says in
    words what that run is.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]  # the first one is the format's own
    write: Callable[[Sequence[Graph], Path, str, Mapping[str, str], Sequence[Tensor]], None]
    load: Callable[[Path, Graph], Decode]
    verified_by: Callable[[], str]
    anatomy: Callable[[Path], Anatomy]
    dynamic: bool = False  # one artefact takes other frame counts and sizes than it was made with
    multisize: bool = False  # one artefact may hold graphs of several sizes
    is_graph: bool = True  # otherwise the student's weights: no export form, no chunks
    calibrated: tuple[str, ...] = ()  # precisions whose scales are measured, on real latents
    first_non_finite: Callable[[Path, Graph], str | None] = lambda _path, _graph: None


def exporters() -> dict[str, Exporter]:
    """The table, by name."""
    from turbovaed_cli.exporters import coreml, onnx, torch_files  # noqa: PLC0415 - they import this module's types

    return {row.name: row for row in (onnx.EXPORTER, coreml.EXPORTER, *torch_files.EXPORTERS)}


@contextmanager
def hushed() -> Iterator[None]:
    """Keep converters' own bars, warnings and chatter off the terminal, that of native code too; errors pass as exceptions."""
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
    """Point the file descriptors of stdout and stderr nowhere for a while."""
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


def size_mb(path: Path) -> float:
    """Size of a file, or of all files of a folder, in megabytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def num_conv3d(weights: Sequence[Any]) -> int:
    """How many of the shapes of convolutions' weights are of rank 5."""
    return sum(len(shape) == 5 for shape in weights)
