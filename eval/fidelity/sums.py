"""What the measured sums become: means with intervals, and the CSV. No torch, no files.

Passages are the unit: an interval says how much would change with other passages like these. Seeds are averaged per
passage first, and their spread is told apart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import stats as scipy_stats

from sa_eval.fidelity import buckets
from sa_eval.fidelity.head import AGREE, KL, NATS, NATS_FULL
from sa_eval.fidelity.layer_errors import ATTENTION, DIFFERENCE, ISOLATED, KEPT, MASS, NORM, RESIDUAL, LayerSums
from sa_eval.fidelity.measuring import COUNT, ArmAtLength
from sa_eval.fidelity.types import (
    Cell,
    CopyRow,
    Fidelity,
    Interval,
    Intervals,
    LayerMeans,
    LayerRow,
    MassRow,
    Means,
    Overall,
    PartMeans,
    PassageRow,
    PositionRow,
    SeedRow,
    Seeds,
)
from sa_eval.records.types import Facts, plain
from sa_eval.results import stats

ERRORS = ("isolated_error", "attention_error", "residual_error")
DRAWN_AT_ONCE = 4_000_000
CSV_COLUMNS = (
    *("arm", "length", "by", "bucket", "predictions", "kl", "agreement", "nats", "perplexity", "perplexity_full"),
    *("kept_mass", "share_of_mass", *ERRORS),
)


class Bounds(TypedDict):
    """A bucket of distances: its name and both ends in tokens, included."""

    bucket: str
    low: int | None
    high: int | None


def summarise(found: ArmAtLength) -> Cell:
    """One arm at one length."""
    per_passage = _mean_over_seeds(found, lambda sums: sums.scored)
    position = _mean_over_seeds(found, lambda sums: sums.position).sum(0)
    distance = _mean_over_seeds(found, lambda sums: sums.distance).sum(0)
    layers = _merged(found.layers)
    everywhere = pooled(layers.errors.sum(1), layers.mass.sum((0, 1)))
    return Cell(
        arm=found.arm.name,
        length=found.cut.length,
        passages=len(per_passage),
        budget=found.budget,
        overall=Overall(**plain(means(per_passage.sum(0))), **plain(everywhere)),
        intervals=intervals(per_passage),
        seeds=_spread(found),
        all_predictions=means(position.sum(0)),
        by_position=_positions(position, layers),
        by_copy_distance=_copy_distances(distance),
        mass_by_distance=_masses(layers.mass.sum(0)),
        layers=[_layer(layer, layers) for layer in range(len(layers.mass))],
        by_passage=[
            PassageRow(text=passage.text, index=passage.index, tokens=len(passage.ids), **plain(part_means(sums)))
            for passage, sums in zip(found.cut.passages, per_passage, strict=True)
        ],
    )


def means(sums: np.ndarray) -> Means:
    """Means over predictions of sums [5], whose count is not 0."""
    count = sums[COUNT]
    arm, full = sums[NATS] / count, sums[NATS_FULL] / count
    return Means(
        predictions=round(float(count)),
        kl=float(sums[KL] / count),
        agreement=float(sums[AGREE] / count),
        nats=float(arm - full),
        perplexity=float(np.exp(arm)),
        perplexity_full=float(np.exp(full)),
    )


def part_means(sums: np.ndarray) -> PartMeans:
    """The same of sums that may be empty."""
    return PartMeans(**plain(means(sums))) if sums[COUNT] else PartMeans()


def layer_means(errors: np.ndarray, mass: np.ndarray) -> LayerMeans:
    """Relative errors (norm of the difference over norm of the full model's) of [kinds, 2], kept share of [2]."""

    def error(kind: int) -> float | None:
        share = _ratio(errors[kind, DIFFERENCE], errors[kind, NORM])
        return None if share is None else share**0.5

    return LayerMeans(
        kept_mass=_ratio(mass[KEPT], mass[MASS]),
        isolated_error=error(ISOLATED),
        attention_error=error(ATTENTION),
        residual_error=error(RESIDUAL),
    )


def pooled(errors: np.ndarray, mass: np.ndarray) -> LayerMeans:
    """All layers in one: the mean of their attention errors, the last one's residual error; errors [layers, kinds, 2].

    Each layer weighs alike in the mean, however large its outputs are.
    """
    layers = [layer_means(one, mass) for one in errors]
    return LayerMeans(
        kept_mass=layers[-1].kept_mass,
        isolated_error=_mean(one.isolated_error for one in layers),
        attention_error=_mean(one.attention_error for one in layers),
        residual_error=layers[-1].residual_error,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that were measured."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def intervals(per_passage: np.ndarray) -> Intervals:
    """95 % intervals of means over predictions, passages [passages, 5] drawn anew; None where only one was read."""
    if len(per_passage) < 2:
        return Intervals(kl=None, agreement=None, nats=None)
    counts = per_passage[:, COUNT]
    return Intervals(
        kl=interval(per_passage[:, KL], counts),
        agreement=interval(per_passage[:, AGREE], counts),
        nats=interval(per_passage[:, NATS] - per_passage[:, NATS_FULL], counts),
    )


def interval(sums: np.ndarray, counts: np.ndarray, level: float = stats.LEVEL) -> Interval:
    """Interval of sum over count, both per passage; passages are drawn anew, the same ones for every arm."""
    found = scipy_stats.bootstrap(
        (sums, counts),
        lambda one, count, axis: one.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=stats.RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(sums)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(stats.SEED),
    )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def _spread(found: ArmAtLength) -> Seeds | None:
    """Every seed's own numbers and their standard deviation; None where the arm draws nothing at random."""
    if len(found.arm.seeds) < 2:
        return None
    rows = [means(np.sum([sums.scored for sums in of_seed], axis=0)) for of_seed in found.tokens]
    kept = [pooled(sums.errors.sum(1), sums.mass.sum((0, 1))).kept_mass for sums in found.layers]
    each = [
        SeedRow(seed=seed, kept_mass=share, **plain(row))
        for seed, row, share in zip(found.arm.seeds, rows, kept, strict=True)
    ]
    measures = ("kl", "agreement", "nats", "kept_mass")
    return Seeds(sd={name: stats.between_seed_sd([getattr(row, name) for row in each]) for name in measures}, each=each)


def _mean_over_seeds(found: ArmAtLength, part: Callable[[Any], np.ndarray]) -> np.ndarray:
    """A part of the token sums, averaged over seeds: [passages, ...]"""
    return np.mean(np.array([[part(sums) for sums in of_seed] for of_seed in found.tokens]), axis=0)


def _merged(sums: Sequence[LayerSums]) -> LayerSums:
    fields = ("errors", "mass", "mass_by_position")
    return LayerSums(*(np.mean([getattr(one, name) for one in sums], axis=0) for name in fields))


def _positions(tokens: np.ndarray, layers: LayerSums) -> list[PositionRow]:
    """Predictions by tokens read; all layers by the position of the query, where one was looked at."""
    rows = []
    for bucket in range(len(tokens)):
        low, high = buckets.position_range(bucket)
        measured = pooled(layers.errors[:, bucket], layers.mass_by_position[:, bucket].sum(0))
        numbers = {**plain(part_means(tokens[bucket])), **plain(measured)}
        rows.append(PositionRow(bucket=buckets.label(low, high), low=low, high=high, **numbers))
    return rows


def _copy_distances(tokens: np.ndarray) -> list[CopyRow]:
    rows = [CopyRow(**_distance(bucket), **plain(part_means(sums))) for bucket, sums in enumerate(tokens[:-1])]
    return [*rows, CopyRow(bucket="nowhere before", low=None, high=None, **plain(part_means(tokens[-1])))]


def _masses(mass: np.ndarray) -> list[MassRow]:
    """By distance [buckets + 1, 2]; the last is the first SINKS keys. A share of all mass, and the part kept."""
    total = mass[:, MASS].sum()
    ranges = [_distance(bucket) for bucket in range(len(mass) - 1)]
    ranges.append({"bucket": f"first {buckets.SINKS} tokens", "low": None, "high": None})
    return [
        MassRow(**bounds, share_of_mass=float(part[MASS] / total), kept_mass=_ratio(part[KEPT], part[MASS]))
        for bounds, part in zip(ranges, mass, strict=True)
    ]


def _layer(layer: int, sums: LayerSums) -> LayerRow:
    measured = layer_means(sums.errors[layer].sum(0), sums.mass[layer].sum(0))
    return LayerRow(layer=layer, mass_by_distance=_masses(sums.mass[layer]), **plain(measured))


def _distance(bucket: int) -> Bounds:
    low, high = buckets.distance_range(bucket)
    return {"bucket": buckets.label(low, high), "low": low, "high": high}


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def to_csv(results: Fidelity) -> str:
    """Every arm and length: overall, by position, by copy distance, by layer, mass by distance."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in results.cells:
        for by, row in _rows(cell):
            writer.writerow({"arm": cell.arm, "length": cell.length, "by": by, **row})
    return stream.getvalue()


def _rows(cell: Cell) -> Iterable[tuple[str, Facts]]:
    yield "overall", plain(cell.overall)
    yield "all predictions", plain(cell.all_predictions)
    yield from (("position", plain(row)) for row in cell.by_position)
    yield from (("copy_distance", plain(row)) for row in cell.by_copy_distance)
    yield from (("attention distance", plain(row)) for row in cell.mass_by_distance)
    yield from (("layer", {**plain(row), "bucket": row.layer}) for row in cell.layers)
