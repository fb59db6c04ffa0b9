"""The form in which a student decodes on a CUDA device: chosen by a short trial there, once for each student and shape.

The forms give the same video within rounding. Which one is the fastest depends on the device, the student, the precision and
the shape, so a few decodes of each are timed. A form that fails, or whose video differs, is left out. The result is kept in
memory and in the cache folder. TURBOVAED_GPU_FORM names a form, and then nothing is tried.
"""

import functools
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.files.documents import fits
from turbovaed_cli.files.remote import cache_home
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import write_json
from turbovaed_cli.machine.devices import check_compiler, empty_cache, wait_for
from turbovaed_cli.models.gpu_graphs import FusedDecoder, GraphDecoder
from turbovaed_cli.models.kernels import LAYOUT_ALONE, Speedups
from turbovaed_cli.models.network import StudentNetwork
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder, fast_form
from turbovaed_cli.version import __version__

VARIABLE = "TURBOVAED_GPU_FORM"
MODULES, LAYOUT, FUSED, GRAPHS, COMPILED = "modules", "channels-last", "fused", "graphs", "compiled"
FORMS = (MODULES, LAYOUT, FUSED, GRAPHS, COMPILED)
TRIED = (MODULES, LAYOUT, FUSED, GRAPHS)  # compiling takes longer than a trial may
_TIMED, _ENOUGH_S = 3, 1.0  # decodes of each form that are timed; after this many seconds, no further one
_CLEARLY = 0.97  # of the time of the fastest form before it: what a later form takes at most to be chosen

Ready = Callable[[], Callable[[], Tensor]]  # makes a form ready, and returns a decode with it


@dataclass(frozen=True)
class Choice:
    """The form that a trial chose."""

    form: str
    ms: Mapping[str, float]  # of a decode by each form that was not left out
    notes: Sequence[str] = ()  # why others were left out

    def __str__(self) -> str:
        """Return the form and the times, as `bench` prints them."""
        times = ", ".join(f"{form} {ms:.2f} ms" for form, ms in self.ms.items())
        return "; ".join([f"{self.form}" + (f" ({times})" if times else ""), *self.notes])


def asked_form() -> str:
    """Return the form that TURBOVAED_GPU_FORM names, or "auto". Raises SettingsError for another value."""
    name = os.environ.get(VARIABLE) or "auto"
    check_choice(VARIABLE, name, ("auto", *FORMS))
    return name


def can_choose(device: torch.device, latents: Tensor) -> bool:
    """Whether decodes on `device` can be timed: on CUDA, with tensors that have contents and no one who counts operations."""
    if device.type != "cuda" or type(latents) is not Tensor or is_in_torch_dispatch_mode():  # a fake one is a subclass
        return False
    is_plain = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cuda")
    return is_plain and not torch.cuda.is_current_stream_capturing()


def form_of(student: StudentNetwork, name: str, dtype: torch.dtype | None = None) -> FastDecoder:
    """Return the form `channels-last`, `fused` or `graphs` of a student's weights."""
    made_by = {LAYOUT: FastDecoder, FUSED: FusedDecoder, GRAPHS: GraphDecoder}[name]
    return made_by(student, dtype, LAYOUT_ALONE)


