"""Owns the rows of results.json that hold estimates and tests: cells (arm against full) and comparisons (arm against
arm), corrected for their number. Imports no torch.

Two families of tests, each corrected by itself (Holm). "cells": every arm against full, at every length and pooled, for
every scope. "comparisons": every two arms at the same budget, lengths pooled, for overall and every family. A cell that
holds the same tasks as another one of the same arm (a family with a single task) is the same test and counts once.
Pooled cells are in the family although they share documents with their parts: Holm holds however tests depend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sa_eval.results import significance, stats
from sa_eval.results.scores import FULL, Scores, Task, by_length, scopes, task_key
from sa_eval.results.stats import Stratum
from sa_eval.settings import roles

Row = dict[str, Any]
UNTESTED: Row = {
    "p_value": None,
    "p_adjusted": None,
    "test": significance.NONE,
    "significant": False,
    "detectable": None,
}


def cells(scores: Scores) -> tuple[list[Row], int]:
    """Accuracy and difference to full per arm, length and scope (length "all" pools them), and how many tests."""
    rows: list[tuple[Any, Row]] = []
    known: dict[Any, Row] = {}
    for length, tasks in by_length(scores.tasks):
        for scope, name, members in scopes(tasks):
            for arm in scores.arms:
                place = arm, _keys(members)
                if place not in known:
                    known[place] = _cell(scores, members, arm)
                if known[place]:
                    rows.append((place, {"arm": arm, "length": length, "scope": scope, "name": name, **known[place]}))
    return adjusted(rows)


def _keys(tasks: Iterable[Task]) -> frozenset[str]:
    return frozenset(map(task_key, tasks))


def _cell(scores: Scores, members: list[Task], arm: str) -> Row:
    """Empty when the arm has not answered enough of these tasks."""
    strata = scores.of(members, arm)
    if strata is None:
        return {}
    found = stats.accuracy(strata, arm)
    per_seed, sampling_sd = scores.per_seed(members, arm), stats.sampling_sd(strata, arm)
    seed_sd = stats.between_seed_sd(per_seed)
    row: Row = {
        "documents": stats.num_documents(strata),
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "interval": found.method,
        "seed_sd": seed_sd,
        "sampling_sd": sampling_sd,
        "seeds_vary_more": None if None in (seed_sd, sampling_sd) else stats.seeds_vary_more(per_seed, sampling_sd),
        **UNTESTED,
    }
    paired = None if arm == FULL else scores.pair(members, arm, FULL)
    return row if paired is None else {**row, **difference(paired, arm, FULL)}


def difference(strata: Sequence[Stratum], arm: str, base: str) -> Row:
    """Arm minus base: interval, test, what was detectable, and the documents that decided it."""
    found, test = stats.paired_difference(strata, arm, base), significance.paired_test(strata, arm, base)
    by_document = stats.differences(strata, arm, base)
    return {
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "difference_interval": found.method,
        "p_value": test.p_value,
        "p_adjusted": None,
        "test": test.name,
        "significant": False,
        "detectable": significance.detectable(strata, arm, base),
        "won": sum(int((values > 0).sum()) for values in by_document),
        "lost": sum(int((values < 0).sum()) for values in by_document),
    }


def comparisons(scores: Scores, manifest: Row) -> tuple[list[Row], int]:
    """Every two variants at one budget, both ways round, overall and by family, lengths pooled; how many tests."""
    arms = {arm["name"]: arm for arm in manifest["arms"]}
    sparse = [name for name in scores.arms if name != FULL]
    pairs = [
        (first, second)
        for position, first in enumerate(sparse)
        for second in sparse[position + 1 :]
        if same_budget(arms[first], arms[second])
    ]
    rows: list[tuple[Any, Row]] = []
    for scope, name, members in scopes(scores.tasks):
        for first, second in pairs if scope != "task" else ():
            strata = scores.pair(members, first, second)
            if strata is not None:
                row = {"arm": first, "base": second, "scope": scope, "name": name}
                row |= difference(strata, first, second)
                rows += [((first, second, _keys(members)), either) for either in (row, mirrored(row))]
    return adjusted(rows)


def same_budget(one: Row, other: Row) -> bool:
    """Whether two arms were asked for the same number of keys; what was measured is a gate's business."""
    options = [{name: arm.get("options", {}).get(name) for name in roles.outside_budget()} for arm in (one, other)]
    return options[0] == options[1] and all(one[key] == other[key] for key in ("window", "dense_tail"))


def mirrored(row: Row) -> Row:
    """The same comparison seen from the other arm."""
    return {
        **row,
        "arm": row["base"],
        "base": row["arm"],
        "difference": -row["difference"],
        "difference_low": -row["difference_high"],
        "difference_high": -row["difference_low"],
        "won": row["lost"],
        "lost": row["won"],
    }


def adjusted(rows: Sequence[tuple[Any, Row]]) -> tuple[list[Row], int]:
    """Rows with p_adjusted and `significant`: Holm over one family of tests; rows at one place are one test."""
    tests = {place: row["p_value"] for place, row in rows if row["p_value"] is not None}
    corrected = dict(zip(tests, significance.holm(list(tests.values())), strict=True))
    found = []
    for place, row in rows:
        value = corrected[place] if place in tests else None
        found.append({**row, "p_adjusted": value, "significant": value is not None and value < significance.ALPHA})
    return found, len(tests)
