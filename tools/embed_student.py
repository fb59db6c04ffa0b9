"""Put the student of a finished run into the package, in fp16: turbovaed_cli/assets/tiny/student. Its card is written by hand.

python tools/embed_student.py runs/tiny
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from turbovaed_cli.models.loading import load_student
from turbovaed_cli.registry.specs import ASSETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        load_student(run).half().save_pretrained(folder)
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            shutil.copy(Path(folder) / name, ASSETS / "tiny" / "student" / name)


if __name__ == "__main__":
    main()
