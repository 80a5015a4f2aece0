"""Intervals of a paired difference: every true difference that the test in significance.py would not reject.

So a test and its interval never disagree: at any level, 0 lies outside exactly where the p-value is below it.

- Right or wrong: McNemar's test asks whether the documents that differ are tosses of a fair coin. Clopper and Pearson's
  interval for that coin, times how many documents differ (its own exact bounds, one-sided), holds the difference. Both
  are exact, so together they are on the safe side: simulated coverage at 95 % is 95.6 % and more
  (tests/eval/results/test_intervals.py).
- Shares: the random signs of the test, turned for documents' differences to a true difference d instead of to 0. The
  spread between tasks counts as chance, as it does in the test.

Pure numpy and scipy, no files, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

from sa_eval.results import significance, stats
from sa_eval.results.stats import Interval, Stratum

ROUNDING = 9  # digits: an end that is 0 but for rounding is 0
EXACT, SIGNS, ALIKE = "exact McNemar, inverted", "random signs, inverted", "all documents differ alike"


def difference(strata: Sequence[Stratum], arm: str, base: str, alpha: float = significance.ALPHA) -> Interval:
    """Arm minus base with its interval at level 1 - alpha, within -1 and 1."""
    found = stats.document_differences(strata, arm, base)
    value = stats.stratified_mean(strata, arm) - stats.stratified_mean(strata, base)
    documents = np.concatenate(found)
    if significance.is_mcnemar(strata, arm, base):
        ends = _exact(len(documents), int((documents < 0).sum()), int((documents > 0).sum()), alpha)
        return Interval(value, *ends, method=EXACT)
    if len(documents) < significance.fewest_documents(alpha):
        return Interval(value, -1.0, 1.0, method=SIGNS)
    if np.ptp(documents) == 0:  # others may not differ, or twice as much; if these do not differ, others may fully
        reach = stats.unseen_share(len(documents), alpha) * (abs(value) or 1.0)
        return Interval(value, max(-1.0, value - reach), min(1.0, value + reach), method=ALIKE)
    down, up = _reaches(strata, arm, base, alpha)
    low, high = _extended(found, value, down, alpha, -1), _extended(found, value, up, alpha, 1)
    if significance.paired_test(strata, arm, base).p_value >= alpha:  # ties at 0 may fall on either side in rounding
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(value, round(low, ROUNDING), round(high, ROUNDING), method=SIGNS)


def _exact(documents: int, lost: int, won: int, alpha: float) -> tuple[float, float]:
    """Bounds of won minus lost, as shares of all documents: of the coin (won or lost?) times those that differ."""
    differ = lost + won
    fewest, most = _share(differ, documents, 2 * alpha)
    low, high = (2 * share - 1 for share in _share(won, differ, alpha))
    return low * (most if low < 0 else fewest), high * (most if high > 0 else fewest)


def _share(count: int, total: int, alpha: float) -> tuple[float, float]:
    """Clopper and Pearson's interval."""
    low = float(scipy_stats.beta.ppf(alpha / 2, count, total - count + 1)) if count else 0.0
    high = float(scipy_stats.beta.ppf(1 - alpha / 2, count + 1, total - count)) if count < total else 1.0
    return low, high


def _reaches(strata: Sequence[Stratum], arm: str, base: str, alpha: float) -> tuple[float, float]:
    """How far below and above the observed difference a true one may lie, as far as draws can tell.

    With signs s, documents' differences D of mean v and a true difference v + x, a draw is as far as what was observed
    where |mean(s (D - v - x))| >= |x|. With r = mean(s (D - v)) and g = mean(s) that is, for x > 0, x <= r / (1 + g)
    where r > 0 and x <= -r / (1 - g) where r < 0: a limit per draw, and their upper tail is the reach.
    """
    value = stats.stratified_mean(strata, arm) - stats.stratified_mean(strata, base)
    drawn = sum(one.flipped[:, one.arms.index(arm)] - one.flipped[:, one.arms.index(base)] for one in strata)
    signs = np.asarray(sum(one.flipped[:, -1] for one in strata), dtype=float) / len(strata)
    rest = np.asarray(drawn, dtype=float) / len(strata) - value * signs
    size, sign = np.abs(rest), np.where(rest < 0, -1.0, 1.0)
    same = np.abs(signs) > 1 - 1e-6  # all signs alike: as far as observed, whatever the true difference
    needed = math.ceil(alpha * (1 + stats.RESAMPLES) - 1)  # so many draws make the p-value alpha
    reaches = []
    for side in (-1, 1):
        limits = size / np.where(same, 1.0, 1 + side * sign * signs)
        limits[same] = np.inf
        reaches.append(float(np.sort(limits)[-max(1, needed)]))
    return reaches[0], reaches[1]


def _extended(found: Sequence[np.ndarray], value: float, reach: float, alpha: float, side: int) -> float:
    """The end of the interval on one side; where draws can't resolve alpha, the test's bound of its p-value does."""
    end = float(np.clip(value + side * reach, -1.0, 1.0))
    if alpha * (1 + stats.RESAMPLES) > 1 or end == side:
        return end

    def above(true: float) -> float:
        return significance.bound(found, true) - alpha

    if above(end) <= 0:
        return end
    return float(optimize.brentq(above, end, side, xtol=1e-5)) if above(side) < 0 else float(side)  # pyright: ignore[reportArgumentType]
