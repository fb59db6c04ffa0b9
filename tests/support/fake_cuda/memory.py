"""The memory that a default run takes: metered part by part for any registry model and recipe, at full size.

What is counted is the tensors that live at once. A CUDA context, workspaces of cuDNN and gaps between tensors come on top.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from unittest import mock

from fake_cuda.device import Meter, metered
from fake_cuda.networks import teacher_of, trainer_of
from turbovaed_cli.machine.devices import MOST_READERS
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.reporting import quiet
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.estimate import _all_read_ahead
from turbovaed_cli.training.outputs import Samples, ema_student
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.training.trainer import Trainer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "gpu-memory.md"
PERCEPTUAL, DTYPE = "lpips", "bf16"  # what `auto` takes on a GPU where it takes the most memory
BOUND_GB = 20.0  # of everything that a default run does: a card of 24 GB keeps 4 for what is not tensors
COLUMNS = ("model", "recipe", "part", "clips at once", "GB")
# Of the tables of benchmarks/gpu_hours.py: TFLOP by part of a step, and the hours on cards by their dense bf16 TFLOP/s.
PARTS = ("student", "features", "perceptual", "adversarial", "optimizer", "encoder")
PEAKS = {"RTX 4090": 165.0, "H100": 989.0}
STEP_COLUMNS = ("model", "stage", "steps", "clips a step", *PARTS, "all")
HOUR_COLUMNS = ("model", "recipe", *(f"{card}, {data}" for card in PEAKS for data in ("`--data`", "`--latents`")))
# The models that the page has every recipe of, with its fitted start. All recipes of one model take minutes, so the others
# have their own recipe alone. A fitted start takes as long as all the rest, and less memory than a step.
IN_FULL = ("ltx", "hunyuan", "cogvideox", "video-dc-ae", "wan2.1", "tiny")


@dataclass(frozen=True)
class Peak:
    """The tensors that live at once in one part of a run."""

    model: str
    recipe: str
    part: str  # start, the name of a stage, sample, or save
    clips: str  # what it looks at
    gb: float


def with_table(text: str, columns: tuple[str, ...], rows: list[str], *, num_keys: int) -> str:
    """A page with `rows` in its table of these columns, in place of all rows with the same first `num_keys` cells.

    Rows of models that the registry has no more are left out, and so are those of recipes that the page has no more.
    """
    before, lines, after = _split(text, columns)
    new = {tuple(_cells(row)[:num_keys]) for row in rows}
    table = [*rows, *(line for line in lines if tuple(_cells(line)[:num_keys]) not in new)]
    order = [(model, recipe)[:num_keys] for model in MODELS for recipe in recipes_on_page(model)]
    kept = [row for key in dict.fromkeys(order) for row in table if tuple(_cells(row)[:num_keys]) == key]
    return "\n".join([*before, *kept, *after]) + "\n"


def _split(text: str, columns: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """The lines of a page: up to the rows of its table of these columns, the rows, and all after them."""
    lines = text.splitlines()
    first = lines.index("| " + " | ".join(columns) + " |") + 2
    last = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    return lines[:first], lines[first:last], lines[last:]


def _cells(row: str) -> list[str]:
    return [cell.strip(" `") for cell in row.strip().strip("|").split("|")]


def table_of(text: str, columns: tuple[str, ...] = COLUMNS) -> list[list[str]]:
    """The cells of each row of a page's table of these columns."""
    return [_cells(row) for row in _split(text, columns)[1]]


def rows_of(text: str) -> dict[tuple[str, str, str], float]:
    """The figures of docs/gpu-memory.md: (model, recipe, part) -> GB."""
    return {(model, recipe, part): float(gb) for model, recipe, part, _, gb in table_of(text)}


def clips_of(text: str, model: str, recipe: str) -> dict[str, int]:
    """The clips at once of each stage in docs/gpu-memory.md."""
    return {
        part: int(clips.split(" x ")[0])
        for of, named, part, clips, _ in table_of(text)
        if (of, named) == (model, recipe) and " x " in clips
    }


def recipe_of(model: str) -> str:
    """The recipe that `distill` takes for a teacher without --recipe."""
    return MODELS[model].recipe


def recipes_on_page(model: str) -> tuple[str, ...]:
    """The recipes of a model that docs/gpu-memory.md has. Those of single frames are for image VAEs alone."""
    every = tuple(name for name, recipe in RECIPES.items() if recipe.frames > 1)
    return every if model in IN_FULL else (recipe_of(model),)


