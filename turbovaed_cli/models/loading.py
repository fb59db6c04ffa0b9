"""Load a student by its name, from a folder or from a weight file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import SettingsError, UnknownModelError, WeightFileError
from turbovaed_cli.files.documents import check_fields, fits, parse_json, read_text, shown
from turbovaed_cli.files.sealed import read_json, verify_manifest
from turbovaed_cli.files.tensors import check_fit, load_strictly, read_weights
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.network import DERIVED_KEYS
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.student_vae import StudentVae, has_encoder, load_encoder
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.download import Consent, no_consent, student_weights
from turbovaed_cli.registry.find import STUDENT_CLASSES, find_model, is_model_name, names_of_models
from turbovaed_cli.registry.hub import also_on_hub, hub_folder, hub_id
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import MOST_BLOCKS, ModelSpec
from turbovaed_cli.runs.rundir import RunDir

HEAD_PREFIX = "aligned_feature_projection_heads."
_LATENT_STATISTICS = ("latents_mean", "latents_std")
# The least and the most that a config may ask for; the published configs are far inside these limits.
_BOUNDS = {
    "latent_channels": (1, 4096),
    "out_channels": (1, 64),
    "decoder_block_out_channels": (1, 8192),
    "decoder_layers_per_block": (0, 64),
    "decoder_dw_kernel_size": (1, 31),
}
# Keys that describe the encoder or repeat facts of the weights, in published configs and in ours; a decoder does not need them.
_ENCODER_KEYS = frozenset(
    [
        "down_block_types",
        "layers_per_block",
        "encoder_causal",
        "downsample_type",
        "out_layers",
        "up_block_types",
        "act_fn",
        "norm_num_groups",
        "mid_block_add_attention",
        "force_upcast",
        "use_quant_conv",
        "use_post_quant_conv",
        "decoder_inject_noise",
        "upsample_residual",
        "upsample_factor",
        "sample_height",
        "sample_width",
        "shift_factor",
        "norm_eps",
        "decoder_spatio_temporal_scaling",
        *DERIVED_KEYS,
        "auto_map",  # for those who load without turbovaed
    ]
)


def build_student(config: Mapping[str, Any], kind: type[StudentDecoder] = StudentDecoder) -> StudentDecoder:
    """Return a student with random weights, of class `kind`, from a config in the published key names.

    Keys of the encoder are ignored. Raises SettingsError for an unknown key, a wrong type, and a value out of bounds.
    """
    known = set(StudentDecoder.__init__.__wrapped__.__annotations__) - {"return"}
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in _ENCODER_KEYS}
    unknown = sorted(set(given) - known)
    if unknown:
        raise SettingsError(f"the student config has an unknown key {unknown[0]!r}", f"known keys: {', '.join(sorted(known))}")
    check_config(given)
    return kind(**given)


def check_config(given: Mapping[str, Any]) -> None:
    """Raise SettingsError for a value of another type than the network's, or one for which no memory is large enough."""
    hints = StudentDecoder.__init__.__wrapped__.__annotations__
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise SettingsError(
                f"the student config's {name} is {shown(value)}", "the published key names and types: models show"
            )
    for name, (least, most) in _BOUNDS.items():
        value = given.get(name)
        for number in value if isinstance(value, Sequence) else () if value is None else (value,):
            if not least <= number <= most:
                raise SettingsError(f"the student config's {name} has {shown(number)}", f"it may be {least} to {most}")
    channels, num = given.get("decoder_block_out_channels", (1,)), given.get("latent_channels")
    if not channels or len(channels) > MOST_BLOCKS:
        raise SettingsError(
            f"the student config has {len(channels)} decoder_block_out_channels", f"1 to {MOST_BLOCKS} are possible"
        )
    for name in _LATENT_STATISTICS:
        if given.get(name) and num is not None and len(given[name]) != num:
            raise SettingsError(f"{name} has {len(given[name])} values for {num} latent_channels", "one for each, or null")


