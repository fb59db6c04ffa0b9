"""Any decoder by its name, folder or file: a student, a diffusers VAE's own decoder, or one of another project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import parse_json, read_text
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.others.diffusers_vae import DiffusersDecoder
from turbovaed_cli.models.others.family import OtherDecoder
from turbovaed_cli.models.others.spaces import registry_name, space_of
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import find_model, is_model_name
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir

FAMILIES = (StudentDecoder.family, DiffusersDecoder.family)
_STUDENT_CLASSES = ("StudentDecoder", "AutoencoderKLTurboVAED")


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
    The family of a file is recognised by its keys, or named by `family`. `family` "diffusers" takes a registry name too: that
    of a teacher, whose own decoder is loaded.

    `teacher`, a registry name or a VAE folder, names the latent space; the decoder then takes the raw latents of that teacher.
    Without it, other families take latents in the convention of their files, which is the decoder's `latents`.
    """
    if family is not None:
        check_choice("`family`", family, FAMILIES)
    decoder = _load(where, family, config, consent)
    if teacher is not None:
        _set_teacher(decoder, find_model(teacher), str(where), consent)
    return decoder


def _load(
    where: str | Path, family: str | None, config: str | Path | Mapping[str, Any] | None, consent: Consent
) -> StudentDecoder | OtherDecoder:
    path = Path(where)
    is_name = is_model_name(str(where))
    if family == DiffusersDecoder.family or (family is None and not is_name and _is_vae(path)):
        spec = find_model(where)
        return DiffusersDecoder(load_teacher(spec, consent=consent), spec)
    return load_student(where, config, consent=consent)


def _is_vae(path: Path) -> bool:
    """Whether `path` is a diffusers VAE folder, the folder of a pipeline with one, or a weight file in a VAE folder."""
    folder = path if path.is_dir() else path.parent
    if not path.exists() or (path.is_dir() and RunDir.is_run(path)):
        return False
    for place in (folder / "config.json", folder / "vae" / "config.json"):
        if place.is_file():
            return _class_of(place) not in (None, *_STUDENT_CLASSES)
    return (folder / "model_index.json").is_file()


def _class_of(config: Path) -> str | None:
    try:
        document = parse_json(read_text(config))
    except (OSError, ValueError):
        return None
    name = document.get("_class_name") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None


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
    if isinstance(decoder, OtherDecoder) and not isinstance(decoder, DiffusersDecoder):
        space = space_of(spec, consent) if decoder.own_latents == "normalised" else None
        decoder.take_raw(spec, registry_name(spec), space)
