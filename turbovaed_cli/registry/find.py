"""Find a row by its name, or make one for a local folder that holds a teacher."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from turbovaed_cli.choices import check_choice, hint_for
from turbovaed_cli.errors import MissingError, SettingsError, TurboVaedError, UnknownModelError
from turbovaed_cli.files.documents import fits, parse_json, read_text, shown
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.family import Family
from turbovaed_cli.registry.hub import HubId, also_on_hub, hub_folder, hub_id
from turbovaed_cli.registry.members import CAUSAL, FULL, MEMBERS, member_of, members_of, name_of_member
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import MOST_BLOCKS, FrameRule, ModelSpec, TeacherSpec
from turbovaed_cli.registry.teachers.refused import REFUSED
from turbovaed_cli.registry.weight_files import is_known, licence_of, weight_files

_MOST_CHANNELS, _MOST_LAYERS = 65_536, 64  # limits for a local teacher's config
_LARGEST_PATCH, _LEAST_BEFORE_TAIL = 4, 64  # of a student's tail; channels before it, as published with patch_size 4
_STATISTICS = ("latents_mean", "latents_std")  # in a row, those of the published weights; a local VAE has its own
STUDENT_CLASSES = ("StudentDecoder", "StudentVae", "AutoencoderKLTurboVAED")  # of a config.json
_BY_ANY_NAME = {name: spec for spec in MODELS.values() for name in (spec.name, *spec.aliases)}


def is_model_name(name: str) -> bool:
    """Whether `name` is a registry name or an alias, of a teacher with its full student or of another student: "ltx-lite"."""
    return _row_named(name) is not None


def names_of_models() -> list[str]:
    """Return every registry name and alias, each teacher's before those of its further students."""
    return [
        name_of_member(name, member)
        for spec in MODELS.values()
        for name in (spec.name, *spec.aliases)
        for member in members_of(spec)
    ]


@cache
def _row_named(name: str) -> ModelSpec | None:
    """Return the row of a registry name, or of a name with a member of the family of its students; None for other names."""
    if name in _BY_ANY_NAME:
        return _BY_ANY_NAME[name]
    teacher, _, member = name.rpartition("-")
    row = _BY_ANY_NAME.get(teacher)
    return None if row is None or member == FULL or member not in members_of(row) else member_of(row, member)


def with_student(spec: ModelSpec, member: str) -> ModelSpec:
    """Return the row with this member of its family of students; raises SettingsError if the family has no such member."""
    if spec.member not in (FULL, member):
        raise SettingsError(
            f"`teacher` {spec.name} names the {spec.member} student, `student` the {member} one", f"`teacher` {spec.teacher_name}"
        )
    if spec.member == member:
        return spec
    check_choice("`student`", member, MEMBERS)
    if member not in members_of(spec):
        raise _no_member(spec, member, SettingsError)
    return member_of(spec, member)


def _no_member(spec: ModelSpec, member: str, kind: type[TurboVaedError]) -> TurboVaedError:
    others = ", ".join(name_of_member(spec.name, one) for one in members_of(spec))
    why = "its teacher is of images alone" if member == CAUSAL else "the lite one is as narrow as the latents allow"
    return kind(f"{spec.name} has no {member} student: {why}", f"its students: {others}")


def find_model(name: str | Path, consent: Consent = no_consent) -> ModelSpec:
    """Return the row of a registry name or alias ("ltx", or a student's, "ltx-lite"), or a row made for a local teacher folder (config.json names its class).

    A local teacher has the name of its folder. The path of a weight file selects its folder and that file. A hub id `user/name`
    is that repository, in the hub's cache or downloaded after `consent`; that of a registry row's teacher is the row. Raises
    UnknownModelError with the nearest names, SettingsError if the folder cannot be a teacher, and MissingWeightsError for a
    repository that is not on this machine.
    """
    if (row := _row_named(str(name))) is not None:
        return row
    where = Path(name)
    if where.is_dir():
        return _spec_of_folder(where)
    if where.is_file():
        return _spec_of_folder(where.parent, where.name)
    if (place := hub_id(name)) is not None:
        rows = [spec for spec in MODELS.values() if spec.teacher.repo == str(place)]
        return rows[0] if rows else _spec_on_hub(place, consent)
    teacher, _, member = str(name).rpartition("-")
    if teacher in _BY_ANY_NAME and member in MEMBERS and member != FULL:
        raise _no_member(_BY_ANY_NAME[teacher], member, UnknownModelError)
    raise UnknownModelError(
        f"no model is called {str(name)!r}, and it is not a folder",
        hint_for(str(name), names_of_models(), f"known: {', '.join(MODELS)}{also_on_hub(name)}"),
    )


