"""A student and its teacher, from `--model` and `--teacher`."""

from dataclasses import dataclass

import torch
from torch import nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import fits
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.models.loading import check_same_latents, load_student, run_of, teacher_of
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import find_model, with_decode_timestep
from turbovaed_cli.registry.hub import is_absent
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.runs.rundir import RunDir


@dataclass(frozen=True)
class Pair:
    """A student and, if it was requested, its teacher, on one device."""

    student: StudentDecoder
    teacher: Teacher | None
    spec: ModelSpec | None  # None for a student whose teacher is unknown
    name: str  # the name or path that the user gave
    run: RunDir | None  # the run folder of the student
    teacher_is: str | None = None  # the registry name or folder of its teacher, loaded or not

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.student.device


def load_pair(
    model: str | None = None,
    teacher: str | None = None,
    *,
    config: str | None = None,
    decode_timestep: float | None = None,
    with_teacher: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    consent: Consent = no_consent,
) -> Pair:
    """Load the student `model` (default: the embedded one) and its teacher: `teacher`, or the one its config or run names.

    `decode_timestep` is the fixed timestep of a teacher that takes one; None takes that of the run, else the row's. Raises
    SettingsError if the two have different latents, or if no teacher is known and `with_teacher` is set; also the
    errors of `load_student` and `load_teacher`.
    """
    device = device or torch.device("cpu")
    name = model or DEFAULT_MODEL
    student = load_student(name, config, consent=consent)
    nn.Module.to(student, device=device, dtype=dtype)  # diffusers' own `to` warns about an empty list of layers to keep
    run = run_of(name)
    where = teacher or teacher_of(name, run, student)
    spec = teacher_spec(where, name, decode_timestep, consent) if where and (with_teacher or not is_absent(where)) else None
    loaded = None
    if with_teacher:
        if spec is None:
            raise SettingsError(f"{name} does not name its teacher", "name it: `teacher` NAME or DIR")
        loaded = load_teacher(spec, device=device, dtype=dtype, consent=consent)
        check_same_latents(student, spec)
    return Pair(student, loaded, spec, name, run, where)


def teacher_spec(where: str, model: str, decode_timestep: float | None = None, consent: Consent = no_consent) -> ModelSpec:
    """Return the row of the teacher `where` of a student `model`, with the fixed timestep of its decoder, if it takes one.

    That is `decode_timestep`, or if it is None the one that `model` was taught with, if it is a run, else the row's.
    """
    spec, run = find_model(where, consent), run_of(model)
    if decode_timestep is None and run is not None and spec.teacher.family.decode_timestep is not None:
        decode_timestep = _timestep_of(run)
    return with_decode_timestep(spec, decode_timestep)


def _timestep_of(run: RunDir) -> float | None:
    """Return the timestep of the teacher's decoder that a run records; None if it records none."""
    teacher = read_json(run.config).get("teacher")
    inputs = teacher.get("decoder_inputs") if isinstance(teacher, dict) else None
    timestep = inputs.get("decode_timestep") if isinstance(inputs, dict) else None
    return timestep if fits(timestep, float) else None
