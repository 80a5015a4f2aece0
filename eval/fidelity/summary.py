"""Owns what the measured sums become: numbers with intervals as plain dictionaries, and the CSV. No torch, no files.

Passages are the unit: an interval says how much would change with other passages like these. Seeds are averaged per
passage first, and their spread is told apart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from sa_eval.fidelity import buckets
from sa_eval.fidelity.head import AGREE, KL, NATS, NATS_FULL
from sa_eval.fidelity.layer_errors import ATTENTION, DIFFERENCE, ISOLATED, KEPT, MASS, NORM, RESIDUAL, LayerSums
from sa_eval.fidelity.measuring import COUNT, ArmAtLength
from sa_eval.results import stats

ERRORS = {"isolated_error": ISOLATED, "attention_error": ATTENTION, "residual_error": RESIDUAL}
INTERVALS = ("kl", "agreement", "nats")
DRAWN_AT_ONCE = 4_000_000
CSV_COLUMNS = (
    "arm",
    "length",
    "by",
    "bucket",
    "predictions",
    "kl",
    "agreement",
    "nats",
    "perplexity",
    "perplexity_full",
    "kept_mass",
    "share_of_mass",
    *ERRORS,
)


def summarise(found: ArmAtLength) -> dict[str, Any]:
    """One arm at one length, ready for JSON."""
    per_passage = _mean_over_seeds([[sums.scored for sums in of_seed] for of_seed in found.tokens])
    layers = _merged(found.layers)
    position = _mean_over_seeds([[sums.position for sums in of_seed] for of_seed in found.tokens]).sum(0)
    distance = _mean_over_seeds([[sums.distance for sums in of_seed] for of_seed in found.tokens]).sum(0)
    return {
        "arm": found.arm.name,
        "length": found.cut.length,
        "passages": len(per_passage),
        "budget": found.budget,
        "overall": {**metrics(per_passage.sum(0)), **pooled(layers.errors.sum(1), layers.mass.sum((0, 1)))},
        "intervals": intervals(per_passage),
        "seeds": _spread(found),
        "by_position": _positions(position, layers),
        "by_copy_distance": _copy_distances(distance),
        "all_predictions": metrics(position.sum(0)),
        "mass_by_distance": _masses(layers.mass.sum(0)),
        "layers": [
            {
                "layer": layer,
                **layer_metrics(layers.errors[layer].sum(0), layers.mass[layer].sum(0)),
                "mass_by_distance": _masses(layers.mass[layer]),
            }
            for layer in range(len(layers.mass))
        ],
        "by_passage": [
            {"text": passage.text, "index": passage.index, "tokens": len(passage.ids), **metrics(sums)}
            for passage, sums in zip(found.cut.passages, per_passage, strict=True)
        ],
    }


def metrics(sums: np.ndarray) -> dict[str, Any]:
    """Means over predictions of sums [5]; `nats` is what the arm costs more than full per token.

    With several seeds, perplexity is that of the mean cost in nats over seeds.
    """
    count = sums[COUNT]
    if not count:
        return {"predictions": 0}
    arm, full = sums[NATS] / count, sums[NATS_FULL] / count
    return {
        "predictions": round(float(count)),
        "kl": float(sums[KL] / count),
        "agreement": float(sums[AGREE] / count),
        "nats": float(arm - full),
        "perplexity": float(np.exp(arm)),
        "perplexity_full": float(np.exp(full)),
    }


def layer_metrics(errors: np.ndarray, mass: np.ndarray) -> dict[str, float | None]:
    """Relative errors (norm of the difference over norm of the full model's) of [kinds, 2], kept share of [2]."""
    shares = {name: _ratio(errors[kind, DIFFERENCE], errors[kind, NORM]) for name, kind in ERRORS.items()}
    return {
        "kept_mass": _ratio(mass[KEPT], mass[MASS]),
        **{name: None if share is None else share**0.5 for name, share in shares.items()},
    }


def pooled(errors: np.ndarray, mass: np.ndarray) -> dict[str, float | None]:
    """All layers in one: the mean of their attention errors, the last one's residual error; errors [layers, kinds, 2].

    Each layer weighs alike in the mean, however large its outputs are.
    """
    layers = [layer_metrics(one, mass) for one in errors]
    if layers[-1]["residual_error"] is None:
        return layers[-1]
    means = {name: float(np.mean([one[name] for one in layers])) for name in ("isolated_error", "attention_error")}
    return {**layers[-1], **means}


def intervals(per_passage: np.ndarray) -> dict[str, list[float] | None]:
    """95 % intervals of means over predictions, passages [passages, 5] drawn anew; None where only one was read."""
    if len(per_passage) < 2:
        return dict.fromkeys(INTERVALS)
    sums = (per_passage[:, KL], per_passage[:, AGREE], per_passage[:, NATS] - per_passage[:, NATS_FULL])
    return {name: _interval(one, per_passage[:, COUNT]) for name, one in zip(INTERVALS, sums, strict=True)}


def _interval(sums: np.ndarray, counts: np.ndarray) -> list[float]:
    found = scipy_stats.bootstrap(
        (sums, counts),
        lambda one, count, axis: one.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=stats.RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(sums)),
        confidence_level=stats.LEVEL,
        method="percentile",
        rng=np.random.default_rng(stats.SEED),  # one set of draws for every arm
    )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def _spread(found: ArmAtLength) -> dict[str, Any] | None:
    """Every seed's own numbers and their standard deviation; None where the arm draws nothing at random."""
    if len(found.arm.seeds) < 2:
        return None
    rows = [metrics(np.sum([sums.scored for sums in of_seed], axis=0)) for of_seed in found.tokens]
    kept = [pooled(sums.errors.sum(1), sums.mass.sum((0, 1)))["kept_mass"] for sums in found.layers]
    each = [
        {"seed": seed, **row, "kept_mass": share} for seed, row, share in zip(found.arm.seeds, rows, kept, strict=True)
    ]
    spread = {name: stats.between_seed_sd([row[name] for row in each]) for name in (*INTERVALS, "kept_mass")}
    return {"sd": spread, "each": each}


