"""The types of a target. Each target is a list of variants that decode the same latents in one process."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.settings import BenchSettings


class Running(Protocol):
    """A loaded network that decodes."""

    def once(self, latents: Tensor) -> float:
        """Decode `latents` (1, C, t, h, w) once and return the milliseconds it took."""
        ...

    def video(self, latents: Tensor) -> Tensor:
        """Decode `latents` (1, C, t, h, w) to video (1, 3, T, H, W), on the CPU in fp32."""
        ...

    def told(self, latents: Tensor) -> Mapping[str, Any]:
        """Return what the runtime reports after the timing, such as operators by compute unit or the speedups in use."""
        ...


@dataclass(frozen=True)
class Called:
    """A decoder that is a function, timed from outside; `wait` waits until its device has finished."""

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
    """One way to decode on a target; `load` makes it ready, or raises TurboVaedError if this machine cannot run it."""

    network: str  # STUDENT, MODULES, LAYOUT, FUSED, GRAPHS, COMPILED or TEACHER; the name of a decoder beside the student
    runtime: str  # with its version
    unit: str  # the hardware that computes: CPU, CUDA, CPU and Neural Engine
    precision: str
    load: Callable[[], Running]
    layout: str = ""  # of the exported graph
    size_mb: float | None = None  # of the artefact
    remarks: Sequence[str] = ()
    is_beside: bool = False  # whether it is of a decoder beside the student
    in_process: bool = True  # whether its memory is that of this process, so that a separate process can measure its peak


# MODULES: the student's modules one by one, as published. LAYOUT: channels last in memory, as `reconstruct` decodes on a GPU.
# FUSED and GRAPHS: the further forms of a CUDA device (models/gpu_form.py).
STUDENT, MODULES, LAYOUT = "student", "student, plain", "student, channels last"
FUSED, GRAPHS = "student, fused kernel", "student, CUDA graph"
COMPILED, TEACHER = "student, compiled", "teacher"


@dataclass(frozen=True)
class Exported:
    """The facts about an artefact that its target needs."""

    path: Path
    size_mb: float
    status: str
    psnr_db: float | None
    operators: Mapping[str, int] = field(default_factory=dict)
    gmacs: float = 0.0


@dataclass(frozen=True)
class Work:
    """The inputs from which a target makes its variants."""

    settings: BenchSettings
    precisions: tuple[str, ...]  # the requested ones that the target has
    student: Callable[[str], Decoder]  # loads it anew in a precision, on the device
    teacher: Callable[[str], Teacher]
    exported: Callable[[str, str, str], Exported]  # format, precision, layout: written once, checked
    with_teacher: bool
    threads: int
    network: str = STUDENT  # the name of its rows; another one is that of a decoder beside the student
    of_student: bool = True  # whether the decoder is a student, which has forms of its own

    def artifacts(self, name: str) -> Iterator[tuple[str, str, Exported]]:
        """Yield (precision, layout, artefact) for each requested artefact of a format; layouts are those of a student."""
        for precision in self.precisions:
            for layout in self.settings.layouts if self.of_student else ("",):
                yield precision, layout, self.exported(name, precision, layout)


@dataclass(frozen=True)
class Target:
    """A row of the table."""

    name: str
    precisions: tuple[str, ...]  # the first one is the default
    variants: Callable[[Work], list[Variant]]

    def chosen(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Return the precisions of `asked` that the target has; its default if there are none."""
        return tuple(name for name in asked if name in self.precisions) or self.precisions[:1]


def not_here(what: str, hint: str | None = None) -> Callable[[], Running]:
    """Return the `load` of a variant that cannot run on this machine; it raises UnavailableError."""

    def load() -> Running:
        raise UnavailableError(what, hint)

    return load
