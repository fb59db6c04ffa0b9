"""Latents in a file: files of pipelines, ComfyUI and this tool, read as the raw latents (C, t, h, w) that a decoder takes.

Diffusion pipelines compute with normalised latents (models/latent_space.py), and the LTX pipeline packs them. Nothing is guessed: the caller gives `latents_are`. If the statistics of the latents suggest the other form, there is a warning.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import SettingsError, ShapeError, WeightFileError
from turbovaed_cli.files.tensors import is_plain_tensor, load_safely
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.latent_space import LATENTS_ARE, LatentSpace
from turbovaed_cli.reporting import Reporter, quiet

SUFFIXES = (".safetensors", ".latent", ".pt", ".pth")
HOW_TO_SAVE = 'safetensors.torch.save_file({"latents": latents.contiguous()}, "latents.safetensors") saves (1, C, t, h, w)'
_USUAL_NAMES = ("latents", "latent_tensor", "samples", "latent", "mean")
_COMFY_TENSOR, _COMFY_MARK = "latent_tensor", "latent_format_version_0"
_STATISTICS = ("latents_mean", "latents_std", "scaling_factor")  # stored next to the latents of an export
_COMFY_OLD_SCALE = 1 / 0.18215  # what ComfyUI multiplies a file without its mark by
# Of the warning about raw and normalised latents, in nats per value. Real clips of the embedded teacher, and the flat ones among
# them, keep a distance from both limits (tests/latents/test_latent_files.py).
_FITS = 0.3  # statistics with a larger divergence from the expected ones do not fit
_LESS_LIKELY = 0.25
_FEWEST_VALUES = 16  # of a channel, from which its statistics count


@dataclass(frozen=True)
class LatentsFile:
    """The content of a latents file: raw latents (C, t, h, w) in fp32, and notes on how they were converted."""

    path: Path
    latents: Tensor
    name: str  # of the tensor in the file
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def is_latents_file(path: Path) -> bool:
    """Whether a file is one of latents, by its name: .safetensors, .pt, .pth, or ComfyUI's .latent."""
    return path.suffix.lower() in SUFFIXES


def read_latents(
    path: Path,
    space: LatentSpace | None = None,
    *,
    latents_are: str = "raw",
    shape: Sequence[int] = (),
    expected: Sequence[int] = (),
    report: Reporter = quiet,
) -> LatentsFile:
    """Read one clip's latents from a .safetensors, .latent, .pt or .pth file; code in pickles is never run.

    The tensor may be (C, t, h, w) or (1, C, t, h, w), frames first as CogVideoX's pipeline gives them, an image's (1, C, h, w), or
    packed as LTX's pipeline gives them, (1, t * h * w, C), or FLUX.1's, (1, h * w / 4, 4 * C). `shape` is (t, h, w) of packed
    latents; without it, `expected` is taken if it has as many tokens. `space` is needed for all but (1, C, t, h, w) and (C, t, h, w), and for `latents_are="normalised"`.
    Raises SettingsError for a file without latents or with those of several clips, ShapeError for a shape that is none of these.
    """
    if latents_are not in LATENTS_ARE:
        raise SettingsError(f"`latents_are` {latents_are} is unknown", f"one of: {', '.join(LATENTS_ARE)}")
    if shape and (len(shape) != 3 or min(shape) < 1):
        raise SettingsError(
            "`latents_shape` is not three numbers above 0", "latent frames, rows and columns: `latents_shape` 16,15,22"
        )
    notes: list[str] = []
    name, found, scale = _tensor_of(path)
    if scale != 1:
        notes.append(f"{path.name} is an older ComfyUI file: its latents are multiplied by {scale:.5g}, as ComfyUI does")
    latents = _as_clip(found.float() * scale, name, path, space, tuple(shape), tuple(expected), notes)
    if shape and tuple(latents.shape[1:]) != tuple(shape):
        raise ShapeError(
            f"{name} in {path} is {tuple(latents.shape[1:])} in frames, rows and columns, not {tuple(shape)}",
            "leave out `latents_shape`",
        )
    if not torch.isfinite(latents).all():
        raise SettingsError(f"{name} in {path} holds NaN or infinity", "encode the video, or generate it, again")
    warnings = _doubts(latents, space, latents_are, path) if space is not None else []
    if latents_are == "normalised":
        assert space is not None, "normalised latents are those of a decoder"
        latents = space.raw(latents)
        same = " (this model's raw latents are the same)" if space.is_normalised else ""
        notes.append(f"{path.name}: normalised latents made raw by the model's mean, std and scaling factor{same}")
    for text in notes:
        report.note(text)
    for text in warnings:
        report.note(text, warning=True)
    return LatentsFile(path, latents.contiguous(), name, tuple(notes), tuple(warnings))