def _mean_over_seeds(values: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """[seeds][passages][...] -> [passages, ...]"""
    return np.mean(np.array(values), axis=0)


def _merged(sums: Sequence[LayerSums]) -> LayerSums:
    fields = ("errors", "mass", "mass_by_position")
    return LayerSums(*(np.mean([getattr(one, name) for one in sums], axis=0) for name in fields))


def _positions(tokens: np.ndarray, layers: LayerSums) -> list[dict[str, Any]]:
    """Predictions by tokens read; all layers by the place of the query, where one was looked at."""
    rows = []
    for bucket in range(len(tokens)):
        low, high = buckets.position_range(bucket)
        measured = pooled(layers.errors[:, bucket], layers.mass_by_position[:, bucket].sum(0))
        rows.append(
            {"bucket": buckets.label(low, high), "low": low, "high": high, **metrics(tokens[bucket]), **measured}
        )
    return rows


def _copy_distances(tokens: np.ndarray) -> list[dict[str, Any]]:
    rows = [{**_distance(bucket), **metrics(sums)} for bucket, sums in enumerate(tokens[:-1])]
    return [*rows, {"bucket": "nowhere before", "low": None, "high": None, **metrics(tokens[-1])}]


def _masses(mass: np.ndarray) -> list[dict[str, Any]]:
    """By distance [buckets + 1, 2]; the last is the first SINKS keys. A share of all mass, and the part kept."""
    total = mass[:, MASS].sum()
    rows = [_distance(bucket) for bucket in range(len(mass) - 1)]
    rows.append({"bucket": f"first {buckets.SINKS} tokens", "low": None, "high": None})
    return [
        {**row, "share_of_mass": float(part[MASS] / total), "kept_mass": _ratio(part[KEPT], part[MASS])}
        for row, part in zip(rows, mass, strict=True)
    ]


def _distance(bucket: int) -> dict[str, Any]:
    low, high = buckets.distance_range(bucket)
    return {"bucket": buckets.label(low, high), "low": low, "high": high}


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def to_csv(results: dict[str, Any]) -> str:
    """Every arm and length: overall, by position, by copy distance, by layer, mass by distance."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in results["cells"]:
        for by, row in _rows(cell):
            writer.writerow({"arm": cell["arm"], "length": cell["length"], "by": by, **row})
    return stream.getvalue()


def _rows(cell: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    yield "overall", cell["overall"]
    yield "all predictions", cell["all_predictions"]
    for by in ("by_position", "by_copy_distance"):
        yield from ((by.removeprefix("by_"), row) for row in cell[by])
    yield from (("attention distance", row) for row in cell["mass_by_distance"])
    yield from (("layer", {"bucket": row["layer"], **row}) for row in cell["layers"])
