"""A student and its teacher, from `--model` and `--teacher`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import check_fields, fits
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import find_model, is_model_name, with_decode_timestep
from turbovaed_cli.registry.hub import hub_id, is_absent
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
    run = _run_of(name)
    where = teacher or _teacher_of(name, run, student)
    spec = teacher_spec(where, name, decode_timestep, consent) if where and (with_teacher or not is_absent(where)) else None
    loaded = None
    if with_teacher:
        if spec is None:
            raise SettingsError(f"{name} does not name its teacher", "name it: `teacher` NAME or DIR")
        loaded = load_teacher(spec, device=device, dtype=dtype, consent=consent)
        _check_same_latents(student, spec)
    return Pair(student, loaded, spec, name, run, where)


def teacher_spec(where: str, model: str, decode_timestep: float | None = None, consent: Consent = no_consent) -> ModelSpec:
    """Return the row of the teacher `where` of a student `model`, with the fixed timestep of its decoder, if it takes one.

    That is `decode_timestep`, or if it is None the one that `model` was taught with, if it is a run, else the row's.
    """
    spec, run = find_model(where, consent), _run_of(model)
    if decode_timestep is None and run is not None and spec.teacher.family.decode_timestep is not None:
        decode_timestep = _timestep_of(run)
    return with_decode_timestep(spec, decode_timestep)


def _run_of(name: str) -> RunDir | None:
    return RunDir(Path(name)) if not is_model_name(name) and RunDir.is_run(Path(name)) else None


def _timestep_of(run: RunDir) -> float | None:
    """Return the timestep of the teacher's decoder that a run records; None if it records none."""
    teacher = read_json(run.config).get("teacher")
    inputs = teacher.get("decoder_inputs") if isinstance(teacher, dict) else None
    timestep = inputs.get("decode_timestep") if isinstance(inputs, dict) else None
    return timestep if fits(timestep, float) else None


def _teacher_of(name: str, run: RunDir | None, student: StudentDecoder) -> str | None:
    if is_model_name(name):
        return name
    if run is not None:
        config = read_json(run.config)
        check_fields(config, {"teacher": {"where": str}}, run.config)
        return str(config["teacher"]["where"])
    stated = student.config.teacher
    return stated if stated and (is_model_name(stated) or hub_id(stated) is not None) else None


def _check_same_latents(student: StudentDecoder, spec: ModelSpec) -> None:
    teacher = spec.teacher
    found = (student.config.latent_channels, student.temporal_compression_ratio, student.spatial_compression_ratio)
    wanted = (teacher.latent_channels, teacher.time_ratio, teacher.space_ratio)
    if found != wanted:
        raise SettingsError(
            f"the student decodes latents of {found[0]} channels, {found[1]}x{found[2]}x{found[2]}; "
            f"this teacher makes {wanted[0]} channels, {wanted[1]}x{wanted[2]}x{wanted[2]}",
            "name the teacher it was distilled from: `teacher` NAME or DIR",
        )
