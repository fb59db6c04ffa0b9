"""How much memory of a GPU `distill` takes: each registry model and recipe, metered on fake tensors, on a machine without a GPU.

    python benchmarks/gpu_memory.py --write        # docs/gpu-memory.md, in some five minutes
    python benchmarks/gpu_memory.py ltx --recipe night

Needs Linux and a C++ compiler, which the fake device is built with (tests/support/fake_cuda/).
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
from fake_cuda import library  # noqa: E402

library.load(library.build())  # before torch
from fake_cuda.device import install  # noqa: E402
from fake_cuda.memory import PAGE, peaks_of, recipes_of  # noqa: E402

from turbovaed_cli.registry.rows import MODELS  # noqa: E402
from turbovaed_cli.training.recipes import RECIPES  # noqa: E402

COLUMNS = ("model", "recipe", "part", "clips at once", "GB")


def measured(models: list[str], recipes: list[str]) -> list[str]:
    """The rows of the table."""
    install()
    rows = []
    for model in models:
        for recipe in [name for name in recipes_of(model) if name in recipes]:
            for peak in peaks_of(model, recipe):
                rows.append(f"| `{model}` | `{recipe}` | {peak.part} | {peak.clips} | {peak.gb:.2f} |")
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def page(rows: list[str]) -> str:
    """docs/gpu-memory.md with this table."""
    before, _, _ = PAGE.read_text(encoding="utf-8").partition("| model |")
    return "\n".join([before + "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--recipe", nargs="+", default=[*RECIPES], choices=[*RECIPES])
    parser.add_argument("--write", action="store_true", help="write the table to docs/gpu-memory.md, not to stdout")
    options = parser.parse_args()
    rows = measured(options.models or [*MODELS], options.recipe)
    if options.write:
        PAGE.write_text(page(rows), encoding="utf-8")
    else:
        print("\n".join(rows))


if __name__ == "__main__":
    main()
