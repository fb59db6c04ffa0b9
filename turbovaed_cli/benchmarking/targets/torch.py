"""torch itself: the student in its fast form, module by module, in channels-last layout, compiled; and the teacher's decoder."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from turbovaed_cli.benchmarking.target import COMPILED, LAYOUT, MODULES, STUDENT, TEACHER, Called, Running, Target, Variant, Work
from turbovaed_cli.machine.devices import check_compiler, resolve_dtype, torch_device, wait_for
from turbovaed_cli.models.decoder import Decoder, DecoderOutput
from turbovaed_cli.models.decoding import decode_without_gradients
from turbovaed_cli.models.student import StudentDecoder

Decode = Callable[[Tensor], Tensor]
Made = tuple[Decode, Mapping[str, Any]]


def variants(work: Work) -> list[Variant]:
    """Return the variants of each precision.

    They are the fast form (CPU) or the channels-last layout of streaming (other devices), the plain modules, torch.compile and
    the teacher if asked for. A decoder beside the student, and one that is no student, have one row each.
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
            rows[TEACHER] = lambda precision: (work.teacher(precision).decode, {})
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
    rows[MODULES if rows else STUDENT] = lambda precision: (_student(work, precision), {})
    if device.type != "cpu":  # as `reconstruct` decodes there
        rows[LAYOUT] = lambda precision: _channels_last(_student(work, precision))
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


def _channels_last(student: StudentDecoder) -> Made:
    return lambda latents: student.ready().decode(latents), {"speedups": str(student.ready().speedups)}


def _compiled(student: StudentDecoder) -> Decode:
    check_compiler(student.device)
    return torch.compile(student)


TARGET = Target("torch", ("fp32", "bf16", "fp16"), variants)