def read_latents_for(
    path: Path,
    decoder: Decoder,
    *,
    latents_are: str = "raw",
    shape: Sequence[int] = (),
    expected: Sequence[int] = (),
    report: Reporter = quiet,
) -> LatentsFile:
    """Read one clip's latents as `decoder` takes them; see `read_latents`.

    A decoder whose teacher is not known may take normalised latents of unknown statistics. Raises SettingsError for raw latents
    then, which it cannot convert.
    """
    if decoder.latents == "normalised" and decoder.space is None:
        if latents_are == "raw":
            raise SettingsError(
                f"this decoder ({decoder.family}) takes normalised latents, and the statistics of raw ones are not known",
                "name its teacher: `teacher` NAME or DIR; or give normalised latents: `latents_are` normalised",
            )
        return read_latents(path, shape=shape, expected=expected, report=report)
    space = decoder.space
    if space is None and latents_are == "normalised":
        raise SettingsError(
            f"this decoder ({decoder.family}) takes raw latents, and the statistics of normalised ones are not known",
            "name its teacher: `teacher` NAME or DIR",
        )
    read = read_latents(path, space, latents_are=latents_are, shape=shape, expected=expected, report=report)
    if decoder.latents == "raw" or space is None:
        return read
    return replace(read, latents=space.normalised(read.latents))


# --- the tensor ---------------------------------------------------------------------------------------------------


def _tensor_of(path: Path) -> tuple[str, Tensor, float]:
    """Return (name, tensor, factor to multiply it by) of the clip in a file."""
    try:
        loaded = load_safely(path)
    except WeightFileError as error:
        raise SettingsError(
            error.what.replace("is not a weight file that can be read", "is not a latents file that can be read"), HOW_TO_SAVE
        ) from error
    if isinstance(loaded, Tensor):
        loaded = {"the tensor": loaded}
    if not isinstance(loaded, Mapping):
        raise SettingsError(f"{path} holds a {type(loaded).__name__} and no latents", HOW_TO_SAVE)
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    names = [name for name in tensors if name not in (_COMFY_MARK, *_STATISTICS)]
    found = names if len(names) == 1 else [name for name in _USUAL_NAMES if name in names][:1]
    found = found or [name for name in names if name.endswith(".mean")]  # a shard of a cache
    if len(found) != 1:
        what = f"{len(found)} clips" if found else f"no latents: {_listed(names)}"
        raise SettingsError(f"{path} holds {what}", f"a latents file has one tensor, or one named latents: {HOW_TO_SAVE}")
    (name,) = found
    tensor = tensors[name]
    if not is_plain_tensor(tensor) or not tensor.is_floating_point():
        raise SettingsError(
            f"{name} in {path} is {tensor.dtype}, {tensor.layout}", f"latents are fp32, fp16 or bf16: {HOW_TO_SAVE}"
        )
    is_old = name == _COMFY_TENSOR and _COMFY_MARK not in tensors
    return name, tensor.detach(), _COMFY_OLD_SCALE if is_old else 1.0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "no tensor at all"


# --- its shape ----------------------------------------------------------------------------------------------------


def _as_clip(
    found: Tensor,
    name: str,
    path: Path,
    space: LatentSpace | None,
    shape: tuple[int, ...],
    expected: tuple[int, ...],
    notes: list[str],
) -> Tensor:
    """Return a tensor in one of the layouts that pipelines give as (C, t, h, w)."""
    channels = space.channels if space is not None else None
    what = f"{name} in {path} is {tuple(found.shape)}"
    if 0 in found.shape or found.ndim not in (2, 3, 4, 5):
        raise ShapeError(f"{what}; latents are (1, C, t, h, w), or packed (1, t * h * w, C)", HOW_TO_SAVE)
    is_image = found.ndim == 3 and found.shape[0] == channels
    if found.ndim in (3, 5) and not is_image:
        if len(found) != 1:
            raise ShapeError(f"{what}: latents of {len(found)} clips", f"one file per clip, such as latents[:1]: {HOW_TO_SAVE}")
        found = found[0]
    if found.ndim == 2:
        return _unpacked(found, what, space, shape, expected, notes)
    if is_image:
        return found[:, None]
    if channels == found.shape[0] == found.shape[1]:
        notes.append(f"{what}: as many frames as channels, read as channels first")
    elif channels == found.shape[1]:  # also of an image, (1, C, h, w)
        if len(found) > 1:
            notes.append(f"{what}: read as frames before channels, as CogVideoX's pipeline gives them")
        return found.transpose(0, 1)
    return found


