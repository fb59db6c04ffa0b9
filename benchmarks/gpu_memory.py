"""How much memory of a GPU `distill` takes: registry models and their recipes, metered on fake tensors, on a machine without a GPU.

    python benchmarks/gpu_memory.py --write        # docs/gpu-memory.md, in some twenty minutes
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
from fake_cuda.memory import COLUMNS, IN_FULL, PAGE, peaks_of, recipes_on_page, with_table  # noqa: E402

from turbovaed_cli.registry.rows import MODELS  # noqa: E402
from turbovaed_cli.training.recipes import RECIPES  # noqa: E402


def measured(model: str, recipe: str) -> list[str]:
    """The rows of the table for one recipe of a model."""
    rows = []
    for peak in peaks_of(model, recipe, start=model in IN_FULL):
        rows.append(f"| `{model}` | `{recipe}` | {peak.part} | {peak.clips} | {peak.gb:.2f} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--recipe", nargs="+", choices=[*RECIPES], help="default: those that the page has of the model")
    parser.add_argument("--write", action="store_true", help="write to docs/gpu-memory.md, not to stdout, after each recipe")
    options = parser.parse_args()
    install()
    for model in options.models or MODELS:
        for recipe in options.recipe or recipes_on_page(model):
            rows = measured(model, recipe)
            if options.write:
                PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), COLUMNS, rows, num_keys=2), encoding="utf-8")
            else:
                print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