def _spec_on_hub(place: HubId, consent: Consent) -> ModelSpec:
    """Return a row for a repository on the hub, with the last part of its id as its name."""
    if place.file is not None:
        raise SettingsError(f"{place} is one file, and a teacher is a repository with config.json", f"`teacher` {place.repo}")
    spec = _spec_of_folder(hub_folder(place, consent))
    name = place.repo.partition("/")[2]
    name = f"{name}-repository" if is_model_name(name) else name
    licence = spec.teacher.licence if is_known(spec.teacher.licence) else f"unknown: that of {place.repo}"
    teacher = replace(spec.teacher, hub=str(place), licence=licence)
    return replace(spec, name=name, title=f"{name} ({teacher.class_name})", teacher=teacher)


def _spec_of_folder(folder: Path, file: str | None = None) -> ModelSpec:
    """Return a row for the folder's class, with the name, channels, ratios, size and licence of the folder."""
    given, config_path = folder, folder / "config.json"
    if not config_path.is_file() and (row := _row_of_pipeline(folder)) is not None:
        return _adapted(row, read_config_of(row.teacher, folder), given, folder, file)
    if not config_path.is_file() and (folder / "vae" / "config.json").is_file():
        folder, config_path = folder / "vae", folder / "vae" / "config.json"
    lone = [spec for spec in MODELS.values() if not spec.teacher.folder and (folder / spec.teacher.weights_file).is_file()]
    if not config_path.is_file() and lone and not lone[0].embedded:
        return _local(lone[0], given, folder, file, {})  # published without a config
    if not config_path.is_file():
        _refuse_without_config(folder, file)
    config = read_diffusers_config(config_path)
    return _adapted(_row_for(config, folder), config, given, folder, file)


def _row_of_pipeline(folder: Path) -> ModelSpec | None:
    """Return the row whose teacher is loaded from several folders, if a pipeline's folder holds them all; else None."""
    rows = (spec for spec in MODELS.values() if spec.teacher.beside)
    return next((spec for spec in rows if all((one / "config.json").is_file() for one in spec.teacher.folders(folder))), None)


def read_config_of(teacher: TeacherSpec, folder: Path) -> dict[str, Any]:
    """Return the config of a teacher in `folder`; one of several folders has the other configs by the names of their folders.

    Raises SettingsError as `read_diffusers_config` does.
    """
    first, *others = teacher.folders(folder)
    more = {one.name: read_diffusers_config(one / "config.json") for one in others}
    return read_diffusers_config(first / "config.json") | more


def _adapted(row: ModelSpec, config: Mapping[str, Any], given: Path, folder: Path, file: str | None) -> ModelSpec:
    """Return `row` for a folder whose teacher has this config, with its channels, ratios, size and licence."""
    config_path = row.teacher.folders(folder)[0] / "config.json"
    _check_config(row, config, folder)
    time_ratio, space_ratio, latent_channels = _numbers_of(row.teacher.family, config, config_path)
    same_ratios = (time_ratio, space_ratio) == (row.teacher.time_ratio, row.teacher.space_ratio)
    frames = row.teacher.frames if same_ratios else FrameRule(step=time_ratio, first=row.teacher.frames.first)
    own = {"latent_channels": latent_channels, "time_ratio": time_ratio, "space_ratio": space_ratio, "frames": frames}
    spec = _local(row, given, folder, file, own)
    config_of_student = {key: value for key, value in row.student.config.items() if key not in _STATISTICS}
    config_of_student["latent_channels"] = latent_channels
    if not same_ratios:
        config_of_student |= _upsampling_for(time_ratio, space_ratio, config_of_student)
    return replace(spec, student=replace(spec.student, config=config_of_student | _scaling_of(config)))


def _row_for(config: Mapping[str, Any], folder: Path) -> ModelSpec:
    """Return the row whose family takes a VAE of this config. Raises SettingsError with the reason if there is none."""
    rows = (spec for spec in MODELS.values() if not spec.embedded and not spec.teacher.beside)
    row = next((spec for spec in rows if spec.teacher.family.matches(config)), None)
    if row is None:
        class_name = config["_class_name"]
        if class_name in REFUSED:
            refused = REFUSED[class_name]
            raise SettingsError(f"{folder} holds {_with_article(class_name)}: {refused.why}", refused.needed)
        if class_name in STUDENT_CLASSES:
            raise SettingsError(
                f"{folder} holds a student, which is no teacher", "a student goes to `model`; a teacher is the folder of a VAE"
            )
        known = ", ".join(sorted({spec.teacher.class_name for spec in MODELS.values()}))
        raise SettingsError(f"{folder} holds a {shown(class_name)}, which is no known teacher", f"known classes: {known}")
    return row


