"""Teachers: stock diffusers VAEs (and our Video DC-AE) behind one face, with the settings they need and feature taps."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from turbovaed_cli.errors import MissingError, SettingsError, ShapeError, UnknownModelError, WeightFileError
from turbovaed_cli.models.student import num_params
from turbovaed_cli.registry import WEIGHTS_FILE, ModelSpec, TeacherSpec, find_model, read_diffusers_config
from turbovaed_cli.rundir import sha256_of
from turbovaed_cli.weights import Consent, check_fit, load_strictly, no_consent, read_weights, teacher_folder


@dataclass(frozen=True)
class Posterior:
    """What the encoder says of a video: mean and standard deviation, each (B, C, t, h, w). A deterministic one has std 0."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Mean + std * noise, with standard normal noise of the same shape."""
        return self.mean + self.std * noise


class _DecodeStoppedError(Exception):
    """Thrown by the hook of the last tap: the rest of the decode is of no use."""


class Teacher(nn.Module):
    """A frozen VAE: encode, decode, and features of the decoder. Videos are (B, 3, T, H, W) in [-1, 1].

    Latents are in the raw space of `encode` and `decode`; pipelines scale, VAEs do not.
    """

    def __init__(self, vae: nn.Module, spec: TeacherSpec, folder: Path | None = None) -> None:
        super().__init__()
        self.vae: Any = vae.eval().requires_grad_(False)  # any of the registry's classes: encode and decode, no common base
        self.spec = spec
        self.folder = folder
        for setting in spec.required:
            assert hasattr(vae, setting.name), f"{spec.class_name} lost its {setting.name}"
            setattr(vae, setting.name, setting.value)

    @property
    def decoder(self) -> nn.Module:
        """The part that a student replaces."""
        return cast(nn.Module, self.vae.decoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.vae.parameters()).dtype

    def drop_encoder(self) -> None:
        """Free the encoder's memory, for good: whoever has the latents needs only the decoder."""
        self.vae.encoder = None

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """(B, 3, T, H, W) in [-1, 1] to the posterior over latents.

        Raises FrameCountError or ShapeError for a shape the class would silently change.
        """
        assert self.vae.encoder is not None, "the encoder was dropped"
        _, channels, frames, height, width = video.shape
        if channels != 3:
            raise ShapeError(f"video has {channels} channels; a teacher encodes RGB (B, 3, T, H, W)")
        self.spec.check_frames(frames)
        self.spec.check_size(height, width)
        return self.posterior(video)

    @torch.no_grad()
    def posterior(self, video: Tensor) -> Posterior:
        """What the class says of a video, whatever its shape."""
        encoded = self.vae.encode(video.to(self.device, self.dtype))
        if isinstance(encoded, Tensor):
            return Posterior(encoded, torch.zeros_like(encoded))
        distribution = encoded.latent_dist
        std = distribution.std.expand_as(distribution.mean)  # LTX keeps one variance for all channels
        return Posterior(distribution.mean, std)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, t, h, w) to video (B, 3, T, H, W); not clamped unless the class does."""
        decoded = self.vae.decode(latents.to(self.device, self.dtype))
        return decoded if isinstance(decoded, Tensor) else cast(Tensor, decoded.sample)

    @torch.no_grad()
    def features(self, latents: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the modules named in `taps` ("decoder.up_blocks.0") while decoding; the decode stops after the last.

        Equal, bit for bit, to those of a full decode.
        """
        with tapped(self.vae, taps, stop=True) as found, suppress(_DecodeStoppedError):
            self.vae.decode(latents.to(self.device, self.dtype))
        return found

    @torch.no_grad()
    def decode_with_features(self, latents: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """`decode` and `features` of one and the same full decode."""
        with tapped(self.vae, taps, stop=False) as found:
            decoded = self.decode(latents)
        return decoded, found

    def identity(self) -> dict[str, Any]:
        """What makes this teacher this teacher: class, config, settings and the sha256 of its weights."""
        weights = self.folder / (self.spec.weights_file) if self.folder else None
        if weights is not None and not weights.is_file() and self.folder is not None:
            weights = self.folder / WEIGHTS_FILE
        return {
            "class": self.spec.class_name,
            "config_sha256": _hash_of_config(self.vae),
            "required_settings": {setting.name: setting.value for setting in self.spec.required},
            "weights_sha256": sha256_of(weights) if weights is not None and weights.is_file() else hash_of_state(self.vae),
            "latent_channels": self.spec.latent_channels,
            "licence": self.spec.licence,
        }


def _hash_of_config(vae: Any) -> str:
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def hash_of_state(module: nn.Module) -> str:
    """Hex sha256 over names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def tapped(root: nn.Module, taps: Sequence[str], *, stop: bool) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named modules of `root`; with `stop`, _DecodeStoppedError is thrown once all have been seen."""
    modules = dict(root.named_modules())
    unknown = [tap for tap in taps if tap not in modules]
    if unknown:
        raise UnknownModelError(f"the teacher has no module {unknown[0]!r} to tap")
    found: dict[str, Tensor] = {}

    def hook_for(tap: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            assert tap not in found, (
                f"{tap} fired twice: the teacher decodes in pieces, which its required settings should prevent"
            )
            found[tap] = output[0] if isinstance(output, tuple) else output  # CogVideoX's mid block returns a tuple
            if stop and len(found) == len(taps):
                raise _DecodeStoppedError

        return hook

    handles = [modules[tap].register_forward_hook(hook_for(tap)) for tap in taps]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def load_teacher(
    where: str | Path | ModelSpec,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    consent: Consent = no_consent,
) -> Teacher:
    """Load a teacher from a registry name, a local diffusers VAE folder, or a ModelSpec.

    Raises MissingWeightsError where the weights are not on this machine and `consent` does not allow the download,
    WeightFileError where they do not fit the class.
    """
    spec = where if isinstance(where, ModelSpec) else find_model(where)
    folder = teacher_folder(spec, consent)
    vae = _build(spec.teacher, folder)
    # torch's own `to`: diffusers' warns about an empty list of layers it would keep in fp32.
    return Teacher(nn.Module.to(vae, device=device, dtype=dtype), spec.teacher, folder)


def _build(spec: TeacherSpec, folder: Path) -> nn.Module:
    if spec.class_name == "VideoDCAE":
        from turbovaed_cli.models.video_dc_ae import VideoDCAE  # noqa: PLC0415 - only one teacher needs it

        teacher_class: Any = VideoDCAE
    else:
        import diffusers  # noqa: PLC0415 - its class table loads lazily

        teacher_class = getattr(diffusers, spec.class_name)
    config_path = folder / "config.json"
    config = read_diffusers_config(config_path) if config_path.is_file() else {}
    candidates = [path for path in (folder / spec.weights_file, folder / WEIGHTS_FILE) if path.is_file()]
    if not candidates:
        raise MissingError(f"{folder} holds no {spec.weights_file}", "a teacher folder has config.json and the weights beside it")
    state = read_weights(candidates[0])
    if "decoder.conv_in.conv.weight" not in state and not any(key.startswith("decoder.") for key in state):
        raise WeightFileError(
            f"{candidates[0]} holds no decoder: not the weights of a {spec.class_name}", "give the folder of a whole VAE"
        )
    with torch.device("meta"):  # the config is believed only where the weights are as large as it says
        check_fit(_make(teacher_class, config, config_path), state, candidates[0])
    vae = _make(teacher_class, config, config_path)
    load_strictly(vae, state, candidates[0])
    return vae


def _make(teacher_class: Any, config: dict[str, Any], path: Path) -> nn.Module:
    try:
        return cast(nn.Module, teacher_class.from_config(config) if config else teacher_class())
    except Exception as error:  # whatever a class says of values it does not expect
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingsError(
            f"{path} is not the config of a {teacher_class.__name__}: {reason}",
            "take config.json from where the weights come from",
        ) from error


def decoder_params(teacher: Teacher) -> int:
    """Number of parameters in the teacher's decoder."""
    return num_params(teacher.decoder)


def decoder_params_of(spec: ModelSpec) -> int | None:
    """The same without loading it: of a local folder from the header of its weights, of a registry row as published.

    None where the folder holds no weights.
    """
    if spec.teacher.path is None:
        return round(spec.teacher.decoder_params_m * 1e6)
    files = [spec.teacher.path / name for name in (spec.teacher.weights_file, WEIGHTS_FILE)]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return None
    try:
        with safe_open(path, "pt") as file:
            return _size_of_decoder(file)
    except (SafetensorError, OSError) as error:
        raise WeightFileError(f"{path} is not a readable safetensors file: {error}", "give the folder of a whole VAE") from error


def _size_of_decoder(file: Any) -> int:
    shapes = [file.get_slice(key).get_shape() for key in file.keys() if key.startswith("decoder.")]  # noqa: SIM118 - not a dict
    return sum(math.prod(shape) for shape in shapes)
