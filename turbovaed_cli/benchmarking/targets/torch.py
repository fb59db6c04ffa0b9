"""torch itself: the student as it decodes here, module by module, and in its other forms; and the teacher's decoder."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from turbovaed_cli.benchmarking.target import (
    COMPILED,
    FUSED,
    GRAPHS,
    LAYOUT,
    MODULES,
    STUDENT,
    TEACHER,
    Called,
    Running,
    Target,
    Variant,
    Work,
)
from turbovaed_cli.machine.devices import check_compiler, resolve_dtype, torch_device, wait_for
from turbovaed_cli.models import gpu_form
from turbovaed_cli.models.decoder import Decoder, DecoderOutput
from turbovaed_cli.models.decoding import decode_without_gradients
from turbovaed_cli.models.student import StudentDecoder

Decode = Callable[[Tensor], Tensor]
Made = tuple[Decode, Mapping[str, Any]]


def variants(work: Work) -> list[Variant]:
    """Return the variants of each precision.

    They are the fast form (CPU) or the form that was chosen on the device (CUDA), the plain modules, the other forms of a GPU,
    torch.compile and the teacher if asked for. A decoder beside the student, and one that is no student, have one row each.
    """
    found = []
    device = torch_device(work.settings.device)
    unit = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    for precision in work.precisions:
        rows: dict[str, Callable[[str], Made]] = {}
        if work.network != STUDENT or not work.of_student:
            rows[work.network] = lambda precision: _as_it_decodes(work.student(precision))
        else:
            rows |= _of_student(work, device)
        if work.with_teacher:
            rows[TEACHER] = lambda precision: (work.teacher(precision).decode_by_class, {})
        found += [
            Variant(network, f"torch {torch.__version__}", unit, precision, _loader(made, precision, device))
            for network, made in rows.items()
        ]
    return found


def _of_student(work: Work, device: torch.device) -> dict[str, Callable[[str], Made]]:
    """Return the forms of a student by the names of their rows."""
    rows: dict[str, Callable[[str], Made]] = {}
    if device.type == "cpu":  # StudentDecoder.decodes_fast is true there, unless `fast` was set
        rows[STUDENT] = lambda precision: _fast(_student(work, precision))
    elif device.type == "cuda":
        rows[STUDENT] = lambda precision: _chosen(_student(work, precision))
    rows[MODULES if rows else STUDENT] = lambda precision: (_student(work, precision), {})
    if device.type != "cpu":  # as `reconstruct` decodes there, or on CUDA may decode
        rows[LAYOUT] = lambda precision: _in_form(_student(work, precision), gpu_form.LAYOUT)
    if device.type == "cuda":
        rows[FUSED] = lambda precision: _in_form(_student(work, precision), gpu_form.FUSED)
        rows[GRAPHS] = lambda precision: _in_form(_student(work, precision), gpu_form.GRAPHS)
    if work.settings.compile:
        rows[COMPILED] = lambda precision: (_compiled(_student(work, precision)), {})
    return rows


def _student(work: Work, precision: str) -> StudentDecoder:
    return cast(StudentDecoder, work.student(precision))


def _as_it_decodes(decoder: Decoder) -> Made:
    about = {"speedups": str(decoder.ready().speedups)} if isinstance(decoder, StudentDecoder) and decoder.decodes_fast else {}
    return partial(decode_without_gradients, decoder), about


def _loader(made: Callable[[str], Made], precision: str, device: torch.device) -> Callable[[], Running]:
    def load() -> Running:
        decode, about = made(precision)
        dtype = resolve_dtype(precision)

        @torch.no_grad()
        def run(latents: Tensor) -> Tensor:
            return decode(latents.to(device, dtype))

        return Called(run, partial(wait_for, device), about)

    return load


def _fast(student: StudentDecoder) -> Made:
    about = {"speedups": str(student.ready().speedups)}
    return lambda latents: cast(DecoderOutput, student.decode(latents)).sample, about


def _in_form(student: StudentDecoder, name: str) -> Made:
    form = gpu_form.form_of(student, name)
    return form.decode, {"speedups": str(form.speedups)}


def _chosen(student: StudentDecoder) -> Made:
    """Return the student's own decode, which chooses a form at the first call, and what it chose."""
    about: dict[str, str] = {}

    def decode(latents: Tensor) -> Tensor:
        video = cast(DecoderOutput, student.decode(latents)).sample
        fast = student.ready()
        if isinstance(fast, gpu_form.GpuDecoder) and "whole" in fast.choices:
            about["gpu_form"] = str(fast.choices["whole"])
        return video

    return decode, about


def _compiled(student: StudentDecoder) -> Decode:
    check_compiler(student.device)
    return torch.compile(student)


TARGET = Target("torch", ("fp32", "bf16", "fp16"), variants)
