"""95 % confidence intervals of means and ratios over clips, from Student's t."""

import math
from collections.abc import Hashable, Sequence
from functools import cache

CONFIDENCE = 0.95
MIN_GROUPS = 5  # fewer make an interval too wide to be of use: for two it is 12.7 times the standard error


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], groups: Sequence[Hashable]
) -> tuple[float, float] | None:
    """Return the 95 % interval of sum(numerators) / sum(denominators) over independent groups; None with fewer than MIN_GROUPS.

    Clips of one video are not independent, so `groups` names the video of each clip. A mean is the ratio to ones. The ratio
    of student to teacher is *paired*: a clip that is hard for both moves neither end. Source: the linearised ratio
    estimator of survey sampling (Cochran 1977, sections 6.3 and 9A), with Student's t over the groups. For a mean of
    one clip per video it is the textbook interval, mean +- t * s / sqrt(n).
    """
    total = math.fsum(denominators)
    if total == 0:
        return None
    ratio = math.fsum(numerators) / total
    residuals: dict[Hashable, float] = {}
    for numerator, denominator, group in zip(numerators, denominators, groups, strict=True):
        residuals[group] = residuals.get(group, 0.0) + numerator - ratio * denominator
    n = len(residuals)
    if n < MIN_GROUPS or not math.isfinite(ratio):
        return None
    error = math.sqrt(n / (n - 1) * math.fsum(value**2 for value in residuals.values())) / abs(total)
    half = t_quantile(n - 1) * error
    return ratio - half, ratio + half


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return t with P(|T| <= t) = `confidence`, for T of Student's distribution with `degrees` of freedom."""
    low, high = 0.0, 1.0
    while _probability_within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _probability_within(t: float, degrees: int) -> float:
    """Return P(|T| <= t). Source: Abramowitz and Stegun, 26.7.3 (odd degrees) and 26.7.4 (even)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    if degrees % 2:
        term = total = math.cos(angle) if degrees > 1 else 0.0
        for k in range(3, degrees - 1, 2):
            term *= cosine_squared * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total)
    term = total = 1.0
    for k in range(2, degrees - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    return math.sin(angle) * total
