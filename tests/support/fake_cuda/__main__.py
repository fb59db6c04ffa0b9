"""`python -m fake_cuda MODULE [CASE ...]`: run cases of fake_cuda/MODULE.py on the fake device, one line of JSON each."""

import gc
import importlib
import json
import sys
import time
import traceback

from fake_cuda import library
from turbovaed_cli.machine.imports import import_less


def main() -> None:
    library.load(library.build())
    import torch

    torch.set_num_threads(1)
    from fake_cuda import device

    device.install()
    if sys.argv[1] != "pipelines":
        import_less()
    cases = importlib.import_module(f"fake_cuda.{sys.argv[1]}").CASES
    for name in sys.argv[2:] or cases:
        began, figures, error = time.process_time(), {}, None
        try:
            figures = cases[name]() or {}
        except Exception:
            error = traceback.format_exc()
        gc.collect()
        row = {"case": name, "figures": figures, "error": error, "cpu_seconds": round(time.process_time() - began, 1)}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
