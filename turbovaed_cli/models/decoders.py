"""Any decoder by its name, folder or file: a student, a diffusers VAE's own decoder, or one of another project."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbovaed_cli.choices import check_choice, hint_for
from turbovaed_cli.errors import SettingsError, UnknownModelError, WeightFileError
from turbovaed_cli.files.documents import parse_json, read_text
from turbovaed_cli.files.sealed import verify_manifest
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.loading import config_inside, config_of, folder_in, load_student, read_config
from turbovaed_cli.models.others.diffusers_vae import DiffusersDecoder
from turbovaed_cli.models.others.family import OtherDecoder, Shapes, shapes_of
from turbovaed_cli.models.others.flash_ltx import FlashLTX, is_flash_ltx, load_flash_ltx
from turbovaed_cli.models.others.flash_wan import FlashWan, is_flash_wan, load_flash_wan
from turbovaed_cli.models.others.magihuman import MagiHuman, is_magihuman, load_magihuman
from turbovaed_cli.models.others.spaces import registry_name, space_of
from turbovaed_cli.models.others.taehv import TAEHV, LightTAE, is_taehv, load_lighttae, load_taehv
from turbovaed_cli.models.others.taehv_student import CLASS_NAME, TaehvStudent, load_taehv_student
from turbovaed_cli.models.others.turbo_vaed import (
    HummingbirdDecoder,
    has_hummingbird_config,
    is_turbo_vaed,
    load_hummingbird,
    load_turbo_vaed,
)
from turbovaed_cli.models.others.weights import ForeignWeights, read_foreign
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import STUDENT_CLASSES, find_model, is_model_name, names_of_models
from turbovaed_cli.registry.hub import hub_folder, hub_id
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir

ConfigSource = str | Path | Mapping[str, Any] | None


@dataclass(frozen=True)
class _Request:
    """What a family is loaded from."""

    weights: ForeignWeights
    config: ConfigSource
    teacher: ModelSpec | None


@dataclass(frozen=True)
class _FileFamily:
    """A family of weight files: whether it has tensors of these shapes, and how it is loaded."""

    has: Callable[[Shapes], bool]
    load: Callable[[_Request], StudentDecoder | OtherDecoder]


def _magihuman(request: _Request) -> OtherDecoder:
    config, path = request.config, request.weights.path
    if config is None:
        beside = sorted(path.parent.glob("*.json"))
        if len(beside) != 1:
            found = f"{len(beside)} .json files are" if beside else "no .json file is"
            raise SettingsError(
                f"{path.name} needs the JSON of its constructor arguments, and {found} next to it", "`config` FILE"
            )
        config = beside[0]
    return load_magihuman(request.weights, config if isinstance(config, Mapping) else read_config(Path(config)))


def _taehv(request: _Request) -> OtherDecoder:
    """Return the decoder in a file of TAEHV; one that `distill` trained has its config in the header."""
    given, path = request.config, request.weights.path
    if given is None and path.suffix.lower() == ".safetensors":
        given = config_inside(path)
    if given is None or (isinstance(given, Mapping) and given.get("family") != TAEHV.family):
        return load_taehv(request.weights)
    return load_taehv_student(request.weights, given if isinstance(given, Mapping) else read_config(Path(given)))


def _student(request: _Request) -> StudentDecoder:
    config = config_of(request.weights.path, request.config)
    if has_hummingbird_config(config):
        return load_hummingbird(request.weights, config)
    return load_turbo_vaed(request.weights, config, request.teacher)


def _lighttae(request: _Request) -> OtherDecoder:
    spec = request.teacher
    return load_lighttae(
        request.weights, None if spec is None else registry_name(spec) or _name_of_class(spec, LightTAE.teachers)
    )


def _name_of_class(spec: ModelSpec, names: Sequence[str]) -> str | None:
    """Return the one of these teachers whose class and latents the teacher in a local folder has."""
    rows = ((name, MODELS[name].teacher) for name in names)
    one = spec.teacher
    return next(
        (name for name, row in rows if (row.class_name, row.latent_channels) == (one.class_name, one.latent_channels)), spec.name
    )


# The families of weight files. The first one that has a file's keys is taken, unless `family` names another.
_FILES: dict[str, _FileFamily] = {
    TAEHV.family: _FileFamily(is_taehv, _taehv),
    LightTAE.family: _FileFamily(is_taehv, _lighttae),
    FlashWan.family: _FileFamily(is_flash_wan, lambda request: load_flash_wan(request.weights)),
    FlashLTX.family: _FileFamily(is_flash_ltx, lambda request: load_flash_ltx(request.weights)),
    MagiHuman.family: _FileFamily(is_magihuman, _magihuman),
    StudentDecoder.family: _FileFamily(is_turbo_vaed, _student),
    HummingbirdDecoder.family: _FileFamily(
        is_turbo_vaed,
        lambda request: load_hummingbird(request.weights, config_of(request.weights.path, request.config)),
    ),
}
FAMILIES = (DiffusersDecoder.family, *_FILES)


def load_decoder(
    where: str | Path,
    *,
    family: str | None = None,
    teacher: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> Decoder:
    """Load any decoder, fp32 on the CPU, in eval mode.

    `where` is what `load_student` takes, a diffusers VAE folder (its own decoder), or the weight file of another project.
    The family of a file is recognised by its keys, or named by `family` (one of FAMILIES). `family` "diffusers" takes a
    registry name too: that of a teacher, whose own decoder is loaded. `config` is the JSON of a student or of MagiHuman's
    decoder; by default it is the one next to the file.

    `teacher`, a registry name or a VAE folder, names the latent space; the decoder then takes the raw latents of that teacher.
    Without it, other families take latents in the convention of their files, which is the decoder's `latents`.

    Every key of a file is accounted for: WeightFileError lists those that are missing, unexpected or misshapen. Raises
    SettingsError if the family is another one or the teacher does not fit, UnknownModelError if nothing has this name, and
    MissingWeightsError if weights are not on this machine and `consent` does not allow the download.
    """
    if family is not None:
        check_choice("`family`", family, FAMILIES)
    spec = find_model(teacher, consent) if teacher is not None else None
    decoder = _load(where, family, spec, config, consent, report)
    if spec is not None:
        _set_teacher(decoder, spec, str(where), consent)
    elif isinstance(decoder, OtherDecoder):
        _find_space(decoder, consent)
    return decoder


def _load(
    where: str | Path, family: str | None, teacher: ModelSpec | None, config: ConfigSource, consent: Consent, report: Reporter
) -> StudentDecoder | OtherDecoder:
    place, is_name = hub_id(where), is_model_name(str(where))
    path = Path(where) if place is None else hub_folder(place, consent)
    if family == DiffusersDecoder.family:
        return _own_decoder(where, consent)
    if is_name or not path.exists():
        _check_student(where, family, "names a student")
        return load_student(where, config, consent=consent) if is_name else _unknown(where)
    if path.is_file():
        decoder = _load_file(path, family, teacher, config, report)
        return _own_decoder(where, consent) if decoder is None else decoder
    path = RunDir(path).model if RunDir.is_run(path) else folder_in(path)
    inside = _config_in(path)
    own = _family_in(inside)
    if family == HummingbirdDecoder.family or (own is not None and family in (None, own)):
        return _load_folder(path, family or own, teacher, config, report)
    _check_student(where, family, "is a folder, and this family is a file")
    if family is None and _is_vae(path):
        return _own_decoder(where, consent)
    return load_student(where, config, consent=consent)


def _family_in(config: Mapping[str, Any]) -> str | None:
    """Return the family that the config.json of a folder names; None for our students and for diffusers VAEs."""
    if has_hummingbird_config(config):
        return HummingbirdDecoder.family
    return TaehvStudent.family if config.get("_class_name") == CLASS_NAME else None


def _load_folder(
    folder: Path, family: str | None, teacher: ModelSpec | None, config: ConfigSource, report: Reporter
) -> StudentDecoder | OtherDecoder:
    """Return the decoder of this family in a folder with one weight file; if it has a manifest, every file is checked."""
    if (folder / "manifest.json").is_file():
        verify_manifest(folder)
    decoder = _load_file(folder / WEIGHTS_FILE, family, teacher, config, report)
    assert decoder is not None
    return decoder


def _own_decoder(where: str | Path, consent: Consent) -> DiffusersDecoder:
    spec = find_model(where, consent)
    return DiffusersDecoder(load_teacher(spec, consent=consent), spec)


def _unknown(where: str | Path) -> StudentDecoder:
    raise UnknownModelError(
        f"no model is called {str(where)!r}, and there is no such folder or file",
        hint_for(str(where), names_of_models(), f"a folder, a weight file, or one of: {', '.join(MODELS)}"),
    )


def _check_student(where: str | Path, family: str | None, what: str) -> None:
    """Raise SettingsError if `family` is one of weight files, and `where` is none."""
    if family not in (None, StudentDecoder.family):
        raise SettingsError(f"`family` is {family}, and {where} {what}", "give the weight file, or leave out `family`")


def _load_file(
    path: Path, family: str | None, teacher: ModelSpec | None, config: ConfigSource, report: Reporter
) -> StudentDecoder | OtherDecoder | None:
    """Return the decoder in a weight file; None for the file of a diffusers VAE, which lies next to its config.json."""
    weights = read_foreign(path)
    shapes = shapes_of(weights.state)
    known = [name for name, one in _FILES.items() if one.has(shapes)]
    if family is None and not known and _is_vae(path.parent):
        return None
    if family is None and not known:
        raise WeightFileError(
            f"{path.name} holds the decoder of no known family: its {len(shapes)} keys begin with {next(iter(shapes), '')!r}",
            f"families: {', '.join(FAMILIES)}",
        )
    if family is not None and family not in known:
        found = f"has the keys of {known[0]}" if known else "has other keys"
        raise WeightFileError(f"{path.name} is no decoder of the family {family}: it {found}", "leave out `family`")
    if weights.note:
        report.note(weights.note)
    return _FILES[family or known[0]].load(_Request(weights, config, teacher))


def _is_vae(folder: Path) -> bool:
    """Whether this is the folder of a diffusers VAE, or of a pipeline with one."""
    if (folder / "config.json").is_file():
        return _config_in(folder).get("_class_name") not in (None, *STUDENT_CLASSES)
    return (folder / "vae" / "config.json").is_file() or (folder / "model_index.json").is_file()


def _config_in(folder: Path) -> Mapping[str, Any]:
    """Return the config.json in a folder; an empty one if there is none that can be read."""
    try:
        document = parse_json(read_text(folder / "config.json"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _find_space(decoder: OtherDecoder, consent: Consent) -> None:
    """Give a decoder whose keys name its teacher the statistics of its latents."""
    if decoder.space is None and decoder.teacher in MODELS:
        decoder.space = space_of(MODELS[decoder.teacher], consent)


def _set_teacher(decoder: StudentDecoder | OtherDecoder, spec: ModelSpec, where: str, consent: Consent) -> None:
    """Let the decoder take the raw latents of this teacher; raise SettingsError if they are not those of the decoder."""
    teacher = spec.teacher
    found = (decoder.latent_channels, int(decoder.temporal_compression_ratio), int(decoder.spatial_compression_ratio))
    wanted = (teacher.latent_channels, teacher.time_ratio, teacher.space_ratio)
    if found != wanted:
        raise SettingsError(
            f"{where} decodes latents of {found[0]} channels, {found[1]}x{found[2]}x{found[2]}; "
            f"the teacher {spec.name} makes {wanted[0]} channels, {wanted[1]}x{wanted[2]}x{wanted[2]}",
            "name the teacher whose latents it decodes: `teacher` NAME or DIR",
        )
    if isinstance(decoder, StudentDecoder | DiffusersDecoder):
        return  # they take raw latents anyway
    if decoder.teachers and teacher.class_name not in {MODELS[name].teacher.class_name for name in decoder.teachers}:
        raise SettingsError(
            f"{where} decodes the latents of {' or '.join(decoder.teachers)}, not those of {spec.name}", "leave out `teacher`"
        )
    decoder.take_raw(spec, registry_name(spec), decoder.space or space_of(spec, consent))
