"""Export each full-size student, with random weights, in the given formats, and print how long it took and what was verified.

python tools/export_full_size.py [--formats onnx,coreml,executorch,litert] [MODEL ...]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from turbovaed_cli.models.loading import build_student
from turbovaed_cli.registry.rows import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["ltx", "hunyuan", "cogvideox", "video-dc-ae"])
    parser.add_argument("--formats", default="onnx,coreml,executorch,litert")
    options = parser.parse_args()
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            build_student({**MODELS[name].student.config, "teacher": name}).save_pretrained(f"{folder}/student")
            began = time.monotonic()
            command = [
                str(Path(sys.executable).with_name("turbovaed")),
                "export",
                "--model",
                f"{folder}/student",
                "--out",
                f"{folder}/out",
            ]
            if name == "video-dc-ae":
                command += ["--frames", "20"]
            done = subprocess.run([*command, "--format", options.formats, "-q"], check=False)
            seconds = time.monotonic() - began
            print(f"{name}: exit code {done.returncode} after {seconds:.0f} s")
            for item in (
                json.loads(Path(folder, "out", "export.json").read_text())["artifacts"] if done.returncode in (0, 4) else []
            ):
                print(
                    f"  {item['format']} {item['precision']}: {item['verified']}, {item['psnr_db']:.1f} dB, {item['seconds']:.0f} s"
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
