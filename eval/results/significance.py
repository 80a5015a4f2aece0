"""Tests of paired differences: p-values, their correction for number, and what a test could have found.

Both tests ask the same question: would the difference be this large if each document's difference could as well be the
opposite? Where every document is right or wrong, the answer is exact (McNemar). Otherwise it comes from 10,000 random
signs (the wild bootstrap of Wu 1986 and Liu 1988 under the null, which with binary scores *is* McNemar's test).
tests/eval/results/test_calibration.py measures how often this and other bootstraps call noise significant, and why
this one was chosen. Pure numpy and scipy, no files, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

from sa_eval.results import stats
from sa_eval.results.stats import Stratum

ALPHA = 0.05
POWER = 0.8
MCNEMAR, BOOTSTRAP, NONE = "exact McNemar", "paired bootstrap", "none"
_TIE = 1e-6  # means are kept in float32; equal ones count as equal
_Z_POWER = float(scipy_stats.norm.ppf(POWER))


@dataclass(frozen=True)
class Test:
    """Two-sided p-value of "no difference", before any correction."""

    name: str
    p_value: float


def paired_test(strata: Sequence[Stratum], arm: str, base: str) -> Test:
    """McNemar where scores are right or wrong and documents weigh alike, random signs otherwise."""
    if is_mcnemar(strata, arm, base):
        found = np.concatenate(stats.document_differences(strata, arm, base))
        return Test(MCNEMAR, mcnemar(int((found < 0).sum()), int((found > 0).sum())))
    return Test(BOOTSTRAP, _random_signs(strata, arm, base))


def mcnemar(lost: int, won: int) -> float:
    """Exact: the discordant documents are tosses of a fair coin."""
    return float(scipy_stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): all below 0.05 are true with 95 % confidence, however the tests depend."""
    ordered = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[ordered] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values)[ordered]))
    return adjusted.tolist()


def level(p_values: Sequence[float]) -> float:
    """The level at which Holm's correction tests in the end: what is significant has a p-value below it, nothing else.

    With r of m tests significant it is 0.05 / (m - r): every further one would have to be below that.
    """
    found = sum(value < ALPHA for value in holm(p_values))
    return ALPHA / max(1, len(p_values) - found)


def fewest_documents(alpha: float) -> int:
    """With fewer paired documents no result whatever is significant at `alpha`.

    The smallest p-value of both tests is 2 / 2**documents, when all documents differ and all the same way.
    """
    return math.floor(1 - math.log2(alpha)) + 1


def detectable(strata: Sequence[Stratum], arm: str, base: str, alpha: float = ALPHA) -> float | None:
    """The smallest true difference for which this test gives p < alpha in 80 of 100 such samples.

    It rests on how much the documents differed here: their discordance (McNemar) or their standard deviation.
    None when these documents could not show any difference.
    """
    found = stats.document_differences(strata, arm, base)
    documents = stats.num_documents(strata)
    if documents < fewest_documents(alpha):
        return None
    if is_mcnemar(strata, arm, base) or not any(values.any() for values in found):
        discordant = int(sum(np.count_nonzero(values) for values in found))
        return mcnemar_detectable(documents, discordant, alpha)
    sizes = np.array([len(one) for one in strata])
    spread = sum(_variance(one, arm, base) / len(one) for one in stats.collapsed(strata, (arm, base)))
    error, share = np.sqrt(spread) / len(strata), float((1 / sizes).sum()) / len(strata) ** 2
    # Random signs see the spread and the difference d itself: d = z_alpha sqrt(error^2 + share d^2) + z_power error.
    z_alpha = float(scipy_stats.norm.ppf(1 - alpha / 2))
    leading = 1 - z_alpha**2 * share
    if leading <= 0:
        return None
    inside = (_Z_POWER * error) ** 2 - leading * (_Z_POWER**2 - z_alpha**2) * error**2
    smallest = (_Z_POWER * error + np.sqrt(inside)) / leading
    return float(smallest) if smallest <= 1 else None


@cache
def mcnemar_power(documents: int, lost: float, won: float, alpha: float = ALPHA) -> float:
    """Chance that the exact test is significant when a document is lost or won with these probabilities."""
    share = lost + won
    low, high = scipy_stats.binom.ppf([1e-9, 1 - 1e-9], documents, share)
    discordant = np.arange(max(1, low), high + 1)
    most = scipy_stats.binom.ppf(alpha / 2, discordant, 0.5)  # the largest count of the rarer side that still is ...
    most -= 2 * scipy_stats.binom.cdf(most, discordant, 0.5) > alpha
    one_side = scipy_stats.binom.cdf(most, discordant, won / share)
    other_side = scipy_stats.binom.cdf(most, discordant, lost / share)
    return float((scipy_stats.binom.pmf(discordant, documents, share) * (one_side + other_side)).sum())


@cache
def mcnemar_detectable(documents: int, discordant: int, alpha: float = ALPHA) -> float:
    """Smallest true drop found with power 0.8 when as many documents differ as did here (or as many as must)."""
    share = discordant / documents

    def missing(drop: float) -> float:
        lost, won = max(drop, (share + drop) / 2), max(0.0, (share - drop) / 2)
        return POWER - mcnemar_power(documents, lost, won, alpha)

    return float(optimize.brentq(missing, 0.5 / documents, 1.0, xtol=1e-4))  # pyright: ignore[reportArgumentType]


def is_mcnemar(strata: Sequence[Stratum], arm: str, base: str) -> bool:
    return stats.alike(strata) and stats.is_binary(strata, arm, base)


def _variance(stratum: Stratum, arm: str, base: str) -> float:
    return float(np.var(stratum.of(arm) - stratum.of(base), ddof=1)) if len(stratum) > 1 else 1.0


def _random_signs(strata: Sequence[Stratum], arm: str, base: str) -> float:
    """Share of random signs that give a mean at least this far from zero, the observed one counted in."""
    found = stats.document_differences(strata, arm, base)
    value = abs(sum(values.mean() for values in found))
    drawn = sum(one.flipped[:, one.arms.index(arm)] - one.flipped[:, one.arms.index(base)] for one in strata)
    as_far = int((np.abs(drawn) >= value - _TIE * len(strata)).sum())
    p_value = (1 + as_far) / (1 + stats.RESAMPLES)
    return p_value if as_far else min(p_value, bound(found))


def bound(found: Sequence[np.ndarray], true: float = 0.0) -> float:
    """Chernoff's upper bound of the exact p-value of "the difference is `true`", from document differences by task.

    No draw reached the observed mean, so 10,000 draws only say "below 1 in 10,000". That could never be significant
    among hundreds of cells; the bound P(|S| >= v) <= 2 exp(sum log cosh(s a) - s v), good for every s > 0, can.
    """
    value = abs(sum(values.mean() - true for values in found))
    weights = np.concatenate([np.abs(values - true) / len(values) for values in found])
    weights, counts = np.unique(weights[weights > 0], return_counts=True)

    def exponent(log_s: float) -> float:
        product = np.exp(log_s) * weights
        return float(counts @ (np.logaddexp(product, -product) - np.log(2)) - np.exp(log_s) * value)

    start = np.log(value / (counts @ weights**2))  # Hoeffding's choice
    best = optimize.minimize_scalar(exponent, bounds=(start - 2, start + 8), method="bounded")
    return float(2 * np.exp(best.fun))
