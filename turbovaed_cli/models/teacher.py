"""Teachers: stock diffusers VAEs (and our Video DC-AE) with one interface, the settings they need, and feature taps."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import MissingError, SettingsError, ShapeError, UnknownModelError, WeightFileError
from turbovaed_cli.files.tensors import check_fit, load_strictly, read_weights
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.machine.devices import has_tf32, tf32
from turbovaed_cli.models.fast_encoder import FastEncoder, fast_encoder, posterior_of
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.teacher_form import fast_decoder, forget_decoder
from turbovaed_cli.models.tiles import Tiles, in_tiles
from turbovaed_cli.registry.download import Consent, no_consent, teacher_folder
from turbovaed_cli.registry.family import Family
from turbovaed_cli.registry.find import find_model, read_config_of
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ModelSpec, TeacherSpec
from turbovaed_cli.registry.weight_files import WeightFiles, decoder_size, key_prefix, weight_files


@dataclass(frozen=True)
class Posterior:
    """The encoder's result: mean and standard deviation of latents, each (B, C, t, h, w); a deterministic encoder has std 0."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise (B, C, t, h, w), with standard normal noise of the same shape."""
        return self.mean + self.std * noise


class _DecodeStoppedError(Exception):
    """Raised by the hook of the last tap, as the rest of the decode is not needed."""


