"""The largest error of every family of other people's decoders against its golden numbers, before the final clamp.

    python tools/decoder_errors.py

Pixels count in [-1, 1], so TAEHV's errors are twice those of its own range. Files that are not here are left out.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from others import HERE, SHARED, Numbers, largest_error, load_numbers

from turbovaed_cli.models.others.flash_ltx import load_flash_ltx
from turbovaed_cli.models.others.flash_wan import load_flash_wan
from turbovaed_cli.models.others.magihuman import load_magihuman
from turbovaed_cli.models.others.taehv import load_taehv
from turbovaed_cli.models.others.turbo_vaed import load_hummingbird, load_turbo_vaed
from turbovaed_cli.models.others.weights import ForeignWeights

# By the beginning of the file's name.
LOADERS: dict[str, Callable[[ForeignWeights, dict[str, Any]], Any]] = {
    "taehv": lambda weights, _: load_taehv(weights),
    "flash-vaed-wan": lambda weights, _: load_flash_wan(weights),
    "flash-vaed-ltx": lambda weights, _: load_flash_ltx(weights),
    "magihuman": load_magihuman,
    "hummingbird": load_hummingbird,
    "turbo-vaed": lambda weights, config: load_turbo_vaed(weights, config, None),
}


def errors(numbers: Numbers) -> tuple[float, float]:
    """The largest errors in float64 and in float32."""
    weights = ForeignWeights(Path(numbers.name), numbers.state())
    load = next(load for name, load in LOADERS.items() if numbers.name.startswith(name))
    decoder = load(weights, numbers.meta.get("config", {}))
    wanted = numbers.frames * 2 - 1 if numbers.meta["frames_range"] == [0, 1] else numbers.frames
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.nn.Module.to(decoder, dtype)
        latents = numbers.latents.to(dtype)
        if numbers.name.startswith("hummingbird"):  # which takes raw latents, as students do
            latents = decoder.space.raw(latents)
        with torch.no_grad():
            found.append(largest_error(decoder(latents), wanted))
    return found[1], found[0]


def main() -> None:
    names = sorted({path.stem for folder in (HERE, SHARED) for path in folder.glob("*.safetensors")})
    print(f"{'file':32} {'float64':>9} {'float32':>9}")
    for name in names:
        double, single = errors(load_numbers(name))
        print(f"{name:32} {double:9.1e} {single:9.1e}", flush=True)


if __name__ == "__main__":
    main()
