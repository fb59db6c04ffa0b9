"""Put the student of a finished run, or the average of several, into the package, in fp16: assets/tiny/student, lite or causal.

python tools/embed_student.py runs/tiny [runs/more ...] [--member lite]

Its card is written by hand. benchmarks/embedded/ has the recipes that made those in the package.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.download import embedded_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import MEMBERS, member_of


def averaged(runs: Sequence[Path]) -> StudentDecoder:
    """Return a student whose weights are the mean of those of the runs, which have one config."""
    first, *others = map(load_student, runs)
    weights = [one.state_dict() for one in (first, *others)]
    first.load_state_dict({name: torch.stack([one[name] for one in weights]).mean(dim=0) for name in weights[0]})
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="their weights are averaged")
    parser.add_argument("--member", choices=MEMBERS, default="full")
    options = parser.parse_args()
    place = embedded_student(member_of(find_model("tiny"), options.member))
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        averaged(options.runs).half().save_pretrained(folder)
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            shutil.copyfile(Path(folder) / name, place / name)


if __name__ == "__main__":
    main()