def _check_config(row: ModelSpec, config: Mapping[str, Any], folder: Path) -> None:
    try:
        row.teacher.family.check_config(config)
    except SettingsError as error:
        raise SettingsError(f"{folder}: {error.what}", error.hint) from None
    except _ODD_VALUES as error:
        raise _no_config_of(row.teacher.family, folder / "config.json", error) from error


_ODD_VALUES = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what reading numbers from a wrong config raises


def _no_config_of(family: Family, path: Path, error: Exception) -> SettingsError:
    return SettingsError(f"{path} is not the config of a {family.class_name}: {error}", "get it from the source of the weights")


def _with_article(class_name: str) -> str:
    return f"{'an' if class_name.startswith('A') else 'a'} {class_name}"


def _numbers_of(family: Family, config: Mapping[str, Any], path: Path) -> tuple[int, int, int]:
    """Return (time ratio, space ratio, latent channels) of a config; raises SettingsError if it has none, or not in bounds."""
    try:
        numbers = (*family.ratios(config), family.latent_channels(config))
    except _ODD_VALUES as error:
        raise _no_config_of(family, path, error) from error
    if not all(fits(number, int) and 1 <= number <= _MOST_CHANNELS for number in numbers):
        raise SettingsError(
            f"{path}: its ratios and channels are {', '.join(map(shown, numbers))}", "get it from the source of the weights"
        )
    return numbers


def _local(row: ModelSpec, given: Path, folder: Path, file: str | None, own: Mapping[str, Any]) -> ModelSpec:
    """Return `row` for the VAE in `folder`: it keeps facts about the class, and drops those about the published weights."""
    name = given.resolve().name or "teacher"
    if is_model_name(name):  # a student of ./ltx must not be mistaken for one of the registry's ltx
        name = f"{name}-folder"
    try:
        num_bytes = sum(weight_files(one, file or row.teacher.weights_file).num_bytes for one in row.teacher.folders(folder))
    except MissingError:  # loading the weights raises it again
        num_bytes = None
    teacher = replace(
        row.teacher, path=folder, file=file, repo=None, num_bytes=num_bytes, decoder_params_m=None, licence=licence_of(folder),
        licence_note="", **own,
    )  # fmt: skip
    student = replace(row.student, published=None, params_m=None)
    return ModelSpec(name, f"{name} ({row.teacher.class_name})", teacher, student, recipe=row.recipe)


def _scaling_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the scaling factor in a VAE's config as a student's config has it; 1 for a VAE without one."""
    value = config.get("scaling_factor")
    return {"scaling_factor": float(value) if fits(value, float) and value else 1.0}


def _refuse_without_config(folder: Path, file: str | None) -> None:
    """Raise SettingsError if there are weights without a config.json, which would name their class."""
    try:
        found = folder / file if file else weight_files(folder).name
    except (MissingError, SettingsError):
        return  # without weights, reading config.json raises the error
    raise SettingsError(
        f"{folder} holds {found.name} and no config.json, which names the class of the VAE",
        "put the config.json of the same VAE next to it (in a pipeline's repository: vae/config.json)",
    )


def with_licence(spec: ModelSpec, licence: str | None) -> ModelSpec:
    """Return `spec` of a local folder with the licence that the user gives; None changes nothing.

    Raises SettingsError for a registry row, whose licence is known, and for text that is no name on one line.
    """
    if licence is None:
        return spec
    if spec.teacher_name in MODELS:
        raise SettingsError(
            f"the licence of {spec.name} is known: {spec.teacher.licence}", "leave out `licence`, which is for local folders"
        )
    if not licence.strip() or "\n" in licence:
        raise SettingsError("`licence` is the name of a licence, on one line", 'such as `licence` "Apache-2.0"')
    return replace(spec, teacher=replace(spec.teacher, licence=licence.strip()))


def with_decode_timestep(spec: ModelSpec, decode_timestep: float | None) -> ModelSpec:
    """Return `spec` with another fixed timestep of its teacher's decoder, 0 to 1; None changes nothing.

    Raises SettingsError for a teacher whose decoder takes no timestep, and for a value out of range.
    """
    if decode_timestep is None:
        return spec
    family = spec.teacher.family
    if family.decode_timestep is None:
        raise SettingsError(f"the decoder of {spec.name} takes no timestep", "leave out `decode_timestep`")
    if not 0 <= decode_timestep <= 1:
        raise SettingsError(f"`decode_timestep` is {decode_timestep:g}", "a number from 0 to 1, such as 0.05")
    return replace(spec, teacher=replace(spec.teacher, family=replace(family, decode_timestep=float(decode_timestep))))


def read_diffusers_config(path: Path) -> dict[str, Any]:
    """Return the config.json of a diffusers model. Raises SettingsError if it is not one, or has numbers beyond any teacher's."""
    hint = "`teacher` takes a registry name or a diffusers VAE folder"
    try:
        config = parse_json(read_text(path))
    except FileNotFoundError:
        raise SettingsError(f"{path.parent} holds no config.json", hint) from None
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path} is not a diffusers config: {error}", hint) from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise SettingsError(f"{path} is not a diffusers config: it has no _class_name", hint)
    for name, value in config.items():
        most = _MOST_LAYERS if "layers_per_block" in name else _MOST_CHANNELS
        if not _is_modest(value, most):
            raise SettingsError(f"{path}: {name} is more than any teacher has", "get it from the source of the weights")
    return config


