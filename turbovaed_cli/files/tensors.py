"""Weight files from any source: checked before a network takes them."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from turbovaed_cli.errors import WeightFileError

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, "Tensor"]:
    """Return the tensors of a .safetensors or .pth file, by key. Pickled code is never run (weights_only).

    Raises WeightFileError for anything else. Nothing may grow in memory beyond the file: no compressed records, no views
    beyond their storage.
    """
    loaded = load_safely(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and is_plain_tensor(value) for key, value in state.items()):
        raise WeightFileError(
            f"{path} does not hold a plain table of tensors", "give a .safetensors, or a .pth that holds a state dict"
        )
    return state


def load_safely(path: Path) -> object:
    """Load a file of tensors on the CPU: a table for .safetensors and .latent, any value without code for a file of torch.save.

    Raises WeightFileError if the file cannot be read safely.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightFileError(f"{path} is not there, or no file", "give a .safetensors, or a .pth state dict")
    try:
        if path.suffix.lower() in (".safetensors", ".latent"):
            return load_file(path)
        _check_not_compressed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a damaged or hostile file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightFileError(
            f"{path} is not a weight file that can be read safely: {reason}",
            "give a .safetensors, or a .pth that holds a state dict of tensors and no code",
        ) from error


def _check_not_compressed(path: Path) -> None:
    """Raise ValueError if a zip file has compressed records: torch.save writes none, and they may be huge in memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError("its records are compressed, which torch.save never does")


def is_plain_tensor(value: object) -> bool:
    """Whether `value` is a dense CPU tensor, not quantised, all of whose elements are in its storage."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def check_fit(module: "nn.Module", state: Mapping[str, "Tensor"], source: Path) -> None:
    """Raise WeightFileError naming the first key of `state` that does not fit `module`.

    A key does not fit if it is missing, unexpected or misshapen, or if only one of the two tensors is floating point. The
    module may be on the meta device.
    """
    hint = "the config belongs to other weights"
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    for key in own:
        if key in state and own[key].shape != state[key].shape:
            raise WeightFileError(
                f"{source.name}: {key} is {tuple(state[key].shape)}, the config makes it {tuple(own[key].shape)}", hint
            )
    for what, keys in (("misses", missing), ("has an unexpected", unexpected)):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise WeightFileError(f"{source.name} {what} decoder key {keys[0]}{more}", hint)
    for key in own:
        if own[key].is_floating_point() != state[key].is_floating_point():
            raise WeightFileError(f"{source.name}: {key} is {state[key].dtype}, not {own[key].dtype}", hint)


def load_strictly(module: "nn.Module", state: Mapping[str, "Tensor"], source: Path) -> None:
    """Copy `state` into `module`. Raises WeightFileError naming the first key that does not fit, or holds NaN or infinity."""
    import torch

    check_fit(module, state, source)
    try:
        module.load_state_dict(dict(state))
    except (RuntimeError, TypeError) as error:
        raise WeightFileError(
            f"{source.name} cannot be loaded: {str(error).strip().splitlines()[-1].strip()}",
            "give fp32, fp16 or bf16 weights",
        ) from error
    for key, value in module.state_dict().items():
        if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all():
            raise WeightFileError(f"{source.name}: {key} holds NaN or infinity", "get the weights from their source again")
