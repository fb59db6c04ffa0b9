"""The types that describe a format: a graph to write, the row of a format, and the contents of a written artefact."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.reporting import hushed


@dataclass(frozen=True)
class Graph:
    """A graph to write: a module, an example of each input by name (int32 or fp32), in order, and the names of its outputs."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ("video",)
    stateful: bool = False  # its buffers keep their values between two runs
    any_size: bool = True  # whether a whole-clip graph may be traced for other frame counts and sizes than its inputs'

    @property
    def whole_clip(self) -> bool:
        """Whether the graph decodes whole clips, from latents alone; if not, it decodes one chunk of a clip."""
        return len(self.inputs) == 1


@dataclass(frozen=True)
class Anatomy:
    """The contents of a written artefact."""

    operators: Counter[str]  # by type, as the format names them
    num_conv3d: int
    max_rank: int | None = None  # None if the file does not record it
    functions: list[str] = field(default_factory=list)  # if one file holds several


@dataclass(frozen=True)
class Exporter:
    """The row of one format.

    `write(graphs, path, precision, metadata, calibration)` writes one graph, or several of different sizes if `multisize`.
    `load(path, graph)` returns a function that runs the written artefact, as far as this machine can; `verified_by()`
    describes that run. `load` is None for a format that nothing here can run: its artefacts are converted only.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]  # the first one is the default
    write: Callable[[Sequence[Graph], Path, str, Mapping[str, str], Sequence[Tensor]], None]
    load: Callable[[Path, Graph], Decode] | None
    verified_by: Callable[[], str]
    anatomy: Callable[[Path], Anatomy]
    dynamic: bool = False  # one artefact takes other frame counts and sizes than it was made with
    multisize: bool = False  # one artefact may hold graphs of several sizes
    stateful: bool = False  # can hold a graph's state
    is_package: bool = False  # its artefact is a folder
    is_graph: bool = True  # otherwise the student's weights: no export form, no chunks
    calibrated: tuple[str, ...] = ()  # precisions whose scales are measured, on real latents
    first_non_finite: Callable[[Path, Graph], str | None] = lambda _path, _graph: None
    layouts: tuple[str, ...] = ("4d-cat", "4d-sum", "5d")  # that its runtime takes
    needs: tuple[str, ...] = ()  # packages that only the extra installs
    extra: str = ""
    stem: str = "student"  # the name of its artefact in a folder, without what tells artefacts of one export apart

    def check_installed(self) -> None:
        """Raise UnavailableError if a package that the format needs is not installed."""
        for package in self.needs:
            if find_spec(package) is None:
                raise UnavailableError(
                    f"{self.name} needs {package}, which is not installed", f"pip install 'turbovaed[{self.extra}]'"
                )


def quietly(module: str) -> Any:
    """Import a module of a converter without its output; many of them print while they load."""
    with hushed():
        return import_module(module)


def size_mb(path: Path) -> float:
    """Return the size of a file, or of all files of a folder, in megabytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def num_conv3d(weights: Sequence[Any]) -> int:
    """Return how many of these shapes of convolution weights have rank 5."""
    return sum(len(shape) == 5 for shape in weights)
