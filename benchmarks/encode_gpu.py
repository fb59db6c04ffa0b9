"""How `reconstruct` would encode a 720p clip with each full-size teacher on a GPU of 24 GB: pieces, tiles and the predicted peak.

    python benchmarks/encode_gpu.py [hunyuan wan2.1 ...] [--size 1280x704] [--frames 121] [--memory 24] [--dtype fp32]

The plan is the product's own (models/memory.py), on a CUDA device without contents (tests/support/fake_cuda/): no GPU is needed, and
none has confirmed it. "whole" is the prediction for whole frames in the longest pieces. The peak has teacher, student and margin in it.
Needs Linux and a C++ compiler.
"""

import argparse
import sys
import warnings
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
from fake_cuda import library  # noqa: E402

library.load(library.build())  # before torch
import torch  # noqa: E402
from fake_cuda.device import device, fakes, install  # noqa: E402
from fake_cuda.networks import teacher_of  # noqa: E402
from torch import nn  # noqa: E402

from turbovaed_cli.errors import SettingsError  # noqa: E402
from turbovaed_cli.models import memory  # noqa: E402
from turbovaed_cli.models.loading import build_student  # noqa: E402
from turbovaed_cli.models.pair import Pair  # noqa: E402
from turbovaed_cli.registry.rows import MODELS  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[name for name, spec in MODELS.items() if not spec.embedded])
    parser.add_argument("--size", default="1280x704")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--memory", type=float, default=24.0, help="GB")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    options = parser.parse_args()
    install()
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    print(f"{'teacher':14} {'weights':>8} {'whole':>10} {'peak':>10}  plan")
    for name in options.names:
        print(f"{name:14} {row_of(name, options)}", flush=True)


@torch.no_grad()
def row_of(name: str, options: argparse.Namespace) -> str:
    width, height = map(int, options.size.split("x"))
    spec = MODELS[name]
    size = (height + -height % spec.teacher.space_ratio, width + -width % spec.teacher.space_ratio)
    dtype = DTYPES[options.dtype]
    with fakes():
        teacher, student = teacher_of(spec), build_student(spec.student.config)
        nn.Module.to(student, device=device())
        for network in (teacher, student):
            nn.Module.to(network, dtype=dtype)
        weights = sum(one.numel() * one.element_size() for network in (teacher, student) for one in network.state_dict().values())
        held = mock.patch.object(memory, "held_bytes", lambda _: weights)
        with held:
            longest = memory._encodes(teacher, size, memory.pixels_per_piece("cuda"), options.frames)[0]
            whole = memory.encoding_bytes(teacher, size, longest.frames)
            try:
                plan = memory.plan_pieces(
                    Pair(student, teacher, spec, name, None), size, round(options.memory * 1e9), options.frames
                )
            except SettingsError as error:
                return f"{weights / 1e9:5.1f} GB {whole / 1e9:7.1f} GB  does not fit: {error.what}"
    how = f"{plan.encode_frames} frames at once" + (f", tiles of {plan.tiles}" if plan.tiles else "")
    return f"{weights / 1e9:5.1f} GB {whole / 1e9:7.1f} GB {plan.peak_bytes / 1e9:7.1f} GB  {how}; decodes {plan}"


if __name__ == "__main__":
    main()
