"""Decode time of each student of a teacher's family, and of TAEHV's architecture (base), as a share of the full student's.

    python benchmarks/members.py ltx wan2.1 tiny [--size 128] [--rounds 5]

fp32, random weights, in turns, the minimum of the rounds: students in their fast form, TAEHV as it decodes without gradients.
A teacher with ratios that no layout of TAEHV has gets no figure for it.
"""

import argparse
import time
from contextlib import suppress

import torch

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.trainable import build_trainable, config_for
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import FULL, member_of, members_of
from turbovaed_cli.registry.specs import ModelSpec

FRAMES = 17  # or the next number that the teacher takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.teachers:
        seconds = decode_seconds(find_model(name), options.size, options.rounds)
        shares = ", ".join(f"{which} {one / seconds[FULL]:.2f}" for which, one in seconds.items())
        print(f"{name}, {options.size}x{options.size}: {shares} of {1e3 * seconds[FULL]:.0f} ms", flush=True)


@torch.inference_mode()
def decode_seconds(spec: ModelSpec, size: int, rounds: int) -> dict[str, float]:
    """Return the seconds of a decode by each decoder."""
    torch.manual_seed(0)
    decoders = decoders_of(spec)
    teacher = spec.teacher
    frames, side = teacher.latent_frames(teacher.frames.at_least(FRAMES)), size // teacher.space_ratio
    latents = torch.randn(1, teacher.latent_channels, frames, side, side)
    found: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, decoder in decoders.items():
            began = time.perf_counter()
            decoder.decode(latents)
            seconds = time.perf_counter() - began
            if turn:  # the first decode prepares weights
                found[name] = min(seconds, found.get(name, seconds))
    return found


def decoders_of(spec: ModelSpec) -> dict[str, Decoder]:
    """Return the decoders by name."""
    channels = {"latent_channels": spec.teacher.latent_channels}
    found: dict[str, Decoder] = {
        name: build_student({**member_of(spec, name).student.config, **channels}).eval() for name in members_of(spec)
    }
    with suppress(SettingsError):
        found["TAEHV"] = build_trainable(config_for({"family": "taehv"}, spec)).eval()
    return found


if __name__ == "__main__":
    main()
