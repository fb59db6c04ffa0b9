"""Put the student of a finished run into the package, in fp16: turbovaed_cli/assets/tiny/student, lite or causal.

python tools/embed_student.py runs/tiny [--member lite]

Its card is written by hand. benchmarks/embedded/ has the recipes that made those in the package.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from turbovaed_cli.models.loading import load_student
from turbovaed_cli.registry.download import embedded_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import MEMBERS, member_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--member", choices=MEMBERS, default="full")
    options = parser.parse_args()
    place = embedded_student(member_of(find_model("tiny"), options.member))
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        load_student(options.run).half().save_pretrained(folder)
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            shutil.copyfile(Path(folder) / name, place / name)


if __name__ == "__main__":
    main()
