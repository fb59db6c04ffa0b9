"""The latents of a pipeline's VAE, and whether a decoder takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.family import Family
from turbovaed_cli.registry.rows import MODELS

_TOLERANCE = 0.01  # of statistics, relative to the largest: a pipeline in bf16 has rounded them


@dataclass(frozen=True)
class PipelineSpace:
    """The latents of a pipeline's VAE. Facts that its config does not have are None."""

    class_name: str
    channels: int | None
    time_ratio: int | None
    space_ratio: int | None
    mean: tuple[float, ...] | None = None  # per channel
    std: tuple[float, ...] | None = None
    scaling_factor: float | None = None

    def space(self) -> LatentSpace:
        """Return the statistics with which the pipeline makes its latents raw; where it has none, raw and normalised are equal."""
        channels = self.channels or 1
        mean, std = self.mean or (0.0,) * channels, self.std or (1.0,) * channels
        return LatentSpace(channels, mean, std, self.scaling_factor or 1.0, self.time_ratio or 1, self.space_ratio or 1)


def space_of(vae: Any) -> PipelineSpace:
    """Return the latents of a VAE: from the family of its class, else from the attributes that such classes have."""
    config = {**vae.config, "_class_name": type(vae).__name__}
    families = (row.teacher.family for row in MODELS.values() if not row.embedded and not row.teacher.beside)
    family = next((family for family in families if family.matches(config)), None)
    if family is not None:
        return _from_family(vae, family, config)
    channels = config.get("latent_channels", config.get("z_dim"))
    ratios = (getattr(vae, name, config.get(name)) for name in ("temporal_compression_ratio", "spatial_compression_ratio"))
    return PipelineSpace(type(vae).__name__, channels, *ratios, **_known(vae.space) if isinstance(vae, StudentDecoder) else {})


def _from_family(vae: Any, family: Family, config: dict[str, Any]) -> PipelineSpace:
    time_ratio, space_ratio = family.ratios(config)
    channels, found = family.latent_channels(config), family.statistics(vae)
    if not found:  # Cosmos, whose statistics differ from latent frame to latent frame
        return PipelineSpace(type(vae).__name__, channels, time_ratio, space_ratio)
    mean, std = tuple(found.get("latents_mean", (0.0,) * channels)), tuple(found.get("latents_std", (1.0,) * channels))
    return PipelineSpace(
        type(vae).__name__, channels, time_ratio, space_ratio, mean, std, float(found.get("scaling_factor", 1.0))
    )


def _known(space: LatentSpace | None) -> dict[str, Any]:
    """Return the statistics of a decoder that are more than its defaults: zeros, ones and a factor of 1 mean "not known"."""
    if space is None:
        return {}
    found: dict[str, Any] = {}
    if any(space.mean) or any(value != 1 for value in space.std):
        found = {"mean": space.mean, "std": space.std}
    return found if space.scaling_factor == 1 else {**found, "scaling_factor": space.scaling_factor}


def check_same_space(decoder: Decoder, of: PipelineSpace) -> None:
    """Raise SettingsError, with one sentence, if a decoder takes other latents than the VAE of a pipeline makes.

    Channels, ratios and statistics are compared as far as both are known. Without common statistics, a decoder whose teacher
    is known must have a teacher of the VAE's class.
    """
    theirs = (of.channels, of.time_ratio, of.space_ratio)
    ours = (decoder.latent_channels, int(decoder.temporal_compression_ratio), int(decoder.spatial_compression_ratio))
    if any(there is not None and there != here for here, there in zip(ours, theirs, strict=True)):
        raise _refused(
            decoder, f"it decodes latents of {_in_words(ours)}, and this pipeline's {of.class_name} makes {_in_words(theirs)}"
        )
    known = _known(decoder.space)
    both = {name: (known[name], getattr(of, name)) for name in known if getattr(of, name) is not None}
    for name, (here, there) in both.items():
        if not _close(here, there):
            what = {"mean": "another mean", "std": "another spread", "scaling_factor": "another scaling factor"}[name]
            raise _refused(
                decoder, f"its latents have {what} than those of this pipeline's {of.class_name}{_numbers(here, there)}"
            )
    if not both and decoder.teacher is not None:
        taught_by = MODELS[decoder.teacher].teacher.class_name
        if taught_by != of.class_name and of.class_name != type(decoder).__name__:
            raise _refused(
                decoder, f"its teacher {decoder.teacher} is of the class {taught_by}, and this pipeline has an {of.class_name}"
            )


def _close(here: float | Sequence[float], there: float | Sequence[float]) -> bool:
    ours, theirs = ((value,) if isinstance(value, int | float) else tuple(value) for value in (here, there))
    largest = max(map(abs, theirs), default=1.0)
    return len(ours) == len(theirs) and all(abs(a - b) <= _TOLERANCE * largest for a, b in zip(ours, theirs, strict=True))


def _numbers(here: Any, there: Any) -> str:
    return f": {here:g}, not {there:g}" if isinstance(here, int | float) else ""


def _in_words(space: tuple[int | None, int | None, int | None]) -> str:
    channels, time, pixels = ("?" if value is None else value for value in space)
    return f"{channels} channels and {time}x{pixels}x{pixels} pixels"


def _refused(decoder: Decoder, why: str) -> SettingsError:
    of_teacher = f" of {decoder.teacher}" if decoder.teacher else ""
    return SettingsError(
        f"this student{of_teacher} does not fit the pipeline: {why}",
        "take a student of the pipeline's own VAE, or distil one: turbovaed distill --teacher DIR --data DIR, with its VAE folder",
    )
