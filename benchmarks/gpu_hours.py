"""Hours that the recipe of each registry model takes on a GPU, by its FLOPs: computed at full size, on a machine without a GPU.

    python benchmarks/gpu_hours.py --write        # the tables of docs/gpu-memory.md, in some ten minutes
    python benchmarks/gpu_hours.py ltx --recipe fast

Counted are matrix products and convolutions, forward and backward, of the product's own training step on tensors without
contents (tests/support/fake_cuda/, which needs Linux and a C++ compiler). The hours assume that a GPU sustains SUSTAINED of the
dense bf16 peak of its data sheet, and half of that in the teacher's encoder, which computes in TF32.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
from fake_cuda import library  # noqa: E402

library.load(library.build())  # before torch
from fake_cuda.device import fakes, install  # noqa: E402
from fake_cuda.memory import HOUR_COLUMNS, PAGE, PARTS, PEAKS, STEP_COLUMNS, recipe_of, shipped, with_table  # noqa: E402
from fake_cuda.networks import teacher_of, trainer_of  # noqa: E402
from training_step import counted  # noqa: E402

from turbovaed_cli.latents.batch import Batch  # noqa: E402
from turbovaed_cli.registry.rows import MODELS  # noqa: E402
from turbovaed_cli.stage import Stage  # noqa: E402
from turbovaed_cli.training.recipes import RECIPES  # noqa: E402
from turbovaed_cli.training.trainer import Trainer  # noqa: E402

SUSTAINED = 0.4
NIGHT_HOURS = 12
DAYS_FROM_HOURS = 48


@dataclass(frozen=True)
class Cost:
    """What one optimizer step of a stage computes."""

    stage: Stage
    tflop: dict[str, float]  # by PARTS

    def hours(self, card: str, *, cached: bool) -> float:
        """The hours of all steps of the stage on a card, from a latent cache or with the encoder in every step."""
        rest = sum(self.tflop.values()) - self.tflop["encoder"]
        work = rest + (0 if cached else 2 * self.tflop["encoder"])
        return self.stage.steps * work / (SUSTAINED * PEAKS[card]) / 3600


def costs_of(model: str, recipe: str) -> Iterator[Cost]:
    """The cost of each stage; a forward and a backward pass on one clip are counted, and multiplied by the clips of a step."""
    with fakes():
        trainer = trainer_of(model, shipped(recipe), teacher=teacher_of(MODELS[model]))
        whole = RECIPES[recipe].stages
        singles = tuple(replace(stage, batch_size=1, accumulation=1) for stage in trainer.settings.stages)
        trainer.settings = replace(trainer.settings, stages=singles)
        for index, (stage, single) in enumerate(zip(whole, singles, strict=True)):
            clips = stage.batch_size * stage.accumulation
            by_clip = _of_one_clip(trainer, index, single)
            optimizer = counted(lambda: _optimizer_step(trainer)) / 1e3
            yield Cost(stage, {part: by_clip[part] * clips if part in by_clip else optimizer for part in PARTS})


def _of_one_clip(trainer: Trainer, index: int, stage: Stage) -> dict[str, float]:
    """TFLOP of each part of a pass on one clip, but for the optimizer: what the pass costs more with the part than without it."""
    batch = trainer.batch_at((index, 0))
    encoded = []
    tflop = {"encoder": counted(lambda: encoded.append(trainer.teacher.encode(batch.video))) / 1e3}
    batch = replace(batch, mean=encoded[0].mean.float(), std=encoded[0].std.float())
    trainer.state.student.checkpoint_blocks(enable=stage.gradient_checkpointing)
    weights = {"perceptual": stage.perceptual_weight, "features": stage.feature_weight, "adversarial": stage.adversarial_weight}
    bare = replace(stage, perceptual_weight=0.0, feature_weight=0.0, adversarial_weight=0.0)
    before = tflop["student"] = counted(lambda: _there_and_back(trainer, batch, bare)) / 1e3
    for part, weight in weights.items():
        tflop[part] = 0.0
        if weight:
            field = "feature_weight" if part == "features" else f"{part}_weight"
            bare = replace(bare, **{field: weight})
            now = counted(lambda stage=bare: _there_and_back(trainer, batch, stage)) / 1e3
            tflop[part], before = now - before, now
    return tflop


def _there_and_back(trainer: Trainer, batch: Batch, stage: Stage) -> None:
    """A pass as `learn` makes it."""
    losses = trainer.losses(batch, stage)
    losses.total.backward()
    if losses.discriminator is not None:
        losses.discriminator.backward()


def _optimizer_step(trainer: Trainer) -> None:
    for group in trainer.state.optimizer.param_groups:
        group["lr"] = 1e-5
    trainer.state.optimizer.step()


def in_words(hours: float) -> str:
    """Hours with two digits, in days from two on, and bold if they are more than a night."""
    text = f"{hours / 24:.0f} days" if hours >= DAYS_FROM_HOURS else f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"
    return f"**{text}**" if hours > NIGHT_HOURS else text


def rows_of_steps(model: str, costs: list[Cost]) -> list[str]:
    rows = []
    for cost in costs:
        stage = cost.stage
        cells = [f"{cost.tflop[part]:.3g}" if cost.tflop[part] else "" for part in PARTS]
        clips = stage.batch_size * stage.accumulation
        rows.append(
            " | ".join((f"| `{model}`", stage.name, f"{stage.steps:,}", str(clips), *cells, f"{sum(cost.tflop.values()):.3g} |"))
        )
    return rows


def row_of_hours(model: str, recipe: str, costs: list[Cost]) -> str:
    hours = [sum(cost.hours(card, cached=cached) for cost in costs) for card in PEAKS for cached in (False, True)]
    return " | ".join((f"| `{model}`", f"`{recipe}`", *map(in_words, hours))) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--recipe", choices=[*RECIPES], help="default: the model's own")
    parser.add_argument("--write", action="store_true", help="write to docs/gpu-memory.md, not to stdout, after each model")
    options = parser.parse_args()
    if options.write and options.recipe:
        parser.error("the page has each model's own recipe: --write goes without --recipe")
    install()
    for model in options.models or MODELS:
        recipe = options.recipe or recipe_of(model)
        costs = list(costs_of(model, recipe))
        tables = ((STEP_COLUMNS, rows_of_steps(model, costs)), (HOUR_COLUMNS, [row_of_hours(model, recipe, costs)]))
        for columns, rows in tables:
            print("\n".join(rows), flush=True)
            if options.write:
                PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), columns, rows, num_keys=1), encoding="utf-8")


if __name__ == "__main__":
    main()
