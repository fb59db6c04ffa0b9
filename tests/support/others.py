"""Golden numbers of other people's decoders: weights made by a rule, and what the published modules compute from them.

Small files are in tests/data/others, the others in the shared folder next to the checkout; a test is skipped without them.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parents[1] / "data" / "others"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden" / "others"


@dataclass(frozen=True)
class Numbers:
    """One golden file: its metadata, latents and frames as (B, C, t, h, w), and further tensors."""

    name: str
    meta: dict[str, Any]
    io: dict[str, Tensor]

    @property
    def latents(self) -> Tensor:
        return self.channels_first(self.io["latents"])

    @property
    def frames(self) -> Tensor:
        return self.channels_first(self.io["frames"])

    def channels_first(self, x: Tensor) -> Tensor:
        return x.movedim(2, 1) if self.meta["layout"].startswith("NTCHW") else x

    def state(self, keys: str = "keys") -> dict[str, Tensor]:
        """The weights by the rule, checked against their sha256."""
        made = {key: _by_rule(key, shape, self.meta["weight_rule"]["offsets"]) for key, shape, _ in self.meta[keys]}
        digest = hashlib.sha256()
        for key in sorted(made):
            digest.update(made[key].tobytes())
        assert digest.hexdigest() == self.meta["weights_sha256" if keys == "keys" else "ema_weights_sha256"]
        return {key: torch.from_numpy(value) for key, value in made.items()}

    def write(self, folder: Path, name: str = "weights.safetensors", **more: Tensor) -> Path:
        """A weight file with these weights, and further tensors."""
        path = folder / name
        if path.suffix == ".safetensors":
            save_file(self.state() | more, path)
        else:
            torch.save(self.state() | more, path)
        return path


def load_numbers(name: str) -> Numbers:
    path = next((one for one in (HERE / f"{name}.safetensors", SHARED / f"{name}.safetensors") if one.is_file()), None)
    if path is None:
        pytest.skip(f"{name}.safetensors is not in tests/data/others, and there is no {SHARED}")
    with safe_open(path, "pt") as file:
        meta = {key: _value(value) for key, value in file.metadata().items()}
        io = {key.removeprefix("io."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return Numbers(name, meta, io)


def _value(text: str) -> Any:
    """A list or an object of the metadata, or its text."""
    try:
        return json.loads(text) if text[:1] in "{[" else text
    except ValueError:
        return text


def _by_rule(key: str, shape: list[int], offsets: dict[str, float]) -> np.ndarray:
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    if key.endswith(("latents_mean", "latents_std")):
        value = np.full(shape, float(key.endswith("latents_std")))
    elif key.endswith(".bias"):
        value = 0.1 * normal
    elif key.endswith(".gamma") or len(shape) == 1:
        value = 1 + 0.1 * normal
    else:
        value = normal / np.sqrt(np.prod(shape[1:]))
    value = value + sum(offset for name, offset in offsets.items() if key.endswith(name))
    return value.astype("<f4")


def largest_error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float((found.detach().double() - wanted.double()).abs().max())


def check_precisions(decoder: Any, latents: Tensor, wanted: Tensor) -> None:
    """The unclamped frames are the golden ones, in float64 within 1e-5 and in float32 within 1e-4."""
    with torch.no_grad():
        assert largest_error(decoder(latents), wanted) < 1e-4
        torch.nn.Module.double(decoder)
        assert largest_error(decoder(latents.double()), wanted) < 1e-5
        torch.nn.Module.float(decoder)