class GpuDecoder(FastDecoder):
    """A student prepared for decoding that takes, on a CUDA device, the fastest form for latents of each shape.

    Elsewhere, and with `decode` of its own, it is a FastDecoder.
    """

    def __init__(self, student: StudentNetwork, dtype: torch.dtype | None = None, speedups: Speedups | None = None) -> None:
        super().__init__(student, dtype, speedups)
        self.choices: dict[str, Choice] = {}  # the last one for a whole clip and for a stream, by "whole" and "stream"
        self._forms: dict[str, FastDecoder] = {}

    def for_pieces(self, latents: Tensor) -> FastDecoder:
        if not can_choose(self.device, latents):
            return self
        forms: dict[str, Ready] = {name: functools.partial(self._stream, name, latents) for name in (LAYOUT, FUSED, GRAPHS)}
        chosen = self._choose("stream", latents, forms)
        return self._form(chosen if chosen in forms else LAYOUT)

    def decode_whole(self, student: StudentNetwork, latents: Tensor) -> Tensor:
        """Decode a clip (B, C, t, h, w), on the device and in its precision, with the fastest form of `student`, whose weights these are."""
        forms: dict[str, Ready] = {MODULES: lambda: lambda: student(latents)}
        for name in (LAYOUT, FUSED, GRAPHS):
            forms[name] = functools.partial(self._whole, name, latents)
        chosen = self._choose("whole", latents, forms)
        if chosen == COMPILED:
            check_compiler(self.device)
            return _compiled_forward()(student, latents)
        if chosen == MODULES:
            return student(latents)
        video = self._form(chosen).decode(latents)
        self._clear()
        return video

    def _form(self, name: str) -> FastDecoder:
        if name not in self._forms:
            self._forms[name] = form_of(self.student, name, self.dtype)
        return self._forms[name]

    def _clear(self) -> None:
        """Give back the memory between decodes: torch's allocator on a GPU reuses it, and other networks need it."""
        for form in self._forms.values():
            form.scratch.clear()

    def _whole(self, name: str, latents: Tensor) -> Callable[[], Tensor]:
        """Return the decode of a clip by a form that has decoded one of its shape."""
        self._clear()
        self._form(name).decode(latents)
        return functools.partial(self._form(name).decode, latents)

    def _stream(self, name: str, latents: Tensor) -> Callable[[], Tensor]:
        """Return the decode of one more piece by a stream in which nothing is new any more."""
        self._clear()
        stream = StreamingDecoder(self._form(name))
        lag = -(-stream.lookahead_frames // (int(self.student.temporal_compression_ratio) * latents.shape[2]))
        for _ in range(lag + 3):  # the frames that are repeated before the first one leave the stages, and a graph is captured
            stream.push(latents)
        return functools.partial(stream.push, latents)

    def _choose(self, what: str, latents: Tensor, forms: Mapping[str, Ready]) -> str:
        if (name := asked_form()) != "auto":
            self.choices[what] = Choice(name, {}, (f"{VARIABLE} names it",))
            return name
        key = self._key(what, latents)
        try:
            choice = _kept(key)
            if choice is None:
                choice = tried(forms, self.device)
                _keep(key, choice)
            self.choices[what] = choice
        finally:  # the weights of the other forms go
            used = {one.form for one in self.choices.values()}
            self._forms = {name: form for name, form in self._forms.items() if name in used}
        return choice.form

    def _key(self, what: str, latents: Tensor) -> dict[str, Any]:
        """Return everything that the choice depends on."""
        cuda = self.device.type == "cuda"
        return {
            "decode": what,
            "shape": list(latents.shape),
            "dtype": str(self.dtype),
            "student": hashlib.sha256(json.dumps(dict(self.student.config), sort_keys=True, default=str).encode()).hexdigest(),
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            "tf32": torch.backends.cudnn.allow_tf32,
            "deterministic": torch.backends.cudnn.deterministic,
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
            "triton": _triton_version(),
            "turbovaed": __version__,
        }


def decode_on_gpu(student: StudentNetwork, latents: Tensor) -> Tensor:
    """Decode a clip (B, C, t, h, w), in the student's precision, by its modules, or on a CUDA device by the fastest form."""
    if can_choose(student.device, latents):
        fast = fast_form(student)
        if isinstance(fast, GpuDecoder):
            return fast.decode_whole(student, latents)
    return cast(Tensor, student(latents))


def tried(forms: Mapping[str, Ready], device: torch.device) -> Choice:
    """Return the fastest of `forms`, which are in the order in which they are preferred at equal times.

    Each is made ready and timed over a few decodes. A form that fails, or whose video differs from that of the first one, is left
    out, with a note. If all fail, the error is that of the first one.
    """
    times: dict[str, float] = {}
    notes: list[str] = []
    wanted: Tensor | None = None
    for name, make in forms.items():
        try:
            decode = make()
            made = decode()
            wanted = made if wanted is None else wanted
            error = relative_error(made, wanted)
            if error <= most_error(made.dtype):
                times[name] = _milliseconds(decode, device)
            else:  # NaN too
                notes.append(f"{name} is left out: its video differs by {error:.1e} of the modules'")
        except Exception as failure:
            notes.append(f"{name} is left out: {type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}")
        decode = made = None  # type: ignore[assignment]
        empty_cache(device)
    if not times:
        next(iter(forms.values()))()()
        raise TurboVaedError("no form of the student decodes on this device", f"{VARIABLE}=modules tries none of the others")
    best, *others = times
    for name in others:
        if times[name] < _CLEARLY * times[best]:
            best = name
    return Choice(best, times, notes)


def relative_error(made: Tensor, wanted: Tensor) -> float:
    """Return the root mean square of the difference of two videos (B, 3, T, H, W), over that of the second one."""
    pairs = [
        ((a - b).square().sum(dtype=torch.float64).item(), b.square().sum(dtype=torch.float64).item())
        for a, b in ((made[:, :, t].float(), wanted[:, :, t].float()) for t in range(wanted.shape[2]))
    ]
    difference, size = (sum(values) for values in zip(*pairs, strict=True))
    return float((difference / size) ** 0.5) if size else float(difference > 0)


def most_error(dtype: torch.dtype) -> float:
    """Return the relative error up to which two forms decode to the same video: rounding, in as many layers as students have."""
    if dtype in (torch.bfloat16, torch.float16):
        return 5e-2
    return 1e-2 if torch.backends.cudnn.allow_tf32 else 1e-3


def _milliseconds(decode: Callable[[], Tensor], device: torch.device) -> float:
    seconds: list[float] = []
    wait_for(device)
    while len(seconds) < _TIMED and sum(seconds) < _ENOUGH_S:
        began = time.perf_counter()
        decode()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


_IN_MEMORY: dict[str, Choice] = {}  # by the hash of the key


def _kept(key: Mapping[str, Any]) -> Choice | None:
    """Return the choice that was made for `key` in this process or an earlier one."""
    path = _path(key)
    if path.name not in _IN_MEMORY:
        with suppress(TurboVaedError, OSError):  # a damaged file: the trial writes it again
            found = read_json(path) if path.is_file() else {}
            if found.get("form") in TRIED and fits(found.get("ms"), dict[str, float]) and fits(found.get("notes"), list[str]):
                _IN_MEMORY[path.name] = Choice(found["form"], found["ms"], found["notes"])
    return _IN_MEMORY.get(path.name)


def _keep(key: Mapping[str, Any], choice: Choice) -> None:
    path = _path(key)
    _IN_MEMORY[path.name] = choice
    if path.parent != Path():
        with suppress(TurboVaedError, OSError):  # a place that cannot be written: the next process tries again
            write_json(path, {**asdict(choice), "key": dict(key)})


def _path(key: Mapping[str, Any]) -> Path:
    """Return the file of a choice in the cache folder; its name alone for a user without a home folder."""
    name = f"gpu-form-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    try:
        return cache_home() / name
    except TurboVaedError:
        return Path(name)


@functools.cache
def _triton_version() -> str | None:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _compiled_forward() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(StudentNetwork.forward, dynamic=False))
