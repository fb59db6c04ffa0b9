"""Design a student for a budget: choose convolutions, channels and layers so that its cost stays below the user's limits.

Costs are counted in closed form (registry/cost.py), so that thousands of candidates take a fraction of a second. Times are
predicted from costs by a function that `design_in_time` fits to measurements.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.teacher import decoder_params_of
from turbovaed_cli.registry.cost import StudentCost, cost_of
from turbovaed_cli.registry.members import (
    FULL,
    RULES,
    causal_config,
    light_config,
    member_of,
    members_of,
    nearest,
    widths_of,
)
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import ClipSettings

WIDEST, DEPTHS = 2.0, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # factors of the published channels and layers
FILLED = 0.95  # a candidate uses the budget if it uses this share of the most that any candidate does
LIGHT = "light"  # the layout of `lite` and `nano`: see registry/members.py; that of the published student is "full"
LIGHT_CHANGE = 0.25  # octaves: the distance of the light layout from the published one

Config = Mapping[str, Any]
Timing = Callable[[Config, StudentCost], float]  # milliseconds of a decode by a student of this config and cost


@dataclass(frozen=True)
class Budget:
    """The limits of a student: its parameters, the GFLOPs of one decode of `frames` x `size` pixels, the milliseconds of it."""

    params: int | None = None
    gflops: float | None = None
    frames: int = ClipSettings.frames
    size: tuple[int, int] = ClipSettings.size  # (height, width)
    ms: float | None = None

    def share(self, cost: StudentCost, ms: float | None = None) -> float:
        """Return the share of the budget that a student takes, by the tightest limit; above 1 it does not fit."""
        found = ((cost.params, self.params), (cost.gflops, self.gflops), (ms, self.ms))
        return max(value / limit if value is not None and limit else 0.0 for value, limit in found)

    @property
    def limits(self) -> list[float]:
        """The limits that there are."""
        return [limit for limit in (self.params, self.gflops, self.ms) if limit is not None]

    def __str__(self) -> str:
        """Return the limits as text: '8 M parameters and 100 GFLOPs'."""
        texts = [f"{count(self.params)} parameters"] if self.params else []
        texts += [f"{self.gflops:g} GFLOPs"] if self.gflops else []
        return " and ".join(texts + ([f"{self.ms:g} ms"] if self.ms else []))

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
    used: float  # share of the budget, by the tightest limit
    fits: bool
    layout: str = FULL  # or LIGHT
    name: str | None = None  # of a member of the teacher's family of students
    ms: float | None = None  # of one decode, for a budget in milliseconds
    is_measured: bool = False  # or predicted from the times of others
    config: dict[str, Any] = field(default_factory=dict)  # in the published key names: build_student takes it


@dataclass(frozen=True)
class Design:
    """The student chosen for a budget, with the candidates around it."""

    model: str
    budget: Budget
    config: dict[str, Any]  # of the chosen student
    chosen: Candidate
    table: tuple[Candidate, ...]  # around the choice, by parameters; the family's own students among them
    published: Candidate
    smallest: Candidate  # the one that takes the smallest share of this budget
    num_candidates: int


def design_student(
    spec: ModelSpec,
    budget: Budget,
    *,
    causal: bool = False,
    timing: Timing | None = None,
    only: Callable[[Config], bool] | None = None,
) -> Design:
    """Pick convolutions, channels and layers of a student of `spec`'s teacher that costs no more than `budget`.

    Candidates have the layout of the published student, or the light one: cheaper convolutions and a tail of patches
    (registry/members.py). In each, all channels are scaled by one factor (up to 2x) and all layers by another (0.25x to 1.5x);
    the students of the family are candidates too. Those larger than the teacher's decoder are left out, unless all are.
    With `causal`, none sees a later frame, which changes no cost.

    The rule: of the candidates that fit, keep those that use the budget. They need at least 95 % of what the largest of them
    uses, by the tightest limit. Of these, take the one that differs least from the published student; of equals, the one with
    the most parameters. The light layout counts as a change of a quarter of an octave, so it is taken if the published layout would
    have to become much narrower for the same cost. The reason: quality grows with cost, so unused budget is lost quality. The
    published proportions between the blocks are the only ones with measured results, so they should change little. The last
    5 % of the budget are not worth a larger change.

    `timing` predicts milliseconds, for a budget with `ms`; `only` the configs for which it is true are chosen. Raises SettingsError for a budget without limits above 0, or that no
    candidate meets (naming the smallest one and its cost), and for a row that is no full student's; FrameCountError or
    ShapeError if the teacher cannot make `budget.frames` or `budget.size`.
    """
    check_budget(spec, budget)
    every = _candidates(spec, budget, timing, causal=causal)
    published = every[0]
    candidates = [one for one in every if one.of_teacher is None or one.of_teacher < 1] or every
    smallest = min(candidates, key=lambda one: (one.used, one.params))
    fitting = [one for one in candidates if one.fits]
    if not fitting:
        raise _nothing_fits(spec, budget, smallest)
    choice = [one for one in fitting if only is None or only(one.config)] or fitting
    enough = FILLED * max(one.used for one in choice)
    chosen = min((one for one in choice if one.used >= enough), key=lambda one: (one.change, -one.params))
    table = _around(chosen, candidates, [one for one in every if one.name])
    return Design(spec.name, budget, chosen.config, chosen, table, published, smallest, len(candidates))


def smallest_of_each(spec: ModelSpec, budget: Budget, *, causal: bool, timing: Timing) -> list[Candidate]:
    """Return the candidate of each layout with the fewest GFLOPs, whatever the limits."""
    candidates = _candidates(spec, budget, timing, causal=causal)
    return [min((one for one in candidates if one.layout == layout), key=lambda one: one.gflops) for layout in (FULL, LIGHT)]


def check_budget(spec: ModelSpec, budget: Budget) -> None:
    """Raise the errors of `design_student` that do not depend on candidates."""
    if not budget.limits or not all(0 < limit < math.inf for limit in budget.limits):
        raise SettingsError(
            "a student is designed for a number of parameters, GFLOPs or milliseconds above 0", "such as `params` 8M"
        )
    if spec.member in RULES:
        raise SettingsError(f"{spec.name} is a designed student already", f"design one of {spec.teacher_name}")
    spec.teacher.check_frames(budget.frames)
    spec.teacher.check_size(*budget.size)


def latents_of(spec: ModelSpec, budget: Budget) -> tuple[int, int, int]:
    """Return (t, h, w) of the latents of the decode that a budget is for."""
    height, width = (pixels // spec.teacher.space_ratio for pixels in budget.size)
    return spec.teacher.latent_frames(budget.frames), height, width


def _configs(spec: ModelSpec, base: Config) -> list[tuple[str, dict[str, Any]]]:
    """Return (layout, config) of every candidate."""
    layouts = ((FULL, dict(base)), (LIGHT, light_config(base)))
    return [
        (
            layout,
            {**config, "decoder_block_out_channels": channels, "decoder_layers_per_block": layers},
        )
        for layout, config in layouts
        for channels in widths_of(config, spec.teacher.latent_channels, WIDEST)
        for layers in _depths(config)
    ]


def _family(spec: ModelSpec, base: Config) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, config) of the smaller students of the family, causal if `base` is."""
    causal = {"decoder_causal": True} if base.get("decoder_causal") else {}
    full = replace(spec, name=spec.teacher_name, member=FULL)
    found = [member_of(full, member) for member in members_of(spec) if member in RULES]
    return [(one.name, {**one.student.config, **causal}) for one in found]