def load_student(
    where: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    with_encoder: bool = False,
    teacher: str | Path | None = None,
    consent: Consent = no_consent,
) -> StudentDecoder:
    """Load a student, fp32 on the CPU, in eval mode; `with_encoder` adds the encoder of its teacher, for image-to-video.

    `where` is a registry name ("ltx"), a run folder, a folder written by save_pretrained, a pipeline's folder with a student as its
    vae, a weight file in the published layout (.pth or .safetensors), or a hub id ("user/name", "user/name/FILE", with @revision). A weight file needs its JSON `config`, a path or a dict. By default it is the one in the
    file's header, `config.json` next to the file, or that of the registry if the file has a published name.

    With `with_encoder` the result is a StudentVae. Its encoder is that of `teacher`, a registry name or a diffusers VAE folder;
    by default the one that was saved with the student, else that of the teacher that the run or the student's config names.
    Raises SettingsError if none is known, or if it makes other latents.

    Loading is strict: WeightFileError names the first decoder key that is missing, unexpected or misshapen. Raises
    UnknownModelError if nothing has this name, SettingsError for a bad config, and CorruptFileError for damaged files of a
    run. Raises MissingWeightsError if the weights are not on this machine and `consent` does not agree to the download.
    """
    student = _loaded(where, config, consent)
    return _with_encoder(student, where, teacher, consent) if with_encoder else student


def _loaded(where: str | Path, config: str | Path | Mapping[str, Any] | None, consent: Consent) -> StudentDecoder:
    if is_model_name(str(where)):  # before paths: a folder called tiny is ./tiny
        spec = find_model(where)
        path = student_weights(spec, consent)
        return _load_folder(path) if path.is_dir() else load_published(path, spec.student.config | {"teacher": spec.teacher_name})
    place = hub_id(where)
    path = Path(where) if place is None else hub_folder(place, consent)
    if path.is_dir():
        return _load_folder(RunDir(path).model if RunDir.is_run(path) else folder_in(path))
    if path.is_file():
        return load_published(path, config_of(path, config))
    raise UnknownModelError(
        f"no model is called {str(where)!r}",
        hint_for(
            str(where),
            names_of_models(),
            f"a run folder, a saved model folder, a weight file, or one of: {', '.join(MODELS)}{also_on_hub(where)}",
        ),
    )


def _with_encoder(student: StudentDecoder, where: str | Path, teacher: str | Path | None, consent: Consent) -> StudentVae:
    folder = folder_in(Path(where))
    if teacher is None and not is_model_name(str(where)) and has_encoder(folder):
        return StudentVae.of(student, load_encoder(folder))
    found = teacher or teacher_of(str(where), run_of(str(where)), student)
    if found is None:
        raise SettingsError(f"{where} does not name its teacher, which has the encoder", "name it: `teacher` NAME or DIR")
    spec = find_model(found, consent)
    check_same_latents(student, spec)
    return StudentVae.of(student, load_teacher(spec, consent=consent).vae)


def run_of(name: str) -> RunDir | None:
    """Return the run folder that `name` is; None if it is something else."""
    return RunDir(Path(name)) if not is_model_name(name) and RunDir.is_run(Path(name)) else None


def teacher_of(name: str, run: RunDir | None, student: Decoder) -> str | None:
    """Return the registry name or folder of the teacher of a decoder that was loaded as `name`; None if it is not known."""
    if is_model_name(name):
        return find_model(name).teacher_name
    if run is not None:
        config = read_json(run.config)
        check_fields(config, {"teacher": {"where": str}}, run.config)
        return str(config["teacher"]["where"])
    stated = student.config.teacher if isinstance(student, StudentDecoder) else student.teacher
    return stated if stated and (is_model_name(stated) or hub_id(stated) is not None) else None


def check_same_latents(student: Decoder, spec: ModelSpec) -> None:
    """Raise SettingsError if a student, or another decoder, decodes latents of other channels or ratios than a teacher makes."""
    teacher = spec.teacher
    found = (student.latent_channels, student.temporal_compression_ratio, student.spatial_compression_ratio)
    wanted = (teacher.latent_channels, teacher.time_ratio, teacher.space_ratio)
    if found != wanted:
        raise SettingsError(
            f"the student decodes latents of {found[0]} channels, {found[1]}x{found[2]}x{found[2]}; "
            f"this teacher makes {wanted[0]} channels, {wanted[1]}x{wanted[2]}x{wanted[2]}",
            "name the teacher it was distilled from: `teacher` NAME or DIR",
        )


