"""The parts of gpu_first.py that decode: every form of students, in full and lite, whole and streamed, and their teachers.

Each part takes a Machine and yields rows. The shapes that matter most come first, since a part may end early.
"""

import copy
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from decode import matmul_rate
from torch import Tensor, nn
from truncated_features import random_teacher

from turbovaed_cli.latents.caching import encode_clips
from turbovaed_cli.models.gpu_form import FUSED, GRAPHS, LAYOUT, MODULES, decode_on_gpu, form_of
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.registry.cost import cost_of
from turbovaed_cli.registry.find import find_model

Row = dict[str, Any]
TEACHERS = ("ltx", "hunyuan", "wan2.1", "wan2.2")
STREAMED = 2  # latent frames of a piece
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def teachers_of(machine: Any) -> tuple[str, ...]:
    """Teachers of the registry whose students are measured."""
    return ("tiny",) if machine.small else TEACHERS


def students_of(machine: Any) -> list[str]:
    """Their students: all in full, then all in lite."""
    names = teachers_of(machine)
    return [*names, *(f"{name}-lite" for name in names)]


def cases_of(machine: Any) -> list[tuple[str, int, tuple[int, int]]]:
    """Precision, frames and size (height, width) of the clips that are decoded whole."""
    if machine.small:
        cases = [("bf16", 9, (64, 64)), ("fp32", 9, (64, 64))]
    else:
        cases = [("bf16", 17, (512, 512)), ("fp32", 17, (512, 512)), ("bf16", 17, (704, 1280))]
    return [case for case in cases if case[0] in ("fp32", machine.half)]


class Students:
    """The students by name and precision, on the device, each made once; weights are random, those of `tiny` its own."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self._kept: dict[tuple[str, str], Any] = {}

    @torch.inference_mode(False)
    def of(self, name: str, dtype: str) -> Any:
        if (name, "fp32") not in self._kept:
            torch.manual_seed(0)
            spec = find_model(name)
            made = load_student(name) if spec.embedded else build_student(spec.student.config)
            self._kept[name, "fp32"] = nn.Module.to(made.eval().requires_grad_(False), device=self.machine.device)
        if (name, dtype) not in self._kept:
            self._kept[name, dtype] = nn.Module.to(copy.deepcopy(self._kept[name, "fp32"]), dtype=_DTYPES[dtype])
        return self._kept[name, dtype]

    def latents(self, name: str, dtype: str, frames: int, size: tuple[int, int]) -> Tensor:
        frames = find_model(name).teacher.frames.at_most(frames)
        shape = self.of(name, dtype).latent_shape(frames, size)
        made = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
        return made.to(self.machine.device, _DTYPES[dtype])

    def wanted(self, name: str) -> tuple[Tensor, Tensor]:
        """Latents of a small clip, and its video by the fp32 modules on the CPU."""
        latents = self.latents(name, "fp32", 9, (64, 64)).cpu()
        return latents, copy.deepcopy(self.of(name, "fp32")).cpu()(latents)


def forms_of(machine: Any, student: Any) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """The forms of a student by name: each is made when it is called for, in memory that goes with it."""
    on_cuda = machine.device.type == "cuda"
    names = (LAYOUT, FUSED, GRAPHS) if on_cuda else (LAYOUT, FUSED)
    return {MODULES: lambda: student} | {name: lambda name=name: form_of(student, name).decode for name in names}


@cache
def _rate(device: torch.device, dtype: str) -> float:
    return matmul_rate(_DTYPES[dtype], device)


def decodes(machine: Any) -> Iterator[Row]:
    """Whole clips: milliseconds, PSNR to the CPU's fp32, memory, and the share of the rate of a large matrix product."""
    students = Students(machine)
    small = {}
    with torch.inference_mode():
        for dtype in dict.fromkeys(case[0] for case in cases_of(machine)):
            yield {"dtype": dtype, "matmul_tflops": _rate(machine.device, dtype) / 1e12}
        for number, (dtype, frames, size) in enumerate(cases_of(machine)):
            for name in students_of(machine):
                student = students.of(name, dtype)
                if name not in small:
                    small[name] = students.wanted(name)
                latents = students.latents(name, dtype, frames, size)
                about = {"model": name, "dtype": dtype, "frames": student.pixel_frames(latents.shape[2]), "size": list(size)}
                about["gflop"] = _gflop(find_model(name).student.config, latents)
                forms = forms_of(machine, student)
                for form, make in forms.items():
                    yield about | {"form": form} | _measured(machine, make, latents, about, small[name])
                if number == 0:
                    yield about | _automatic(student, latents)
        name, (dtype, frames, size) = students_of(machine)[0], cases_of(machine)[0]
        if machine.device.type == "cuda":  # last: it takes half a minute
            student, latents = students.of(name, dtype), students.latents(name, dtype, frames, size)
            about = {"model": name, "dtype": dtype, "frames": student.pixel_frames(latents.shape[2]), "size": list(size)}
            about["gflop"] = _gflop(find_model(name).student.config, latents)
            make = partial(torch.compile, student, dynamic=False)
            yield about | {"form": "compiled"} | _measured(machine, make, latents, about, small[name])
            yield about | {"form": f"{MODULES}, again"} | _measured(machine, lambda: student, latents, about, small[name])


