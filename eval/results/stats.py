"""Estimates of an accuracy with their intervals, and the draws that intervals and tests share. No files, no torch.

Documents are the unit: seeds are averaged per document before anything else. Tasks are strata: documents are drawn anew
within each task, and a family's accuracy is the mean of its tasks. A task's draws serve all its arms, so a difference
is paired by construction, and they depend on the task alone: what else runs changes no interval.
Tests of differences are in significance.py, their intervals in intervals.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True, eq=False)
class Stratum:
    """The documents of one task that all of `arms` answered; `scores` is [documents, arms], seeds averaged."""

    name: str  # seeds the draws
    arms: tuple[str, ...]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, arm: str) -> np.ndarray:
        """[documents]"""
        return self.scores[:, self.arms.index(arm)]

    @cached_property
    def resampled(self) -> np.ndarray:
        """Means [resamples, arms] of documents drawn anew with replacement, one less than there are.

        Means of n out of n vary by (n - 1) / n too little. With six documents per task that is a sixth, summed over
        tasks it stays a sixth however many there are; n - 1 out of n (Rao and Wu 1988) vary as they should.
        """
        rng, (documents, arms) = self._rng("resampled"), self.scores.shape
        means = np.empty((RESAMPLES, arms), dtype=np.float32)
        for rows in self._chunks():
            count = rows.stop - rows.start
            drawn = rng.integers(0, documents, size=(count, documents - 1), dtype=np.int32)
            drawn += (np.arange(count, dtype=np.int32) * documents)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=count * documents).reshape(count, documents)
            means[rows] = weights.astype(np.float32) @ self.scores.astype(np.float32) / (documents - 1)
        return means

    @cached_property
    def flipped(self) -> np.ndarray:
        """Means [resamples, arms + 1] with a random sign per document, the same for all arms; last, of the signs.

        Of a difference of two arms: the means it would have if each document's difference could as well be the
        opposite, which is what "no difference" means for pairs.
        """
        rng, (documents, arms) = self._rng("flipped"), self.scores.shape
        scores = np.column_stack([self.scores, np.ones(documents)]).astype(np.float32)
        means = np.empty((RESAMPLES, arms + 1), dtype=np.float32)
        for rows in self._chunks():
            count = rows.stop - rows.start
            octets = rng.integers(0, 256, size=(count, (documents + 7) // 8), dtype=np.uint8)
            positive = np.unpackbits(octets, axis=1, count=documents).astype(np.float32)
            means[rows] = (2 * positive @ scores - scores.sum(axis=0)) / documents
        return means

    def _rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(f"{purpose} {self.name}".encode()), len(self)])

    def _chunks(self) -> list[slice]:
        step = max(1, _CHUNK // len(self))
        return [slice(start, min(start + step, RESAMPLES)) for start in range(0, RESAMPLES, step)]


def num_documents(strata: Sequence[Stratum]) -> int:
    return sum(len(stratum) for stratum in strata)


def alike(strata: Sequence[Stratum]) -> bool:
    """Whether all documents weigh the same in the mean of the tasks."""
    return len({len(stratum) for stratum in strata}) == 1


def is_binary(strata: Sequence[Stratum], *arms: str) -> bool:
    """Whether these arms got every document right or wrong: seeds that disagree give shares."""
    return all(bool(np.isin(stratum.of(arm), (0.0, 1.0)).all()) for stratum in strata for arm in arms)


def document_differences(strata: Sequence[Stratum], arm: str, base: str) -> list[np.ndarray]:
    """Score under `arm` minus score under `base`: [documents] for every stratum."""
    return [stratum.of(arm) - stratum.of(base) for stratum in strata]


def stratified_mean(strata: Sequence[Stratum], arm: str) -> float:
    """Mean of the tasks' means."""
    return float(np.mean([stratum.of(arm).mean() for stratum in strata]))


def wilson(successes: float, total: int) -> tuple[float, float]:
    """Wilson's interval for a share of 0/1 scores; honest at 0 and at 100 %."""
    interval = scipy_stats.binomtest(round(successes), total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(strata: Sequence[Stratum], arm: str) -> Interval:
    """Wilson where every score is 0 or 1 and documents weigh alike (and at the edges), the bootstrap otherwise."""
    value, documents = stratified_mean(strata, arm), num_documents(strata)
    if (alike(strata) and is_binary(strata, arm)) or value in (0.0, 1.0):
        return Interval(value, *wilson(value * documents, documents), method="wilson")
    if documents == 1:
        return Interval(value, 0.0, 1.0, method="one document")
    if all(np.ptp(stratum.of(arm)) == 0 for stratum in strata):
        reach = unseen_share(documents, 1 - LEVEL)
        return Interval(value, max(0.0, value - reach), min(1.0, value + reach), method="no document differs")
    return Interval(value, *_percentiles(_resampled(strata, arm)), method="bootstrap")


def unseen_share(documents: int, alpha: float) -> float:
    """How many documents of a kind that was not seen there may be: more of them would show with chance 1 - alpha."""
    return 1 - alpha ** (1 / documents)


def sampling_sd(strata: Sequence[Stratum], arm: str) -> float | None:
    """How much the accuracy would vary with other documents of these tasks; None for a single document."""
    return None if num_documents(strata) == 1 else float(np.std(_resampled(strata, arm)))


def between_seed_sd(per_seed: Sequence[float]) -> float | None:
    """Spread of the accuracy over sa seeds, apart from document sampling; None for a single seed."""
    return float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None


def seeds_vary_more(per_seed: Sequence[float], sampling_sd: float) -> bool:
    """Whether seeds differ by more than documents do: then an interval over documents says too little.

    Were a seed nothing but noise in every answer, the variance of the mean over S seeds would be no larger than
    sampling_sd squared; (S - 1) times their ratio is held against the 95 % point of chi-square with S - 1.
    """
    seeds = len(per_seed)
    limit = float(scipy_stats.chi2.ppf(LEVEL, seeds - 1)) / (seeds - 1)
    return float(np.var(per_seed, ddof=1)) / seeds > limit * sampling_sd**2


def _resampled(strata: Sequence[Stratum], arm: str) -> np.ndarray:
    """Resampled means of the tasks' means [resamples]."""
    total = np.zeros(RESAMPLES)
    for stratum in collapsed(strata, (arm,)):
        total += stratum.resampled[:, stratum.arms.index(arm)]
    return total / len(strata)


def collapsed(strata: Sequence[Stratum], arms: Sequence[str]) -> list[Stratum]:
    """Strata of at least two documents, whose means have the same sum.

    A single document shows no spread, so tasks with one document are taken for one task (with the smallest other one,
    when there is just one such): the spread between the tasks is counted then, which errs on the safe side
    ("collapsed strata", Cochran 1977, section 5A.12).
    """
    ordered = sorted(strata, key=len)
    single = [stratum for stratum in ordered if len(stratum) == 1]
    if not single or len(strata) == 1:
        return list(strata)
    count = max(2, len(single))
    joined, rest = ordered[:count], ordered[count:]
    documents = num_documents(joined)
    scores = [np.stack([one.of(arm) for arm in arms], axis=1) * documents / len(one) for one in joined]
    name = " ".join(stratum.name for stratum in joined)
    return [*rest, Stratum(name, tuple(arms), np.concatenate(scores))]


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