def shipped(recipe: str) -> DistillSettings:
    """A recipe as it runs on a GPU, where it takes the most memory."""
    settings = RECIPES[recipe]
    stages = [
        replace(
            stage,
            perceptual=PERCEPTUAL if stage.perceptual == "auto" else stage.perceptual,
            accumulation=min(stage.accumulation, 2),  # the second pass has the gradients of the first beside it, as all others
        )
        for stage in settings.stages
    ]
    dtype = DTYPE if settings.dtype == "auto" else settings.dtype
    return replace(settings, stages=tuple(stages), dtype=dtype, workers=settings.workers or MOST_READERS)


def peaks_of(
    model: str, recipe: str, *, start: bool = True, clips_of: Mapping[str, int] = MappingProxyType({}), only: str = ""
) -> Iterator[Peak]:
    """The parts of `distill --teacher MODEL --recipe RECIPE --data DIR`, each with all that is there beside it.

    Passes of a recipe with `fit_batch` have the clips of `clips_of` (by stage), else as many as fit in BOUND_GB.
    `only` names one stage, and no other is run.
    `start` False leaves out a fitted start, which takes as long as all the rest.
    """
    with metered() as meter:
        trainer = trainer_of(model, shipped(recipe), teacher=teacher_of(MODELS[model]))
        if start and trainer.settings.start == "fitted":
            meter.peak = meter.live
            with mock.patch("turbovaed_cli.training.trainer.are_flat", lambda _: False):
                trainer.set_start(quiet)
            yield Peak(model, recipe, "start", "10 clips", meter.peak_gb)
        yield from (Peak(model, recipe, stage.name, clips, gb) for stage, clips, gb in _stages(trainer, meter, clips_of, only))
        for part, call in (("sample", Samples(trainer).videos), ("save", lambda: ema_student(trainer).cpu())):
            meter.peak = meter.live
            call()
            yield Peak(model, recipe, part, "1 clip" if part == "sample" else "", meter.peak_gb)


def _stages(trainer: Trainer, meter: Meter, clips_of: Mapping[str, int], only: str) -> Iterator[tuple[Stage, str, float]]:
    """A step of each stage, with all batches read ahead; one that differs from another by fewer clips alone is not run."""
    known: dict[tuple[object, ...], tuple[int, float]] = {}
    first = 0
    for index, stage in enumerate(trainer.settings.stages):
        if only not in ("", stage.name):
            first += stage.steps
            continue
        data = trainer.data_of(index)
        alike = _what_counts(stage, trainer, index)
        if known.get(alike, (0, 0.0))[0] < stage.batch_size:
            known[alike] = _largest(trainer, meter, index, first, clips_of.get(stage.name, 0))
        clips = min(stage.batch_size, known[alike][0])
        yield stage, f"{clips} x {data['frames']}x{data['width']}x{data['height']}", known[alike][1]
        first += stage.steps


def _largest(trainer: Trainer, meter: Meter, index: int, first: int, clips: int) -> tuple[int, float]:
    """(clips of a pass, GB of a step) of a stage: with `clips`, or, if the recipe has `fit_batch`, with as many as fit."""
    settings, whole = trainer.settings, trainer.settings.stages[index].batch_size
    counts = [n for n in range(whole, 0, -1) if whole % n == 0] if settings.fit_batch else [whole]
    for count in [clips] if clips else counts:
        stages = [replace(stage, batch_size=count) if n == index else stage for n, stage in enumerate(settings.stages)]
        trainer.settings = replace(settings, stages=tuple(stages))
        meter.peak = before = meter.live
        is_first = not trainer.state.optimizer.state
        trainer.state.step = first
        trainer.learn(_all_read_ahead(trainer, first))
        # The first step makes the optimizer's state at its end; in later ones that is there all along.
        gb = (meter.peak + (meter.live - before if is_first else 0)) / 1e9
        if gb < BOUND_GB:
            break
    trainer.settings = settings
    return count, gb


def _what_counts(stage: Stage, trainer: Trainer, index: int) -> tuple[object, ...]:
    data = trainer.data_of(index)
    weights = (stage.perceptual_weight, stage.feature_weight, stage.teacher_weight, stage.adversarial_weight)
    return data["height"], data["width"], stage.perceptual, *map(bool, weights), stage.gradient_checkpointing