class Teacher(nn.Module):
    """A frozen VAE: encode, decode, and features of the decoder. Videos are (B, 3, T, H, W) in [-1, 1].

    Latents are in the raw space of `encode` and `decode`; pipelines scale, VAEs do not. With `allows_tf32`, meant for training,
    `encode`, `features` and `decode_with_features` compute in TF32 on a GPU that has it. `decode` alone never does.

    On a CPU, the encoders that `fast_encoder` and the decoders that `fast_decoder` cover run in their fast form: results are
    equal within rounding, and hooks of their modules are not called. `fast` False runs the class itself; True runs the fast form
    on any device.
    """

    fast: bool | None = None  # None: only on a CPU, where it is known to be faster
    _fast_form: FastEncoder | None = None  # of a teacher without data

    def __init__(self, vae: nn.Module, spec: TeacherSpec, folder: Path | None = None, *, allows_tf32: bool = False) -> None:
        super().__init__()
        self.allows_tf32 = allows_tf32
        self.tiles: Tiles | None = None  # that `encode` takes frames apart into; models/memory.py chooses them
        self.vae: Any = vae.eval().requires_grad_(False)  # any of the registry's classes: encode and decode, no common base
        self.spec = spec
        self.folder = folder
        for setting in self.family.required:
            assert hasattr(vae, setting.name), f"{spec.class_name} lost its {setting.name}"
            setattr(vae, setting.name, setting.value)

    @property
    def family(self) -> Family:
        """The special rules of the VAE's class."""
        return self.spec.family

    @property
    def decoder(self) -> nn.Module:
        """The part that a student replaces."""
        return self.family.decoder(self.vae)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.vae.parameters()).dtype

    @property
    def name(self) -> str:
        """The registry name of the teacher, or the name of its folder."""
        rows = (name for name, row in MODELS.items() if (row.teacher.repo, row.teacher.path) == (self.spec.repo, self.spec.path))
        return next(rows, self.spec.path.resolve().name if self.spec.path else self.spec.class_name)

    @property
    def uses_tf32(self) -> bool:
        """Whether all but `decode` compute in TF32: if it is allowed, on a GPU that has it, with fp32 weights."""
        return self.allows_tf32 and has_tf32(self.device, self.dtype)

    def _teaching(self) -> AbstractContextManager[None]:
        return tf32() if self.uses_tf32 else nullcontext()

    def drop_encoder(self) -> None:
        """Free the encoder's memory for good, if the latents are there already and only the decoder is needed."""
        self.vae.encoder = None

    @contextmanager
    def in_tiles(self, tiles: Tiles | None) -> Iterator[None]:
        """Encode in these tiles, or whole frames, within this context."""
        before, self.tiles = self.tiles, tiles
        try:
            yield
        finally:
            self.tiles = before

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """Encode video (B, 3, T, H, W) in [-1, 1] to the posterior over latents (B, C, t, h, w).

        With `tiles` set, tiles of the frames are encoded one by one. Raises FrameCountError or ShapeError for a shape that the
        class would silently change.
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
        """Encode video (B, 3, T, H, W) in [-1, 1] as `encode` does, without a check of its shape."""
        video, fast = video.to(self.device, self.dtype), self.fast_encoder()
        encode: Callable[[Tensor], tuple[Tensor, ...]] = partial(self.family.posterior, self.vae)
        if fast is not None:
            encode = partial(posterior_of, fast)
        with self._teaching():
            if self.tiles is None:
                return Posterior(*encode(video))
            return Posterior(*in_tiles(self.tiles, self.spec.space_ratio, video, repeat(encode)))

    def fast_encoder(self) -> FastEncoder | None:
        """Return the fast form of the encoder if `encode` uses it, as `fast` says; None for an encoder that has none."""
        if self._fast_form is not None or not self.runs_fast:
            return self._fast_form
        return fast_encoder(self.vae)

    @property
    def runs_fast(self) -> bool:
        """Whether fast forms are used where there are any: `fast`, or if that is None, whether this is a CPU."""
        return self.device.type == "cpu" if self.fast is None else self.fast

    def without_data(self) -> "Teacher":
        """Return this teacher, without tiles, on the device "meta": it encodes videos without data, as a dry run of its memory."""
        tensors = (*self.vae.parameters(), *self.vae.buffers())
        made = Teacher(deepcopy(self.vae, {id(tensor): tensor.to("meta") for tensor in tensors}), self.spec, self.folder)
        made.fast = False
        if (fast := self.fast_encoder()) is not None:  # weights in oneDNN's layout need data
            made._fast_form = FastEncoder(made.vae, fast.dtype, replace(fast.speedups, packed=False))
        return made

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1]; not clamped unless the class does.

        Raises ShapeError for latents of another shape, or without frames.
        """
        channels = self.spec.latent_channels
        if latents.ndim != 5 or latents.shape[1] != channels or not latents.shape[2]:
            raise ShapeError(
                f"latents are {tuple(latents.shape)}: this teacher decodes (batch, {channels}, at least 1 frame, height, width)"
            )
        if not self.runs_fast:
            forget_decoder(self.vae)
        elif (fast := fast_decoder(self.vae, self.spec)) is not None:
            return fast(latents.to(self.device, self.dtype))
        return self.decode_by_class(latents)

    @torch.no_grad()
    def decode_by_class(self, latents: Tensor) -> Tensor:
        """Decode as `decode` does, by the class itself: what a pipeline with this VAE takes."""
        return self.family.decode(self.vae, latents.to(self.device, self.dtype))

    @torch.no_grad()
    def features(self, latents: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs (B, C', t', h', w') of the modules in `taps` ("decoder.up_blocks.0"), of latents (B, C, t, h, w).

        The decode stops after the last tap, in every call of the decoder; outputs are bit-identical to those of a full decode.
        Raises UnknownModelError for a module that the teacher does not have.
        """
        with self._teaching(), tapped(self.vae, taps, self._as_feature(latents), stop=True) as found:
            for call in self.family.decoder_calls(self.vae, latents.to(self.device, self.dtype)):
                with suppress(_DecodeStoppedError):
                    call()
        return _joined(found)

    @torch.no_grad()
    def decode_with_features(self, latents: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return video (B, 3, T, H, W) and features of one full decode of latents (B, C, t, h, w)."""
        with self._teaching(), tapped(self.vae, taps, self._as_feature(latents), stop=False) as found:
            decoded = self.decode_by_class(latents) if taps else self.decode(latents)
        return decoded, _joined(found)

    def _as_feature(self, latents: Tensor) -> Callable[[Any], Tensor]:
        return lambda output: self.family.feature(self.vae, latents, output)

    def identity(self) -> dict[str, Any]:
        """Return the facts that identify this teacher: class, config, settings, fixed inputs and the sha256 of its weights."""
        inputs = self.family.decoder_inputs()
        return {
            "class": self.spec.class_name,
            "config_sha256": _hash_of_config(self.vae),
            "required_settings": {setting.name: setting.value for setting in self.family.required},
            "weights_sha256": self._weights_sha256(),
            "latent_channels": self.spec.latent_channels,
            "licence": self.spec.licence,
            **({"decoder_inputs": inputs} if inputs else {}),
        }

    def _weights_sha256(self) -> str:
        if self.folder is None:
            return hash_of_state(self.vae)
        try:
            return weights_sha256(_weights_in(self.spec, self.folder))
        except MissingError:  # removed since they were read
            return hash_of_state(self.vae)


def weights_sha256(weights: Sequence[WeightFiles]) -> str:
    """Return the hex sha256 of a teacher's weight file; for several files, that of the sha256 of each, in order."""
    digests = [sha256_of(path) for one in weights for path in one.files]
    return (
        digests[0] if len(weights) == 1 and weights[0].index is None else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def _weights_in(spec: TeacherSpec, folder: Path) -> list[WeightFiles]:
    """Return the weights in each of the teacher's folders; the last one has those of the decoder."""
    return [weight_files(one, spec.file or spec.weights_file) for one in spec.folders(folder)]


def _hash_of_config(vae: Any) -> str:
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def hash_of_state(module: nn.Module) -> str:
    """Return the hex sha256 over names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def tapped(
    root: nn.Module, taps: Sequence[str], as_feature: Callable[[Any], Tensor], *, stop: bool
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of modules of `root`, made (B, C, t, h, w) by `as_feature`, by name, one for each call of the decoder.

    With `stop`, _DecodeStoppedError is raised in each call as soon as all taps have fired in it. Raises UnknownModelError for
    a module that `root` does not have.
    """
    modules = dict(root.named_modules())
    unknown = [tap for tap in taps if tap not in modules]
    if unknown:
        raise UnknownModelError(f"the teacher has no module {unknown[0]!r} to tap")
    found: dict[str, list[Tensor]] = {tap: [] for tap in taps}

    def hook_for(tap: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            found[tap].append(as_feature(output))
            if stop and len({len(outputs) for outputs in found.values()}) == 1:
                raise _DecodeStoppedError

        return hook

    handles = [modules[tap].register_forward_hook(hook_for(tap)) for tap in taps]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _joined(found: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Join the outputs of each tap along time. Those of a decoder that is called once stay as they are."""
    return {tap: outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2) for tap, outputs in found.items()}


def load_teacher(
    where: str | Path | ModelSpec,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    allows_tf32: bool = False,
    consent: Consent = no_consent,
) -> Teacher:
    """Load a teacher from a registry name, a local diffusers VAE folder, a hub id, or a ModelSpec; `allows_tf32` is meant for training.

    Raises MissingWeightsError if the weights are not on this machine and `consent` does not allow the download,
    WeightFileError if they do not fit the class.
    """
    spec = where if isinstance(where, ModelSpec) else find_model(where, consent)
    folder = teacher_folder(spec, consent)
    vae = _build(spec.teacher, folder)
    # torch's own `to`: diffusers' warns about an empty list of layers it would keep in fp32.
    return Teacher(nn.Module.to(vae, device=device, dtype=dtype), spec.teacher, folder, allows_tf32=allows_tf32)


def _outline(spec: TeacherSpec, folder: Path) -> nn.Module:
    """Return the network that the folder's config describes, with random weights, on torch's default device."""
    path = spec.folders(folder)[0] / "config.json"
    config = read_config_of(spec, folder) if path.is_file() else {}
    try:
        return spec.family.build(config)
    except Exception as error:  # classes raise many kinds for values that they do not expect
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingsError(
            f"{path} is not the config of a {spec.class_name}: {reason}", "get config.json from the source of the weights"
        ) from error


def _build(spec: TeacherSpec, folder: Path) -> nn.Module:
    found = _weights_in(spec, folder)
    weights, state = found[-1], spec.family.merged([_read_state(one) for one in found])
    state = {spec.family.weight_name(name): value for name, value in state.items()}
    if not any(key.startswith("decoder.") for key in state):
        raise WeightFileError(
            f"{weights.name} holds no decoder: not the weights of a {spec.class_name}", "give the folder of a whole VAE"
        )
    with torch.device("meta"):  # no memory is taken for the config's network before the weights fit it
        outline = _outline(spec, folder)
    _check_layout(outline, state, weights, spec)
    check_fit(outline, state, weights.name)
    vae = _outline(spec, folder)
    load_strictly(vae, state, weights.name)
    return vae


def _read_state(weights: WeightFiles) -> dict[str, Tensor]:
    """Return the tensors of a weight file or of all shards, by their names in diffusers' VAE."""
    state: dict[str, Tensor] = {}
    for path in weights.files:
        part = read_weights(path)
        if weights.keys is not None:
            stated = {key for key, name in weights.keys.items() if name == path.name}
            if wrong := sorted(stated ^ part.keys()):
                raise WeightFileError(
                    f"{path.name} and {weights.name.name} disagree on {wrong[0]}", "get both from the source of the weights"
                )
        state |= part
    prefix = key_prefix(state)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _check_layout(outline: nn.Module, state: dict[str, Tensor], weights: WeightFiles, spec: TeacherSpec) -> None:
    """Raise WeightFileError for a checkpoint in the layout of the model's authors, not in diffusers' layout."""
    own = outline.state_dict()
    shared = sum(key in own for key in state)
    if 2 * shared < len(own) and spec.family.module == "diffusers":
        foreign = next(key for key in state if key not in own)
        raise WeightFileError(
            f"{weights.name.name} is not in diffusers' layout: {shared} of {len(own)} names are those of {spec.class_name}, {foreign} is none",
            f"diffusers converts it: {spec.class_name}.from_single_file({weights.name.name!r}).save_pretrained(DIR); then `teacher` DIR",
        )


def decoder_params(teacher: Teacher) -> int:
    """Return the number of parameters in the teacher's decoder."""
    return num_params(teacher.decoder)


def decoder_params_of(spec: ModelSpec) -> int | None:
    """Return the number of parameters in a teacher's decoder without loading it; None for a folder without weights.

    For a registry row it is the published number, for a local folder that of the weights' headers or of the config.
    """
    if spec.teacher.decoder_params_m is not None and spec.teacher.repo is not None:
        return round(spec.teacher.decoder_params_m * 1e6)
    assert spec.teacher.path is not None
    try:
        weights = _weights_in(spec.teacher, spec.teacher.path)
    except MissingError:
        return None
    size = decoder_size(weights[-1])
    if size is None:  # no safetensors: count in the network of the config
        with torch.device("meta"):
            size = num_params(spec.teacher.family.decoder(_outline(spec.teacher, spec.teacher.path)))
    return size