def _candidates(spec: ModelSpec, budget: Budget, timing: Timing | None, *, causal: bool) -> list[Candidate]:
    """Return every candidate once: the published student, the smaller ones of the family, then all others."""
    candidate = _candidates_for(spec, budget, timing)
    base = causal_config(spec.student.config) if causal else dict(spec.student.config)
    family = [(FULL, base, spec.teacher_name), *((LIGHT, config, name) for name, config in _family(spec, base))]
    found: dict[tuple[object, ...], Candidate] = {}
    for layout, config, name in [*family, *((layout, config, None) for layout, config in _configs(spec, base))]:
        one = candidate(layout, base, config, name)
        found.setdefault(_key(one), one)
    return list(found.values())


def _candidates_for(spec: ModelSpec, budget: Budget, timing: Timing | None) -> Callable[..., Candidate]:
    """Return a function that makes a candidate of (layout, base, config, name), with its cost and its share of the budget."""
    latents, teacher_params = latents_of(spec, budget), decoder_params_of(spec)
    published_cost = cost_of(spec.student.config, latents)

    def candidate(layout: str, base: Config, config: Config, name: str | None = None) -> Candidate:
        config = {**config, "latent_channels": spec.teacher.latent_channels}
        cost = cost_of(config, latents)
        ms = timing(config, cost) if timing else None
        used = budget.share(cost, ms)
        return Candidate(
            tuple(config["decoder_block_out_channels"]),
            tuple(config["decoder_layers_per_block"]),
            cost.params,
            cost.gflops,
            cost.params / published_cost.params,
            cost.params / teacher_params if teacher_params else None,
            change_of(base if layout == FULL else light_config(base), config) + (LIGHT_CHANGE if layout == LIGHT else 0),
            used,
            used <= 1,
            layout,
            name,
            ms,
            config=config,
        )

    return candidate