def _gflop(config: Any, latents: Tensor) -> float:
    return cost_of(config, tuple(latents.shape[2:])).gflops


def _measured(
    machine: Any, make: Callable[[], Callable[[Tensor], Tensor]], latents: Tensor, about: Row, small: tuple[Tensor, Tensor]
) -> Row:
    """Time and memory of one form; an error, such as too little memory, is a result."""
    machine.forget_peak()
    row: Row = {}
    few, wanted = small
    try:
        decode = make()
        began = time.perf_counter()
        decode(latents)
        machine.wait()
        row["first_s"] = time.perf_counter() - began
        row["ms"] = machine.ms(lambda: decode(latents), 5)
        row["frames_per_s"] = 1e3 * about["frames"] / row["ms"]
        row["peak_share"] = about["gflop"] * 1e9 / (row["ms"] / 1e3) / _rate(machine.device, about["dtype"])
        row |= machine.peak_gb()
        error = decode(few.to(latents)).float().cpu() - wanted
        row["psnr_to_cpu_db"] = -10 * torch.log10(error.square().mean() / 4 + 1e-20).item()
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return row


def _automatic(student: Any, latents: Tensor) -> Row:
    """What the trial chooses, and how long it takes."""
    began = time.perf_counter()
    decode_on_gpu(student, latents)
    choice = getattr(student.ready(), "choices", {}).get("whole")
    return {"form": "auto", "chosen": choice and str(choice), "trial_s": time.perf_counter() - began}


def streams(machine: Any) -> Iterator[Row]:
    """A long clip in pieces: milliseconds a frame over all of it, those of a piece in the middle of a longer one, and memory."""
    dtype, frames, size = (machine.half, 17, (64, 64)) if machine.small else (machine.half, 121, (704, 1280))
    students = Students(machine)
    with torch.inference_mode():
        for name in students_of(machine):
            student = students.of(name, dtype)
            latents = students.latents(name, dtype, frames, size)
            for form in [form for form in forms_of(machine, student) if form != MODULES]:  # modules do not stream
                machine.forget_peak()
                row: Row = {"model": name, "dtype": dtype, "frames": frames, "size": list(size), "form": form}
                try:
                    stream = StreamingDecoder(form_of(student, form))
                    pieces = latents.split(STREAMED, dim=2)
                    machine.wait()
                    began = time.perf_counter()
                    made = sum(video.shape[2] for video in stream.decode(iter(pieces)))
                    machine.wait()
                    row["ms_per_frame"] = 1e3 * (time.perf_counter() - began) / made
                    row |= machine.peak_gb()
                    lag = -(-stream.lookahead_frames // (int(student.temporal_compression_ratio) * STREAMED))
                    for _ in range(lag + 3):
                        made = stream.push(pieces[0]).shape[2]
                    row["steady_ms_per_frame"] = machine.ms(lambda s=stream, p=pieces[0]: s.push(p), 4) / made
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                stream = None
                yield row


def teachers(machine: Any) -> Iterator[Row]:
    """The teachers: their decode beside the students', and their encode as `cache-latents` calls it."""
    for name in teachers_of(machine):
        spec = find_model(name)
        torch.manual_seed(0)
        teacher = random_teacher(spec).to(machine.device)
        frames, side = (spec.teacher.frames.at_least(3), 64) if machine.small else (spec.teacher.frames.at_most(17), 256)
        for clips in (1, 4):
            batch = [torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8).numpy() for _ in range(clips)]
            machine.forget_peak()
            row: Row = {
                "model": name,
                "part_of": "encode",
                "dtype": "fp32",
                "clips": clips,
                "frames": frames,
                "size": [side, side],
            }
            yield row | _timed(machine, lambda t=teacher, b=batch: encode_clips(t, b)) | machine.peak_gb()
        for dtype, frames, size in sorted(cases_of(machine), reverse=True):  # fp32 first: bf16 rounds the weights
            teacher.vae.to(_DTYPES[dtype])
            shape = (spec.teacher.latent_channels, spec.teacher.latent_frames(spec.teacher.frames.at_most(frames)))
            latents = torch.randn(1, *shape, *(pixels // spec.teacher.space_ratio for pixels in size), device=machine.device)
            latents = latents.to(_DTYPES[dtype])
            machine.forget_peak()
            row = {
                "model": name,
                "part_of": "decode",
                "dtype": dtype,
                "frames": spec.teacher.frames.at_most(frames),
                "size": list(size),
            }
            yield row | _timed(machine, lambda t=teacher, x=latents: t.decode(x)) | machine.peak_gb()
        del teacher
        machine.forget_peak()


def _timed(machine: Any, call: Callable[[], object]) -> Row:
    try:
        return {"ms": machine.ms(call, 2)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
