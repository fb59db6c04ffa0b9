"""Design a student for a number of milliseconds: few candidates are timed on this machine, the others are predicted."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.machine.devices import wait_for
from turbovaed_cli.models.design import Budget, Candidate, Design, check_budget, design_student, latents_of, smallest_of_each
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.cost import StudentCost
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet

MOST_TIMED = 8  # students
MOST_SECONDS = 40.0  # after which no further student is timed
ENOUGH = 0.9  # of the budget: a student that takes as much is near enough, as times vary by a few percent
TURNS = 3  # timed decodes of each student, after a first one that counts for nothing
# Of a prediction before anything is measured. Only their ratio matters later, and it differs little between devices.
_MS_PER_GFLOP, _MS_PER_VALUE = 16.0, 4e-6

Measure = Callable[[Mapping[str, Any]], float]


class DecodeTimes:
    """Milliseconds of decodes by students of any config: measured of some, and of the others predicted from these."""

    def __init__(self) -> None:
        self._measured: dict[str, tuple[str, StudentCost, float]] = {}  # by config: layout, cost, milliseconds

    def add(self, config: Mapping[str, Any], cost: StudentCost, ms: float) -> None:
        """Add a measured time; of two for a config the smaller one counts."""
        before = self._measured.get(_key(config))
        self._measured[_key(config)] = (_layout(config), cost, ms if before is None else min(ms, before[2]))

    def is_measured(self, config: Mapping[str, Any]) -> bool:
        """Whether the time of this config was measured."""
        return _key(config) in self._measured

    def __call__(self, config: Mapping[str, Any], cost: StudentCost) -> float:
        """Return the measured milliseconds, or those of the nearest measured student of this layout, scaled by the costs."""
        if self.is_measured(config):
            return self._measured[_key(config)][2]
        alike = [one for one in self._measured.values() if one[0] == _layout(config)] or list(self._measured.values())
        if not alike:
            return _rough_ms(cost)
        _, nearest, ms = min(alike, key=lambda one: abs(math.log(_rough_ms(cost) / _rough_ms(one[1]))))
        return ms * _rough_ms(cost) / _rough_ms(nearest)


def _rough_ms(cost: StudentCost) -> float:
    return cost.gflops * _MS_PER_GFLOP + cost.values * _MS_PER_VALUE


def _key(config: Mapping[str, Any]) -> str:
    return repr(sorted(config.items()))


def _layout(config: Mapping[str, Any]) -> str:
    return str(config.get("decoder_tail", "convs"))


class Stopwatch:
    """Times decodes of one clip by students with random weights, in the fast form, in fp32."""

    def __init__(self, latents: tuple[int, int, int], device: torch.device) -> None:
        self.latents, self.device = latents, device
        self.before: tuple[Mapping[str, Any], StudentDecoder, Tensor] | None = None

    def __call__(self, config: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], float]]:
        """Return (config, milliseconds) of this student and of the one before, by turns, so that other load meets both alike."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            student = build_student(config).eval().to(self.device)
            latents = torch.randn(1, config["latent_channels"], *self.latents).to(self.device)
        student.fast = True
        new = (config, student, latents)
        rivals = [new] if self.before is None else [new, self.before]
        found: dict[str, tuple[Mapping[str, Any], float]] = {}
        for turn in range(TURNS + 1):
            for one, network, its_latents in rivals:
                ms = self._once(network, its_latents)
                if turn:  # the first one allocates and chooses kernels
                    found[_key(one)] = one, min(ms, found.get(_key(one), (one, math.inf))[1])
        self.before = new
        return found

    @torch.no_grad()
    def _once(self, student: StudentDecoder, latents: Tensor) -> float:
        wait_for(self.device)
        began = time.perf_counter()
        student.decode(latents)
        wait_for(self.device)
        return 1e3 * (time.perf_counter() - began)


def design_in_time(
    spec: ModelSpec, budget: Budget, device: torch.device, *, causal: bool = False, report: Reporter = quiet
) -> Design:
    """Do what `design_student` does for a budget with `ms`, the milliseconds of one decode on this `device`.

    The smallest student of each layout is timed, then the one that would be chosen by predictions from these, until one fits
    and takes ENOUGH of the budget: at most MOST_TIMED students more, in about MOST_SECONDS. Only a timed student is chosen.
    Times are the minimum of TURNS decodes by a student with random weights in the fast form.
    Raises the errors of `design_student`.
    """
    check_budget(spec, budget)
    began, times, watch = time.perf_counter(), DecodeTimes(), Stopwatch(latents_of(spec, budget), device)

    def measure(one: Candidate) -> None:
        report.note(f"timing a student of {one.params / 1e6:.3f} M parameters, {one.gflops:.1f} GFLOPs")
        for config, ms in watch(one.config).values():
            times.add(config, costs[_key(config)], ms)

    costs: dict[str, StudentCost] = {}

    def timing(config: Mapping[str, Any], cost: StudentCost) -> float:
        costs[_key(config)] = cost
        return times(config, cost)

    for one in smallest_of_each(spec, budget, causal=causal, timing=timing):
        measure(one)
    limit = float(budget.ms or math.inf)
    for _ in range(MOST_TIMED):
        chosen = design_student(spec, budget, causal=causal, timing=timing).chosen
        if times.is_measured(chosen.config) or time.perf_counter() - began > MOST_SECONDS:
            break
        measure(chosen)
        if ENOUGH * limit <= times(chosen.config, costs[_key(chosen.config)]) <= limit:
            break
    return _marked(design_student(spec, budget, causal=causal, timing=timing, only=times.is_measured), times)


def _marked(design: Design, times: DecodeTimes) -> Design:
    """Return a design whose candidates state whether their time was measured."""

    def mark(one: Candidate) -> Candidate:
        return replace(one, is_measured=times.is_measured(one.config))

    return replace(
        design,
        chosen=mark(design.chosen),
        table=tuple(map(mark, design.table)),
        published=mark(design.published),
        smallest=mark(design.smallest),
    )