def _nothing_fits(spec: ModelSpec, budget: Budget, smallest: Candidate) -> SettingsError:
    time = f", {smallest.ms:.0f} ms" if smallest.ms is not None else ""
    return SettingsError(
        f"no student of {spec.name} fits {budget}; the smallest has channels {listed(smallest.channels)}, layers "
        f"{listed(smallest.layers)}: {count(smallest.params)} parameters, {smallest.gflops:.1f} GFLOPs{time} for {budget.decode}",
        "raise " + " and ".join(_least_flags(budget, smallest)) + ", or give another `student_config` FILE",
    )


def suggested_params(spec: ModelSpec, teacher_params: int) -> int:
    """Return a --params that works: half of the teacher's decoder, or the size of the smallest candidate if that is more."""
    latent_channels = {"latent_channels": spec.teacher.latent_channels}
    sizes = [cost_of({**config, **latent_channels}, (1, 1, 1)).params for _, config in _configs(spec, spec.student.config)]
    return max(teacher_params // 2, min(sizes))


def change_of(base: Config, config: Config) -> float:
    """Return the distance of a config from `base` in octaves: the root mean square of log2(ours / base's).

    It is taken over channels and over layers plus one.
    """
    names = ("decoder_block_out_channels", "decoder_layers_per_block")
    pairs = [(ours + i, its + i) for i, name in enumerate(names) for ours, its in zip(config[name], base[name], strict=True)]
    return math.sqrt(sum(math.log2(ours / its) ** 2 for ours, its in pairs) / len(pairs))


def _depths(config: Config) -> list[tuple[int, ...]]:
    layers_of_all = config["decoder_layers_per_block"]
    return list(
        dict.fromkeys(tuple(max(min(layers, 1), nearest(layers * factor, 1)) for layers in layers_of_all) for factor in DEPTHS)
    )


def _around(chosen: Candidate, candidates: Sequence[Candidate], named: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the choice, two neighbours in width on each side, the fullest fit of every other depth and layout, and `named`."""
    siblings = [one for one in candidates if (one.layout, one.layers) == (chosen.layout, chosen.layers)]
    siblings.sort(key=lambda one: one.params)
    place = siblings.index(chosen)
    rows = siblings[max(place - 2, 0) : place + 3]
    fitting = [one for one in candidates if one.fits]
    for layers in dict.fromkeys(one.layers for one in candidates if one.layout == chosen.layout):
        alike = [one for one in fitting if (one.layout, one.layers) == (chosen.layout, layers)]
        if alike and layers != chosen.layers:
            rows.append(max(alike, key=lambda one: one.used))
    if others := [one for one in fitting if one.layout != chosen.layout]:
        enough = FILLED * max(one.used for one in others)
        rows.append(min((one for one in others if one.used >= enough), key=lambda one: one.change))
    shown = {_key(one): one for one in (*rows, *named)}
    return tuple(sorted(shown.values(), key=lambda one: (one.params, one.gflops)))


def _key(one: Candidate) -> tuple[object, ...]:
    return one.layout, one.channels, one.layers


def as_sentence(design: Design) -> str:
    """Return a sentence about the rule of the choice and the smallest possible student."""
    least = design.smallest
    time = f", {least.ms:.0f} ms (~ before a time: predicted)" if least.ms is not None else ""
    return (
        f"chosen from {design.num_candidates} candidates: of those that use the budget, the one that differs least from the "
        f"published student in channels and layers (by the factor in the column change, on average), and in its layout; GFLOPs are "
        f"for {design.budget.decode}; the smallest possible has {count(least.params)} parameters, {least.gflops:.1f} GFLOPs{time}"
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
    if budget.ms and smallest.ms and smallest.ms > budget.ms:
        flags.append(f"`ms` to {math.ceil(smallest.ms * 1.1)}")
    return flags