def _unpacked(
    tokens: Tensor, what: str, space: LatentSpace | None, shape: tuple[int, ...], expected: tuple[int, ...], notes: list[str]
) -> Tensor:
    """Unpack (t * h * w, C) to (C, t, h, w), as diffusers' LTXPipeline packs latents.

    FluxPipeline packs two by two latents into a token: (t * h * w / 4, C * 4).
    """
    num_packed, channels = tokens.shape
    patch = 2 if space is not None and channels == 4 * space.channels else 1
    num_tokens = num_packed * patch**2
    if space is not None and channels != space.channels * patch**2:
        raise ShapeError(
            f"{what}: packed latents of {channels} channels; this model decodes {space.channels}",
            "name the model they belong to: `model` NAME",
        )
    if not shape and expected and math.prod(expected) == num_tokens:
        shape = expected
        notes.append(f"{what}: packed, unpacked as {', '.join(map(str, shape))} by `frames` and `size`")
    if not shape:
        ratios = (space.time_ratio, space.space_ratio) if space is not None else (8, 32)
        raise ShapeError(
            f"{what}: packed latents, whose frames, rows and columns are not in the file",
            f"`latents_shape` T,H,W, which are (num_frames - 1) / {ratios[0]} + 1, height / {ratios[1]} and width / {ratios[1]} of the pipeline's call",
        )
    frames, height, width = shape
    if math.prod(shape) != num_tokens or height % patch or width % patch:
        raise ShapeError(
            f"{what}: {num_packed} tokens{' of 2 x 2 latents' * (patch > 1)} are not {' x '.join(map(str, shape))}",
            "the product of `latents_shape` (latent frames, rows, columns) has to be the number of latents",
        )
    patches = tokens.view(frames, height // patch, width // patch, channels).permute(0, 3, 1, 2)
    return functional.pixel_shuffle(patches, patch).transpose(0, 1)


# --- raw or normalised --------------------------------------------------------------------------------------------


def _doubts(latents: Tensor, space: LatentSpace, latents_are: str, path: Path) -> list[str]:
    """Return a warning if the channels' means and standard deviations suggest the other form, as far as the two can be told apart.

    The rule: the other form fits well, and makes the values at least e**0.25 times as likely as the form they are read as.
    """
    if len(latents) != space.channels or latents[0].numel() < _FEWEST_VALUES:
        return []
    found = latents.flatten(1)
    mean, std = found.mean(dim=1), found.std(dim=1).clamp_min(1e-6)
    forms = {"raw": (torch.tensor(space.mean), space.spread), "normalised": (torch.zeros(len(mean)), torch.ones(len(mean)))}
    off = {form: _divergence(mean, std, *expected) for form, expected in forms.items()}
    other = "normalised" if latents_are == "raw" else "raw"
    if off[other] > _FITS or off[latents_are] - off[other] < _LESS_LIKELY:
        return []
    spreads = {form: expected.median().item() for form, (_, expected) in forms.items()}
    return [
        f"{path.name} is read as {latents_are} latents, but looks {other}: its channels have a standard deviation of about "
        f"{std.median().item():.2g}, {other} ones of this model have {spreads[other]:.2g}, {latents_are} ones {spreads[latents_are]:.2g}; "
        f"`latents_are` {other} reads them as {other}"
    ]


def _divergence(mean: Tensor, std: Tensor, expected_mean: Tensor, expected_std: Tensor) -> float:
    """Return the Kullback-Leibler divergence of normal channels from the expected ones, each (C,), as a mean over channels in nats.

    It is how much less likely a value is under the expected statistics than under its own. A clip of low contrast is far from
    every form, so it gives no warning.
    """
    squares = (std**2 + (mean - expected_mean) ** 2) / expected_std**2
    return ((expected_std / std).log() + squares / 2 - 0.5).mean().item()
