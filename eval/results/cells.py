"""Estimates and tests of a run: cells (arm against full) and comparisons (arm against arm), corrected for their number.

Two families of tests, each corrected by itself (Holm). "cells": every arm against full, at every length and pooled, for
every scope. "comparisons": every two arms at the same budget, lengths pooled, for overall and every family. A cell that
holds the same tasks as another one of the same arm (a family with a single task) is the same test and counts once.
Pooled cells are in the family although they share documents with their parts: Holm holds however tests depend.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from sa_eval.records.types import FULL, ArmRow, TaskRow
from sa_eval.results import intervals, significance, stats
from sa_eval.results.scores import Scores, by_length, scopes
from sa_eval.results.stats import Stratum
from sa_eval.results.types import Cell, Comparison, Difference, Family
from sa_eval.settings import roles

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pair:
    """Two arms on the documents that both answered: one test."""

    strata: list[Stratum]
    arm: str
    base: str

    @cached_property
    def test(self) -> significance.Test:
        return significance.paired_test(self.strata, self.arm, self.base)

    def difference(self, p_adjusted: float, level: float) -> Difference:
        """What the test found, corrected as one of a family whose last level is `level`."""
        own = intervals.difference(self.strata, self.arm, self.base)
        corrected = intervals.difference(self.strata, self.arm, self.base, level)
        by_document = stats.document_differences(self.strata, self.arm, self.base)
        paired = stats.num_documents(self.strata)
        return Difference(
            value=own.value,
            low=own.low,
            high=own.high,
            interval=own.method,
            p_value=self.test.p_value,
            p_adjusted=p_adjusted,
            test=self.test.name,
            significant=p_adjusted < significance.ALPHA,
            detectable=significance.detectable(self.strata, self.arm, self.base, level),
            won=sum(int((values > 0).sum()) for values in by_document),
            lost=sum(int((values < 0).sum()) for values in by_document),
            corrected_low=corrected.low,
            corrected_high=corrected.high,
            enough=paired >= significance.fewest_documents(level),
            paired=paired,
        )


def corrected(pairs: Mapping[Key, Pair]) -> tuple[dict[Key, Difference], Family]:
    """One family of tests: every difference with its correction, and how many tests there are."""
    p_values = [pair.test.p_value for pair in pairs.values()]
    level = significance.level(p_values)
    found = {
        key: pair.difference(p_adjusted, level)
        for (key, pair), p_adjusted in zip(pairs.items(), significance.holm(p_values), strict=True)
    }
    return found, Family(len(pairs), level)


def cells(scores: Scores) -> tuple[list[Cell], Family]:
    """Accuracy and difference to full per arm, length and scope ("all" pools lengths), and their family of tests."""
    rows: list[tuple[tuple[str, frozenset[str]], Cell]] = []
    known: dict[tuple[str, frozenset[str]], Cell | None] = {}
    pairs: dict[tuple[str, frozenset[str]], Pair] = {}
    for length, tasks in by_length(scores.tasks):
        for scope, name, members in scopes(tasks):
            for arm in scores.arms:
                key = arm, task_keys(members)
                if key not in known:
                    known[key] = _accuracy(scores, members, arm)
                    strata = scores.pair(members, arm, FULL) if arm != FULL and known[key] else None
                    if strata is not None:
                        pairs[key] = Pair(strata, arm, FULL)
                cell = known[key]
                if cell is not None:
                    rows.append((key, replace(cell, length=length, scope=scope, name=name)))
    differences, family = corrected(pairs)
    return [replace(cell, versus_full=differences.get(key)) for key, cell in rows], family


def task_keys(tasks: Iterable[TaskRow]) -> frozenset[str]:
    """What tells tests of one arm apart."""
    return frozenset(task.key for task in tasks)


def _accuracy(scores: Scores, members: list[TaskRow], arm: str) -> Cell | None:
    """A cell of no scope yet; None when the arm has not answered enough of these tasks."""
    strata = scores.of(members, arm)
    if strata is None:
        return None
    found = stats.accuracy(strata, arm)
    per_seed, sampling_sd = scores.per_seed(members, arm), stats.sampling_sd(strata, arm)
    seed_sd = stats.between_seed_sd(per_seed)
    vary_more = None if seed_sd is None or sampling_sd is None else stats.seeds_vary_more(per_seed, sampling_sd)
    return Cell(
        arm=arm,
        length=None,
        scope="",
        name="",
        documents=stats.num_documents(strata),
        accuracy=found.value,
        low=found.low,
        high=found.high,
        interval=found.method,
        seed_sd=seed_sd,
        sampling_sd=sampling_sd,
        seeds_vary_more=vary_more,
    )


def comparisons(scores: Scores, arm_rows: Iterable[ArmRow]) -> tuple[list[Comparison], Family]:
    """Every two variants at one budget, both ways round, overall and by family, lengths pooled; their family."""
    arms = {arm.name: arm for arm in arm_rows}
    sparse = [name for name in scores.arms if name != FULL]
    matched = [
        (first, second)
        for position, first in enumerate(sparse)
        for second in sparse[position + 1 :]
        if same_budget(arms[first], arms[second])
    ]
    rows: list[tuple[tuple[str, str, frozenset[str]], str, str]] = []
    pairs: dict[tuple[str, str, frozenset[str]], Pair] = {}
    for scope, name, members in scopes(scores.tasks):
        for first, second in matched if scope != "task" else ():
            key = first, second, task_keys(members)
            strata = pairs[key].strata if key in pairs else scores.pair(members, first, second)
            if strata is not None:
                pairs[key] = pairs.get(key) or Pair(strata, first, second)
                rows.append((key, scope, name))
    differences, family = corrected(pairs)
    found = []
    for key, scope, name in rows:
        one, other = Comparison(key[0], key[1], scope, name, differences[key]), mirrored(differences[key])
        found += [one, Comparison(key[1], key[0], scope, name, other)]
    return found, family


def same_budget(one: ArmRow, other: ArmRow) -> bool:
    """Whether two arms were asked for the same number of keys; what was measured is a gate's business."""
    options = [{name: arm.options.get(name) for name in roles.outside_budget()} for arm in (one, other)]
    return options[0] == options[1] and (one.window, one.dense_tail) == (other.window, other.dense_tail)


def mirrored(found: Difference) -> Difference:
    """The same difference seen from the other arm."""
    return replace(
        found,
        value=-found.value,
        low=-found.high,
        high=-found.low,
        corrected_low=-found.corrected_high,
        corrected_high=-found.corrected_low,
        won=found.lost,
        lost=found.won,
    )
