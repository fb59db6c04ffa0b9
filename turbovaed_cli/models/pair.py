"""A decoder (a student or another family's), its teacher and the decoders beside it, from `--model`, `--teacher` and `--against`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import fits
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoders import FAMILIES, load_decoder
from turbovaed_cli.models.decoding import check_same_space, module_of
from turbovaed_cli.models.loading import check_same_latents, run_of, teacher_of
from turbovaed_cli.models.others.diffusers_vae import DiffusersDecoder
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import find_model, with_decode_timestep
from turbovaed_cli.registry.hub import is_absent
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.runs.rundir import RunDir


@dataclass(frozen=True)
class Beside:
    """A decoder that is compared with that of a pair, on the same latents."""

    name: str  # as the user gave it
    decoder: Decoder


@dataclass(frozen=True)
class Pair:
    """A decoder (usually a student) and, if it was requested, its teacher, on one device."""

    student: Decoder
    teacher: Teacher | None
    spec: ModelSpec | None  # None for a decoder whose teacher is unknown
    name: str  # the name or path that the user gave
    run: RunDir | None  # the run folder of the student
    teacher_is: str | None = None  # the registry name or folder of its teacher, loaded or not
    beside: tuple[Beside, ...] = ()  # decoders of the same latents
    config: str | None = None  # of a weight file, as the user gave it

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.student.device

    @property
    def decoders(self) -> Iterator[Decoder]:
        """The decoder of the pair, then those beside it."""
        yield self.student
        yield from (one.decoder for one in self.beside)

    @property
    def labels(self) -> list[str]:
        """A short name for each decoder beside the pair's: the last part of its path, or the whole name if two share that."""
        return short_names([self.name, *(one.name for one in self.beside)])[1:]


def named_decoder(text: str) -> tuple[str | None, str]:
    """Return (family, place) of a decoder that is named as PLACE, or as FAMILY:PLACE if keys cannot tell the family."""
    family, colon, place = text.partition(":")
    return (family, place) if colon and place and family in FAMILIES else (None, text)


def short_name(name: str) -> str:
    """Return the last part of a decoder's name or path, without its family."""
    place = named_decoder(name)[1]
    return Path(place).resolve().name if place in (".", "..") else Path(place).name or place


def short_names(names: Sequence[str]) -> list[str]:
    """Return the short name of each decoder, or its whole name if two would be the same."""
    short = [short_name(name) for name in names]
    return [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]


def load_pair(
    model: str | None = None,
    teacher: str | None = None,
    *,
    family: str | None = None,
    config: str | None = None,
    against: Sequence[str] = (),
    otherwise: str | None = None,
    decode_timestep: float | None = None,
    with_teacher: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    consent: Consent = no_consent,
) -> Pair:
    """Load the decoder `model` (default: the embedded student) and its teacher: `teacher`, or the one its config or run names.

    `model` is any decoder that `load_decoder` takes, `family` that of a file whose keys cannot tell. `otherwise` is the teacher
    of a decoder that names none. `against` names decoders of the same latents to load beside it, each as PLACE or FAMILY:PLACE.
    `decode_timestep` is the fixed timestep of a teacher that takes one; None takes that of the run, else the row's. Raises
    SettingsError if two of them have different latents, or if no teacher is known and `with_teacher` is set; also the errors of
    `load_decoder` and `load_teacher`.
    """
    device = device or torch.device("cpu")
    name = model or DEFAULT_MODEL
    named, place = named_decoder(name)
    load = partial(load_decoder, place, family=family or named, config=config, consent=consent)
    run = run_of(name)
    try:
        student = load(teacher=teacher)
    except SettingsError:  # LightTAE cannot be loaded without a teacher
        if teacher is not None or otherwise is None:
            raise
        teacher, student = otherwise, load(teacher=otherwise)
    own = place if isinstance(student, DiffusersDecoder) else teacher_of(name, run, student)
    where = teacher or own or otherwise
    if where is not None and teacher is None and (own is None or student.latents != "raw"):
        student = load(teacher=where)  # from now on it takes raw latents
    # diffusers' own `to` warns about an empty list of layers to keep
    nn.Module.to(module_of(student), device=device, dtype=dtype)
    spec = teacher_spec(where, name, decode_timestep, consent) if where and (with_teacher or not is_absent(where)) else None
    loaded = None
    if with_teacher:
        if spec is None:
            raise SettingsError(f"{name} does not name its teacher", "name it: `teacher` NAME or DIR")
        loaded = load_teacher(spec, device=device, dtype=dtype, consent=consent)
        check_same_latents(student, spec)
    pair = Pair(student, loaded, spec, name, run, where, config=config)
    return replace(pair, beside=load_beside(pair, against, consent=consent)) if against else pair


def load_beside(pair: Pair, names: Sequence[str], *, consent: Consent = no_consent) -> tuple[Beside, ...]:
    """Load the decoders `names`, each PLACE or FAMILY:PLACE, on the device and in the precision of `pair`.

    A file whose keys cannot tell its latent space takes that of the pair's teacher. Raises SettingsError for a decoder of other
    latents, and for a name that comes twice.
    """
    found: list[Beside] = []
    for name in names:
        if name == pair.name or name in [one.name for one in found]:
            raise SettingsError(f"`against` names {name} twice", "each decoder once, and not that of `model`")
        family, place = named_decoder(name)
        decoder = load_decoder(place, family=family, teacher=pair.teacher_is, consent=consent)
        if decoder.latents != pair.student.latents:
            raise SettingsError(
                f"{name} takes {decoder.latents} latents, {pair.name} {pair.student.latents} ones",
                "name the teacher of both: `teacher` NAME or DIR",
            )
        check_same_space(decoder, pair.student, name, pair.name)
        nn.Module.to(module_of(decoder), device=pair.student.device, dtype=pair.student.dtype)
        found.append(Beside(name, decoder))
    return tuple(found)


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
