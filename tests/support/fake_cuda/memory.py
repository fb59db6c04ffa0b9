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


@dataclass(frozen=True)
class Peak:
    """The tensors that live at once in one part of a run."""

    model: str
    recipe: str
    part: str  # start, the name of a stage, sample, or save
    clips: str  # what it looks at
    gb: float


def _cells(text: str) -> list[list[str]]:
    """Each row of the table of docs/gpu-memory.md: model, recipe, part, clips at once, GB."""
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]


def rows_of(text: str) -> dict[tuple[str, str, str], float]:
    """The figures of docs/gpu-memory.md: (model, recipe, part) -> GB."""
    return {(model, recipe, part): float(gb) for model, recipe, part, _, gb in _cells(text)}


def clips_of(text: str, model: str, recipe: str) -> dict[str, int]:
    """The clips at once of each stage in docs/gpu-memory.md."""
    return {
        part: int(clips.split(" x ")[0])
        for of, named, part, clips, _ in _cells(text)
        if (of, named) == (model, recipe) and " x " in clips
    }


def recipe_of(model: str) -> str:
    """The recipe that `distill` takes for a teacher without --recipe."""
    return MODELS[model].recipe


def recipes_of(model: str) -> list[str]:
    """The recipes that a teacher can take: one of single frames is for image VAEs."""
    return [name for name, recipe in RECIPES.items() if recipe.frames > 1 or MODELS[model].teacher.time_ratio == 1]


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
                trainer.fit_start(quiet)
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
