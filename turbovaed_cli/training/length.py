"""The length of a schedule in hours: steps of every stage are timed, and all stages are scaled to fill the time."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.machine.devices import empty_cache
from turbovaed_cli.reporting import Reporter
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.estimate import TIMED_STEPS, timed_steps
from turbovaed_cli.training.trainer import Trainer

SHARE_OF_STEPS = 0.97  # of the hours; the rest is for checkpoints, samples and pages


def stages_in_hours(trainer: Trainer, report: Reporter) -> tuple[Stage, ...]:
    """Return the stages scaled to the hours in the trainer's settings, by timed steps of each; nothing of the trainer changes.

    Of several ranks the slowest decides, so all get the same stages. Raises SettingsError if the time is too short.
    """
    settings = trainer.settings
    own = [seconds_per_step(trainer, index, report) for index in range(len(settings.stages))]
    return scaled_to_hours(settings, trainer.ranks.most(own))


def seconds_per_step(trainer: Trainer, index: int, report: Reporter) -> float:
    """Return the time of an optimizer step of a stage with its data, from steps on a copy of the training state.

    Steps count from when the batches that were read ahead during the first one are used up, or reading would seem free.
    """
    stage = trainer.settings.stages[index]
    report.note(f"`hours`: timing some steps of stage {stage.name}")
    ahead = -(-trainer.settings.workers // stage.accumulation)  # steps whose batches wait
    untimed, timed = 1 + ahead, max(TIMED_STEPS, 2 * ahead)
    stages = list(trainer.settings.stages)
    stages[index] = replace(stage, steps=max(stage.steps, untimed + timed))
    settings = replace(trainer.settings, stages=tuple(stages))
    trial = replace(trainer, state=copy.deepcopy(trainer.state), settings=settings)
    first = sum(stage.steps for stage in stages[:index])
    seconds, _ = timed_steps(trial, first, untimed, timed)
    del trial
    empty_cache(trainer.device)
    return seconds


def scaled_to_hours(settings: DistillSettings, seconds: Sequence[float]) -> tuple[Stage, ...]:
    """Return the stages that fill `settings.hours` if a step of each takes this many seconds.

    All are scaled by one factor, so each keeps its share of the time. Raises SettingsError if a stage would have no step.
    """
    budget = settings.hours * 3600 * SHARE_OF_STEPS
    whole = sum(stage.steps * time for stage, time in zip(settings.stages, seconds, strict=True))
    steps = int(settings.steps * budget / whole)
    if steps < len(seconds):
        raise SettingsError(
            f"`hours` {settings.hours:g} is too short for recipe {settings.recipe}: a step of each stage takes {sum(seconds):.3g} s",
            "raise `hours`; or `recipe` quick is the shortest",
        )
    scaled = settings.with_changes(steps=steps).stages
    return with_lengths(settings.stages, [stage.steps for stage in scaled])


def with_lengths(stages: Sequence[Stage], lengths: Sequence[int]) -> tuple[Stage, ...]:
    """Return stages of `lengths` steps; the warm-up of each is scaled by the same factor."""
    return tuple(
        replace(stage, steps=steps, warmup_steps=round(stage.warmup_steps * steps / stage.steps))
        for stage, steps in zip(stages, lengths, strict=True)
    )
