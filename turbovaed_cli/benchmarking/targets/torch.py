"""torch itself: the student in its fast form, module by module, in channels-last layout, compiled; and the teacher's decoder."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from turbovaed_cli.benchmarking.target import COMPILED, LAYOUT, MODULES, STUDENT, TEACHER, Called, Running, Target, Variant, Work
from turbovaed_cli.machine.devices import check_compiler, resolve_dtype, torch_device, wait_for
from turbovaed_cli.models.decoder import DecoderOutput
from turbovaed_cli.models.student import StudentDecoder

Decoder = Callable[[Tensor], Tensor]


def variants(work: Work) -> list[Variant]:
    """Return the variants of each precision.

    They are the fast form (CPU) or the channels-last layout of streaming (other devices), the plain modules, torch.compile and
    the teacher if asked for.
    """
    found = []
    device = torch_device(work.settings.device)
    unit = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    for precision in work.precisions:
        rows: dict[str, Callable[[str], tuple[Decoder, Mapping[str, Any]]]] = {}
        if device.type == "cpu":  # StudentDecoder.decodes_fast is true there, unless `fast` was set
            rows[STUDENT] = lambda precision: _fast(work.student(precision))
        rows[MODULES if rows else STUDENT] = lambda precision: (work.student(precision), {})
        if device.type != "cpu":  # as `reconstruct` decodes there
            rows[LAYOUT] = lambda precision: _channels_last(work.student(precision))
        if work.settings.compile:
            rows[COMPILED] = lambda precision: (_compiled(work.student(precision)), {})
        if work.with_teacher:
            rows[TEACHER] = lambda precision: (work.teacher(precision).decode, {})
        found += [
            Variant(network, f"torch {torch.__version__}", unit, precision, _loader(made, precision, device))
            for network, made in rows.items()
        ]
    return found


def _loader(
    made: Callable[[str], tuple[Decoder, Mapping[str, Any]]], precision: str, device: torch.device
) -> Callable[[], Running]:
    def load() -> Running:
        decode, about = made(precision)
        dtype = resolve_dtype(precision)

        @torch.no_grad()
        def run(latents: Tensor) -> Tensor:
            return decode(latents.to(device, dtype))

        return Called(run, partial(wait_for, device), about)

    return load


def _fast(student: StudentDecoder) -> tuple[Decoder, Mapping[str, Any]]:
    about = {"speedups": str(student.ready().speedups)}
    return lambda latents: cast(DecoderOutput, student.decode(latents)).sample, about


def _channels_last(student: StudentDecoder) -> tuple[Decoder, Mapping[str, Any]]:
    return lambda latents: student.ready().decode(latents), {"speedups": str(student.ready().speedups)}


def _compiled(student: StudentDecoder) -> Decoder:
    check_compiler(student.device)
    return torch.compile(student)


TARGET = Target("torch", ("fp32", "bf16", "fp16"), variants)