def folder_in(folder: Path) -> Path:
    """Return the folder of the VAE in a pipeline's folder if it is a student; `folder` itself in all other cases."""
    inside = folder / "vae" / "config.json"
    if (folder / "config.json").is_file() or not inside.is_file():
        return folder
    return inside.parent if read_config(inside).get("_class_name") in STUDENT_CLASSES else folder


def _load_folder(folder: Path) -> StudentDecoder:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UnknownModelError(
            f"{folder} holds no config.json", "give a folder written by save_pretrained, or a run folder that has finished"
        )
    if (folder / "manifest.json").is_file():  # of a run: every file has a recorded sha256
        verify_manifest(folder)
    config = read_config(config_path)
    if family := config.get("family"):
        raise SettingsError(
            f"{folder} holds a decoder of the family {shown(family)}, which is no Turbo-VAED student",
            "eval, bench, reconstruct and load_decoder take it",
        )
    if config.get("_class_name") not in STUDENT_CLASSES:
        raise UnknownModelError(
            f"{folder} holds a {shown(config.get('_class_name'))}, not a student",
            "give a student folder as `model`; this one may be a `teacher`",
        )
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise UnknownModelError(
            f"{folder} holds no diffusion_pytorch_model.safetensors",
            "put one file of that name next to config.json: no pickles, no shards",
        )
    return load_published(weights, config)


def load_published(weights: Path, config: Mapping[str, Any]) -> StudentDecoder:
    """Return a student, fp32 on the CPU, from one weight file in the published layout.

    The file has the decoder's keys; heads are dropped, and statistics of latents go into the config. Raises WeightFileError
    and SettingsError as `load_student` does.
    """
    return student_of(read_weights(weights), config, weights)


def student_of(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: Path, kind: type[StudentDecoder] = StudentDecoder
) -> StudentDecoder:
    """Return a student of class `kind` with the tensors of `state`, as `load_published` does; errors name the file `source`."""
    for key in _LATENT_STATISTICS:
        if key in state and (state[key].ndim != 1 or state[key].numel() > _BOUNDS["latent_channels"][1]):
            raise WeightFileError(f"{source.name}: {key} is {tuple(state[key].shape)}", "it is one number per latent channel")
    decoder = {key: value for key, value in state.items() if key not in _LATENT_STATISTICS and not key.startswith(HEAD_PREFIX)}
    statistics = {key: state[key].float().tolist() for key in _LATENT_STATISTICS if key in state}
    with torch.device("meta"):  # no memory is taken for the config's network before the weights fit it
        check_fit(build_student({**config, **statistics}), decoder, source)
    student = build_student({**config, **statistics}, kind)
    load_strictly(student, decoder, source)
    return student.eval()


def config_of(weights: Path, config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the config of a weight file as `load_student` finds it; raises SettingsError if there is none."""
    if isinstance(config, Mapping):
        return config
    if config is None and weights.suffix == ".safetensors":
        inside = config_inside(weights)
        if inside is not None:
            return inside
    path = Path(config) if config else weights.with_name("config.json")
    known = [spec for spec in MODELS.values() if spec.student.published and spec.student.published.filename == weights.name]
    if config is None and known and not path.is_file():  # shapes are checked all the same
        return {**known[0].student.config, "teacher": known[0].name}
    if not path.is_file():
        raise SettingsError(
            f"{weights.name} needs the JSON config of its architecture, and {path} is not there",
            "`config` FILE: turbovaed models show NAME --json prints those of the registry, as student.config; "
            "load_decoder loads decoders of other projects",
        )
    return read_config(path)


def config_inside(weights: Path) -> dict[str, Any] | None:
    """Return the config in the header of a file that `turbovaed export --format safetensors` wrote; None if there is none."""
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get("config")
    except (SafetensorError, OSError) as error:
        raise WeightFileError(
            f"{weights} is not a weight file that can be read safely: {error}",
            "give a .safetensors of tensors, whole and unchanged",
        ) from error
    try:
        config = parse_json(text) if text else None
    except ValueError:
        return None
    return config if isinstance(config, dict) else None


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in a JSON config file; raises SettingsError if it cannot be read or is not one."""
    try:
        config = parse_json(read_text(path))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "give a JSON file") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}", "give the JSON config of a student") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{path} holds a {type(config).__name__}, not a config", "give the JSON config of a student")
    return config
