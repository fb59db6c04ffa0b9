"""The position of a step in a schedule: its stage, learning rate, forward passes and crops."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.latents.batch import Crop
from turbovaed_cli.registry.specs import TeacherSpec
from turbovaed_cli.stage import Stage


@dataclass(frozen=True)
class Position:
    """The position of an optimizer step: its stage, and the numbers of steps and forward passes before that stage."""

    stage: Stage
    index: int  # of the stage
    first_step: int
    first_pass: int


def position_at(stages: Sequence[Stage], step: int) -> Position:
    """Return the position of the optimizer step after `step` steps; past the end, the position of the last step."""
    first_step = first_pass = 0
    for index, stage in enumerate(stages):
        if step < first_step + stage.steps or index == len(stages) - 1:
            return Position(stage, index, first_step, first_pass)
        first_step += stage.steps
        first_pass += stage.steps * stage.accumulation
    raise AssertionError("a schedule has a stage")


def passes_from(stages: Sequence[Stage], step: int) -> Iterator[tuple[int, int]]:
    """Yield (index of the stage, number of the forward pass over the whole run) from optimizer step `step` to the end."""
    for current in range(step, sum(stage.steps for stage in stages)):
        at = position_at(stages, current)
        begin = at.first_pass + (current - at.first_step) * at.stage.accumulation
        yield from ((at.index, number) for number in range(begin, begin + at.stage.accumulation))


def learning_rate(stage: Stage, step: int) -> float:
    """Return the learning rate after `step` steps of a stage: a linear warm-up, then constant or cosine to `lr` * `lr_end`."""
    warmup = min(stage.warmup_steps, stage.steps // 10)
    rate = stage.lr * min(1.0, (step + 1) / max(warmup, 1))
    if stage.lr_schedule == "cosine":
        rate *= stage.lr_end + (1 - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * min(step / stage.steps, 1.0)))
    return rate


def crop_of(stage: Stage, teacher: TeacherSpec, size: tuple[int, int]) -> Crop | None:
    """Return the crops of a stage from clips of `size` (height, width) pixels; None if it takes whole clips.

    Raises SettingsError if `crop` is larger than the clips, ShapeError if the teacher does not take its size. `crop_latents`
    and `crop_side` are limited to the clip, and the margin to a third of a side that is cut.
    """
    ratio = teacher.space_ratio
    if stage.crop is not None:
        teacher.check_size(*stage.crop)
        if stage.crop[0] > size[0] or stage.crop[1] > size[1]:
            raise SettingsError(
                f"`crop` {stage.crop[1]}x{stage.crop[0]} is larger than the clips ({size[1]}x{size[0]})",
                "lower `crop`, or raise `size` (of cached clips, that of cache-latents)",
            )
        height, width = stage.crop
    elif stage.crop_latents:
        height, width = (min(stage.crop_latents * ratio, pixels) for pixels in size)
    elif stage.crop_side:
        height, width = (min(max(stage.crop_side // ratio, 1) * ratio, pixels) for pixels in size)
    else:
        return None
    if (height, width) == size:
        return None
    shortest_cut = min(side for side, whole in zip((height, width), size, strict=True) if side < whole)
    return Crop(height // ratio, width // ratio, ratio, min(stage.crop_margin, shortest_cut // ratio // 3))
