"""The types of a target: each is a list of variants that decode the same latents in one process."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.settings import BenchSettings


class Running(Protocol):
    """A loaded network that decodes."""

    def once(self, latents: Tensor) -> float:
        """Decode; milliseconds."""
        ...

    def video(self, latents: Tensor) -> Tensor:
        """Decode; (1, 3, T, H, W), on the CPU in fp32."""
        ...

    def told(self, latents: Tensor) -> Mapping[str, Any]:
        """What the runtime says of itself, asked after the timing: operators by compute unit, speedups in use."""
        ...


@dataclass(frozen=True)
class Called:
    """A decoder that is a function, timed from outside; `wait` is for what its device has not finished."""

    decode: Callable[[Tensor], Tensor]
    wait: Callable[[], None] = lambda: None
    about: Mapping[str, Any] = field(default_factory=dict)

    def once(self, latents: Tensor) -> float:
        began = time.perf_counter()
        self.decode(latents)
        self.wait()
        return (time.perf_counter() - began) * 1e3

    def video(self, latents: Tensor) -> Tensor:
        return self.decode(latents).float().cpu()

    def told(self, latents: Tensor) -> Mapping[str, Any]:
        return self.about


@dataclass(frozen=True)
class Variant:
    """One way to decode on a target; `load` makes it ready, or raises TurboVaedError where this machine cannot."""

    network: str  # STUDENT, MODULES, LAYOUT, COMPILED or TEACHER
    runtime: str  # with its version
    unit: str  # what computes: CPU, CUDA, CPU and Neural Engine
    precision: str
    load: Callable[[], Running]
    layout: str = ""  # of the exported graph
    size_mb: float | None = None  # of the artefact
    remarks: Sequence[str] = ()
    in_process: bool = True  # what it holds is this process's, so that a process of its own can tell its peak


# MODULES: its modules one by one, as published. LAYOUT: channels innermost in memory, as `reconstruct` decodes on a GPU.
STUDENT, MODULES, LAYOUT = "student", "student, plain", "student, channels last"
COMPILED, TEACHER = "student, compiled", "teacher"


@dataclass(frozen=True)
class Exported:
    """What of an artefact its target needs."""

    path: Path
    size_mb: float
    status: str
    psnr_db: float | None
    operators: Mapping[str, int] = field(default_factory=dict)
    gmacs: float = 0.0


@dataclass(frozen=True)
class Work:
    """What the variants of a target are made of."""

    settings: BenchSettings
    precisions: tuple[str, ...]  # those asked for that the target has
    student: Callable[[str], StudentDecoder]  # in a precision, on the device: loaded anew
    teacher: Callable[[str], Teacher]
    exported: Callable[[str, str, str], Exported]  # format, precision, layout: written once, checked
    with_teacher: bool
    threads: int

    def artifacts(self, name: str) -> Iterator[tuple[str, str, Exported]]:
        """(precision, layout, artefact) of each that was asked for of a format."""
        for precision in self.precisions:
            for layout in self.settings.layouts:
                yield precision, layout, self.exported(name, precision, layout)


@dataclass(frozen=True)
class Target:
    """A row of the table."""

    name: str
    precisions: tuple[str, ...]  # the first one is its own
    variants: Callable[[Work], list[Variant]]

    def chosen(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Those of the precisions `asked` for that it has; its own where none was asked for."""
        return tuple(name for name in asked if name in self.precisions) or self.precisions[:1]


def not_here(what: str, hint: str | None = None) -> Callable[[], Running]:
    """The `load` of a variant that cannot run on this machine."""

    def load() -> Running:
        raise UnavailableError(what, hint)

    return load
