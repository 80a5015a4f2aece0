"""Owns the statistics: intervals of an accuracy and of a paired difference. Pure numpy and scipy, no files, no torch.

Documents are the unit: seeds are averaged per document before anything else. Tasks are strata: documents are drawn anew
within each task, and a family's accuracy is the mean of its tasks. One set of draws serves every arm, so a difference
is paired by construction and every arm's interval rests on the same documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
_CHUNK = 4_000_000  # weights held at once; MMLU has 14,000 documents


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; `method` says where the interval comes from."""

    value: float
    low: float
    high: float
    method: str

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(successes: float, total: int) -> tuple[float, float]:
    """Wilson's interval for a share of 0/1 scores; honest at 0 and at 100 %."""
    interval = scipy_stats.binomtest(round(successes), total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_means(strata: Sequence[np.ndarray], resamples: int = RESAMPLES) -> np.ndarray:
    """Resampled means [resamples, arms] of strata [documents, arms]: within each stratum, then the mean of the strata.

    Drawing n documents with replacement is a multinomial weight per document, so all arms are one matrix product
    (scipy.stats.bootstrap would resample each arm apart; for a single difference the two agree, see the tests).
    """
    total = np.zeros((resamples, strata[0].shape[1]))
    for position, scores in enumerate(strata):
        num_documents = len(scores)
        rng = np.random.default_rng([SEED, position, num_documents])
        step = max(1, _CHUNK // num_documents)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            weights = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=count)
            total[start : start + count] += (weights @ scores) / num_documents
    return total / len(strata)


def stratified_mean(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the strata's means, per arm."""
    return np.mean([scores.mean(axis=0) for scores in strata], axis=0)


def accuracy(strata: Sequence[np.ndarray], arm: int, means: np.ndarray) -> Interval:
    """Wilson where every score is 0 or 1 and strata weigh alike (and at the edges), the bootstrap otherwise."""
    scores = np.concatenate([stratum[:, arm] for stratum in strata])
    value = float(stratified_mean([stratum[:, [arm]] for stratum in strata])[0])
    alike = len({len(stratum) for stratum in strata}) == 1
    if (alike and np.isin(scores, (0.0, 1.0)).all()) or value in (0.0, 1.0):
        return Interval(value, *wilson(value * len(scores), len(scores)), method="wilson")
    return Interval(value, *_percentiles(means[:, arm]), method="bootstrap")


def paired_difference(strata: Sequence[np.ndarray], arm: int, base: int, means: np.ndarray) -> Interval:
    """Arm minus base on the same documents. When no document differs, the rule-of-three bound on how many could."""
    values = stratified_mean(strata)
    value = float(values[arm] - values[base])
    differences = np.concatenate([stratum[:, arm] - stratum[:, base] for stratum in strata])
    if np.ptp(differences) == 0:
        reach = 1 - (1 - LEVEL) ** (1 / len(differences))
        return Interval(value, max(-1.0, value - reach), min(1.0, value + reach), method="no pair differs")
    return Interval(value, *_percentiles(means[:, arm] - means[:, base]), method="paired bootstrap")


def between_seed_sd(per_seed: Sequence[float]) -> float | None:
    """Spread of the accuracy over sa seeds, apart from document sampling; None for a single seed."""
    return float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
