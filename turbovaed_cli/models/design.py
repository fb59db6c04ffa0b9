"""Design a student for a budget: choose channels and layers so that parameters and FLOPs stay below the user's limits.

Costs are counted in closed form, so that thousands of candidates take a fraction of a second. FLOPs are those of the
convolutions, two per multiply-add, for one decode of one clip, as torch.utils.flop_counter counts them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.teacher import decoder_params_of
from turbovaed_cli.registry.cost import StudentCost, cost_of
from turbovaed_cli.registry.members import nearest, widths_of
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import ClipSettings

WIDEST, DEPTHS = 2.0, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # factors of the published channels and layers
FILLED = 0.95  # a candidate uses the budget if it uses this share of the most that any candidate does


@dataclass(frozen=True)
class Budget:
    """The limits of a student: decoder parameters, GFLOPs of one decode of `frames` x `size` pixels, or both."""

    params: int | None = None
    gflops: float | None = None
    frames: int = ClipSettings.frames
    size: tuple[int, int] = ClipSettings.size  # (height, width)

    def share(self, cost: StudentCost) -> float:
        """Return the share of the budget that `cost` takes, by the tighter limit; above 1 it does not fit."""
        return max(cost.params / self.params if self.params else 0.0, cost.gflops / self.gflops if self.gflops else 0.0)

    def __str__(self) -> str:
        """Return the limits as text: '8 M parameters and 100 GFLOPs'."""
        limits = [f"{count(self.params)} parameters"] if self.params else []
        return " and ".join(limits + ([f"{self.gflops:g} GFLOPs"] if self.gflops else []))

    @property
    def decode(self) -> str:
        """The decode whose GFLOPs are counted: 'one decode of 17 frames of 256x256'."""
        return f"one decode of {self.frames} frames of {self.size[1]}x{self.size[0]}"


@dataclass(frozen=True)
class Candidate:
    """One student, its lists output-first as published."""

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    params: int
    gflops: float
    of_published: float  # its parameters as a share of the published student's
    of_teacher: float | None  # and of the teacher's decoder; None if that is not on this machine
    change: float  # distance from the published one, see `change_of`
    used: float  # share of the budget, by the tighter limit
    fits: bool


@dataclass(frozen=True)
class Design:
    """The student chosen for a budget, with the candidates around it."""

    model: str
    budget: Budget
    config: dict[str, Any]  # of the chosen student, in the published key names: build_student takes it
    chosen: Candidate
    table: tuple[Candidate, ...]  # around the choice, by parameters; the published student among them
    published: Candidate
    smallest: Candidate  # the one that takes the smallest share of this budget
    num_candidates: int


def design_student(spec: ModelSpec, budget: Budget) -> Design:
    """Pick channels and layers of a student of `spec`'s teacher that costs no more than `budget`.

    Candidates are the published student with all its channels scaled by one factor (up to 2x) and all its layers by another
    (0.25x to 1.5x). Those larger than the teacher's decoder are left out, unless all are. Upsampling, depthwise blocks and
    tail stay: the teacher's ratios and the published recipe fix them.

    The rule: of the candidates that fit, keep those that use the budget. They need at least 95 % of what the largest of them
    uses, by the tighter limit. Of these, take the one that differs least from the published student; of equals, the one with
    the most parameters. The reason: quality grows with cost, so unused budget is lost quality. The published proportions
    between the blocks are the only ones with measured results, so they should change little. The last 5 % of the budget are
    not worth a larger change.

    Raises SettingsError for a budget without limits above 0, or that no candidate meets (naming the smallest one and its
    cost); FrameCountError or ShapeError if the teacher cannot make `budget.frames` or `budget.size`.
    """
    limits = [limit for limit in (budget.params, budget.gflops) if limit is not None]
    if not limits or not all(0 < limit < math.inf for limit in limits):
        raise SettingsError("a student is designed for a number of parameters or GFLOPs above 0", "such as `params` 8M")
    spec.teacher.check_frames(budget.frames)
    spec.teacher.check_size(*budget.size)
    height, width = (pixels // spec.teacher.space_ratio for pixels in budget.size)
    latents = (spec.teacher.latent_frames(budget.frames), height, width)

    candidate = _candidates_for(spec, budget, latents)
    published = candidate(spec.student.config["decoder_block_out_channels"], spec.student.config["decoder_layers_per_block"])
    candidates = [candidate(channels, layers) for channels in _widths(spec) for layers in _depths(spec)]
    candidates = [one for one in candidates if one.of_teacher is None or one.of_teacher < 1] or candidates
    smallest = min(candidates, key=lambda one: (one.used, one.params))
    fitting = [one for one in candidates if one.fits]
    if not fitting:
        raise SettingsError(
            f"no student of {spec.name} fits {budget}; the smallest has channels {listed(smallest.channels)}, layers "
            f"{listed(smallest.layers)}: {count(smallest.params)} parameters, {smallest.gflops:.1f} GFLOPs for {budget.decode}",
            "raise " + " and ".join(_least_flags(budget, smallest)) + ", or give another `student_config` FILE",
        )
    enough = FILLED * max(one.used for one in fitting)
    chosen = min((one for one in fitting if one.used >= enough), key=lambda one: (one.change, -one.params))
    table = _around(chosen, candidates, published)
    return Design(
        spec.name, budget, _config_of(spec, chosen.channels, chosen.layers), chosen, table, published, smallest, len(candidates)
    )


def _candidates_for(
    spec: ModelSpec, budget: Budget, latents: tuple[int, int, int]
) -> Callable[[Sequence[int], Sequence[int]], Candidate]:
    """Return a function that makes a candidate of channels and layers, with its cost and its share of the budget."""
    published_cost = cost_of(spec.student.config, latents)
    teacher_params = decoder_params_of(spec)

    def candidate(channels: Sequence[int], layers: Sequence[int]) -> Candidate:
        cost = cost_of(_config_of(spec, channels, layers), latents)
        used = budget.share(cost)
        return Candidate(
            tuple(channels),
            tuple(layers),
            cost.params,
            cost.gflops,
            cost.params / published_cost.params,
            cost.params / teacher_params if teacher_params else None,
            change_of(spec, channels, layers),
            used,
            used <= 1,
        )

    return candidate


def suggested_params(spec: ModelSpec, teacher_params: int) -> int:
    """Return a --params that works: half of the teacher's decoder, or the size of the smallest candidate if that is more."""
    sizes = [
        cost_of(_config_of(spec, channels, layers), (1, 1, 1)).params for channels in _widths(spec) for layers in _depths(spec)
    ]
    return max(teacher_params // 2, min(sizes))


def _config_of(spec: ModelSpec, channels: Sequence[int], layers: Sequence[int]) -> dict[str, Any]:
    lists = {"decoder_block_out_channels": tuple(channels), "decoder_layers_per_block": tuple(layers)}
    return {**spec.student.config, **lists, "latent_channels": spec.teacher.latent_channels}


def change_of(spec: ModelSpec, channels: Sequence[int], layers: Sequence[int]) -> float:
    """Return the distance from the published student in octaves: the root mean square of log2(ours / published).

    It is taken over channels and over layers plus one.
    """
    config = spec.student.config
    pairs = [
        *zip(channels, config["decoder_block_out_channels"], strict=True),
        *((ours + 1, layer + 1) for ours, layer in zip(layers, config["decoder_layers_per_block"], strict=True)),
    ]
    return math.sqrt(sum(math.log2(ours / published) ** 2 for ours, published in pairs) / len(pairs))


def _widths(spec: ModelSpec) -> list[tuple[int, ...]]:
    return widths_of(spec.student.config, spec.teacher.latent_channels, WIDEST)


def _depths(spec: ModelSpec) -> list[tuple[int, ...]]:
    published = spec.student.config["decoder_layers_per_block"]
    return list(
        dict.fromkeys(tuple(max(min(layers, 1), nearest(layers * factor, 1)) for layers in published) for factor in DEPTHS)
    )


def _around(chosen: Candidate, candidates: Sequence[Candidate], published: Candidate) -> tuple[Candidate, ...]:
    """Return the choice, two neighbours in width on each side, the fullest fit of every other depth, and the published one."""
    siblings = [one for one in candidates if one.layers == chosen.layers]
    place = siblings.index(chosen)
    rows = siblings[max(place - 2, 0) : place + 3]
    for layers in dict.fromkeys(one.layers for one in candidates):
        fitting = [one for one in candidates if one.layers == layers and one.fits]
        if fitting and layers != chosen.layers:
            rows.append(max(fitting, key=lambda one: one.used))
    if published not in rows:
        rows.append(published)
    return tuple(sorted(rows, key=lambda one: (one.params, one.gflops)))


def as_sentence(design: Design) -> str:
    """Return a sentence about the rule of the choice and the smallest possible student."""
    least = design.smallest
    return (
        f"chosen from {design.num_candidates} candidates: of those that use the budget, the one whose channels and layers differ least "
        f"from the published student's (by the factor in the column change, on average); GFLOPs are for {design.budget.decode}; "
        f"the smallest possible has {count(least.params)} parameters, {least.gflops:.1f} GFLOPs"
    )


def listed(numbers: Sequence[int]) -> str:
    """Return numbers as text: "64,128" for (64, 128)."""
    return ",".join(map(str, numbers))


def count(number: int) -> str:
    """Return a number as text: "7.574 M" for whole thousands from 1e6 on, else with commas: "7,573,858", "800,000"."""
    return f"{number / 1e6:.7g} M" if number >= 1e6 and number % 1000 == 0 else f"{number:,}"


def _least_flags(budget: Budget, smallest: Candidate) -> list[str]:
    flags = [f"`params` to {smallest.params}"] if budget.params and smallest.params > budget.params else []
    if budget.gflops and smallest.gflops > budget.gflops:
        flags.append(f"`gflops` to {math.ceil(smallest.gflops * 10) / 10:g}")
    return flags
