"""torch itself: the student as it decodes, by its modules as published, compiled; and its teacher's decoder."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from turbovaed_cli.devices import check_compiler, resolve_device
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.student import DecoderOutput
from turbovaed_cli.targets import COMPILED, MODULES, STUDENT, TEACHER, Called, Running, Target, Variant, Work


def variants(work: Work) -> list[Variant]:
    """By precision: the fast form where the student has one on this device, its modules, torch.compile if asked for, the teacher."""
    found = []
    device = resolve_device(device_of(work.settings.device))
    unit = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    runtime = f"torch {torch.__version__}"
    fast = device.type == "cpu"  # where StudentDecoder.decodes_fast is true, unless somebody set `fast`
    for precision in work.precisions:
        rows: dict[str, Callable[[Pair], Callable[[Tensor], Tensor]]] = {STUDENT: _fast} if fast else {}
        rows[MODULES if fast else STUDENT] = lambda pair: pair.student
        if work.settings.compile:
            rows[COMPILED] = _compiled
        if work.with_teacher:
            rows[TEACHER] = _teacher
        found += [
            Variant(network, runtime, unit, precision, _loader(work, precision, network == TEACHER, made))
            for network, made in rows.items()
        ]
    return found


def device_of(name: str) -> str:
    """The torch device of --device: an attached Apple device is only Core ML's."""
    return "auto" if name.partition(":")[0] in ("iphone", "ipad") else name


def _loader(
    work: Work, precision: str, with_teacher: bool, made: Callable[[Pair], Callable[[Tensor], Tensor]]
) -> Callable[[], Running]:
    def load() -> Running:
        pair = work.pair(precision, with_teacher)
        decode, device, dtype = made(pair), pair.device, pair.student.dtype

        def wait() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elif device.type == "mps":
                torch.mps.synchronize()

        @torch.no_grad()
        def run(latents: Tensor) -> Tensor:
            return decode(latents.to(device, dtype))

        return Called(run, wait, {"speedups": str(pair.student.ready().speedups)} if made is _fast else {})

    return load


def _fast(pair: Pair) -> Callable[[Tensor], Tensor]:
    pair.student.ready()
    return lambda latents: cast(DecoderOutput, pair.student.decode(latents)).sample


def _compiled(pair: Pair) -> Callable[[Tensor], Tensor]:
    check_compiler(pair.device)
    return torch.compile(pair.student)


def _teacher(pair: Pair) -> Callable[[Tensor], Tensor]:
    assert pair.teacher is not None
    return pair.teacher.decode


TARGET = Target("torch", ("fp32", "bf16", "fp16"), variants)
