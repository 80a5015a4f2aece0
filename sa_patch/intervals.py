"""Intervals over seeds or passages: Student's for means, Wilson's for shares. Standard library only."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev

LEVEL = 0.95
Interval = tuple[float, float]


def of_mean(values: Sequence[float], *, low: float = 0.0, high: float = math.inf) -> Interval:
    """The 95 % interval of a mean, by Student's t over independent values, cut to what the mean can be.

    Returns:
        (nan, nan) for a single value, which says nothing about its own uncertainty.
    """
    if len(values) < 2:
        return math.nan, math.nan
    mean = fmean(values)
    half = quantile((1 + LEVEL) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return max(low, mean - half), min(high, mean + half)


def of_seeds(values: Sequence[float], *, random: bool, high: float = 1.0) -> Interval:
    """`of_mean` over seeds of a figure between 0 and `high`; the figure itself where nothing is random."""
    return of_mean(values, high=high) if random else (values[0], values[0])


def of_share(count: int, total: int) -> Interval:
    """Wilson's 95 % interval of a share, from `count` of `total` seeds."""
    z, share = NormalDist().inv_cdf((1 + LEVEL) / 2), count / total
    centre, scale = share + z * z / (2 * total), 1 + z * z / total
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@cache
def quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t above its median, by bisection of the distribution function."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _below(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite sums of Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if freedom == 1:
        total = 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    between = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + between) / 2
