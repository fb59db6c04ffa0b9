"""Find and load a student: a file of models/vae, a run folder, a saved model folder, or a repository of the hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from .modeling_turbovaed import WEIGHTS_NAME, StudentDecoder, TurboVaedError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find(where: str, *, download: bool = False) -> Path:
    """Return the weight file of a student: `where` is a file, a run folder, a saved model folder, or a hub id `user/name`.

    Raises ValueError if nothing is there; files of the hub are taken from its cache, and downloaded with `download` only.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        for folder in (path / "model", path):  # of a run, or the model itself
            if (folder / "config.json").is_file() and (folder / WEIGHTS_NAME).is_file():
                return folder / WEIGHTS_NAME
        raise ValueError(f"{path} holds no student: a run that has finished has model/config.json and model/{WEIGHTS_NAME}.")
    if path.is_file():
        return path
    if _HUB_ID.fullmatch(where):
        return _from_hub(where, download=download)
    raise ValueError(f"{where} is no file, no folder and no hub id such as user/name.")


def _from_hub(name: str, *, download: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise ValueError(f"{name} is on the hub, which needs the package huggingface_hub: pip install huggingface_hub.") from None
    try:
        folder = snapshot_download(name, allow_patterns=["config.json", WEIGHTS_NAME], local_files_only=not download)
    except LocalEntryNotFoundError:
        raise ValueError(f"{name} is not in the hub's cache on this machine: turn on `download` to fetch it.") from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{name} cannot be downloaded: {error}") from error
    return find(folder)


def load(weights: Path) -> tuple[StudentDecoder, dict[str, str]]:
    """Return the student of a weight file on the CPU, in the precision of the file, and the metadata in its header.

    Its config is in the header, as `turbovaed export --format comfyui` writes it, or next to the file in config.json. Raises
    ValueError in one sentence for anything else.
    """
    if weights.suffix.lower() not in (".safetensors", ".sft"):
        raise ValueError(f"{weights.name} is no .safetensors file: write one with turbovaed export --format comfyui.")
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        config, state = _config_of(weights, metadata), load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights.name} cannot be read: {error}") from error
    try:
        return StudentDecoder.from_weights(config, state), metadata
    except (AttributeError, RuntimeError, TypeError, TurboVaedError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{weights.name} does not hold the weights of its config: {reason}") from error


def _config_of(weights: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    beside = weights.with_name("config.json")
    try:
        config = json.loads(metadata["config"] if "config" in metadata else beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or "decoder_block_out_channels" not in config:
        raise ValueError(f"{weights.name} is no Turbo-VAED student: write one with turbovaed export --format comfyui.")
    return config