def _is_modest(value: object, most: int) -> bool:
    """Whether integers in a config are at most `most`, and lists not too long: diffusers builds whatever a config asks for."""
    if isinstance(value, list):
        return len(value) <= _MOST_CHANNELS and all(_is_modest(item, most) for item in value)
    return not isinstance(value, int) or abs(value) <= most


def _upsampling_for(time_ratio: int, space_ratio: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to a row's student `config` for other ratios: as many upsamplings and blocks as they need.

    A tail of a larger `patch_size` takes upsamplings of space that are more than the published blocks, and beyond its 4 the
    block nearest the latents is repeated. Upsamplings of time alone are nearest the output, as those of space alone are: the
    first blocks then have the resolutions of the teachers' first blocks. Raises SettingsError if a ratio is no power of two,
    or if the student would have more than MOST_BLOCKS blocks.
    """
    num_space, num_time = math.log2(space_ratio), math.log2(time_ratio)
    num_published = len(config["decoder_block_out_channels"])
    if not num_space.is_integer() or not num_time.is_integer():
        raise _no_student_for(time_ratio, space_ratio, "ratios are powers of two")
    patch = min(config["patch_size"], space_ratio)
    while space_ratio // patch > 2 ** (num_published - 1) and patch < _LARGEST_PATCH:
        patch *= 2
    only_space = int(num_space - math.log2(patch) - num_time)  # blocks; below 0: this many that upsample time alone
    num_up = int(num_time) + max(only_space, 0)
    num_blocks = max(num_up, 1) + 1  # alignment pairs name at least two
    if num_blocks > MOST_BLOCKS:
        raise _no_student_for(time_ratio, space_ratio, f"a student has at most {MOST_BLOCKS} blocks")
    changes = {
        **_blocks_of(config, num_blocks, patch),
        "spatio_temporal_scaling": tuple(i < num_up for i in range(num_blocks)),
        "decoder_spatio_only": tuple(i < only_space for i in range(num_blocks)),
    }
    if only_space < 0:
        changes["decoder_temporal_only"] = tuple(i < -only_space for i in range(num_blocks))
    return changes if patch == config["patch_size"] else {**changes, "patch_size": patch}


def _blocks_of(config: Mapping[str, Any], num_blocks: int, patch_size: int) -> dict[str, Any]:
    """Return channels, layers and kinds of `num_blocks` blocks as in `config`; its block nearest the latents is repeated."""
    channels, layers = tuple(config["decoder_block_out_channels"]), tuple(config["decoder_layers_per_block"])
    depthwise, more = tuple(config["decoder_is_dw_conv"]), max(num_blocks - len(channels), 0)
    channels += channels[-1:] * more
    layers = layers[:-1] + layers[-2:-1] * more + layers[-1:]
    depthwise = depthwise[:-1] + depthwise[-2:-1] * more + depthwise[-1:]
    channels = channels[-num_blocks:] if config["patch_size"] == 1 else channels[:num_blocks]
    if patch_size > config["patch_size"]:  # the tail divides them
        channels = tuple(max(width, _LEAST_BEFORE_TAIL) for width in channels)
    return {
        "decoder_block_out_channels": channels,
        "decoder_layers_per_block": layers[-num_blocks - 1 :],
        "decoder_is_dw_conv": depthwise[-num_blocks - 1 :],
    }


def _no_student_for(time_ratio: int, space_ratio: int, why: str) -> SettingsError:
    return SettingsError(
        f"no student upsamples {time_ratio}x in time and {space_ratio}x in space: {why}", "pass `student_config` FILE"
    )
