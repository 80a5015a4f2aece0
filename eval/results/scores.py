"""From records to scores: which answers count, and which documents two arms share. Imports no torch.

A document counts for an arm when it was answered with every seed in use, and a task when at least half of its documents
count. A failed document is a wrong answer, never a missing one. Differences to full are taken on documents that both
answered, so an arm that was interrupted is compared like with like or not at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import FULL, Manifest, Record, TaskRow
from sa_eval.results.stats import Stratum
from sa_eval.results.types import Answered, Length
from sa_eval.settings.values import SettingsError

FAMILIES = ("retrieval", "aggregation", "tracing", "cloze")
ENOUGH = 0.5  # the share of a task's documents from which on a task is shown
Scope = tuple[str, str, list[TaskRow]]  # overall, family or task; its name; its tasks


class HashMismatch(SettingsError):
    """Two arms saw different documents: their scores cannot be compared."""


@dataclass(frozen=True)
class Answers:
    """What one arm answered of one task: index -> [seeds]."""

    seeds: tuple[int, ...]
    by_index: dict[int, np.ndarray]

    def of(self, indices: Iterable[int]) -> np.ndarray:
        """[documents, seeds]"""
        return np.stack([self.by_index[index] for index in indices])


@dataclass
class Scores:
    """Scores by task and arm, and what was counted on the way (rows of `answered`, for the gates)."""

    arms: list[str]
    tasks: list[TaskRow]
    answers: dict[tuple[str, str], Answers]
    answered: list[Answered]
    strata: dict[tuple[str, str], Stratum] = field(default_factory=dict)
    indices: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    pools: dict[tuple[Stratum, ...], Stratum] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task in self.tasks:
            self._group(task.key, ENOUGH * len(task.hashes))

    def of(self, tasks: Sequence[TaskRow], arm: str) -> list[Stratum] | None:
        """The arm's documents of these tasks, or None when one of them does not count."""
        found = [self.strata.get((task.key, arm)) for task in tasks]
        if any(stratum is None for stratum in found):
            return None
        return self._pooled(tasks, [stratum for stratum in found if stratum])

    def pair(self, tasks: Sequence[TaskRow], arm: str, base: str) -> list[Stratum] | None:
        """Documents of these tasks that both arms answered, or None when one of the tasks has too few."""
        found = []
        for task in tasks:
            stratum = self._shared(task.key, arm, base, ENOUGH * len(task.hashes))
            if stratum is None:
                return None
            found.append(stratum)
        return self._pooled(tasks, found)

    def _shared(self, task: str, arm: str, base: str, enough: float) -> Stratum | None:
        """A group that has both arms, or one made for these two."""
        groups = [self.strata.get((task, name)) for name in (arm, base)]
        known = next((group for group in groups if group is not None and {arm, base} <= set(group.arms)), None)
        if known is not None or None in groups:
            return known
        answers = [self.answers[task, name] for name in (arm, base)]
        indices = sorted(set(answers[0].by_index) & set(answers[1].by_index))
        if len(indices) < enough:
            return None
        return Stratum(task, (arm, base), np.stack([one.of(indices).mean(axis=1) for one in answers], axis=1))

    def _pooled(self, tasks: Sequence[TaskRow], strata: Sequence[Stratum]) -> list[Stratum]:
        """One stratum per task, or per pool of tasks whose documents weigh alike (MMLU's subjects)."""
        members = [[strata[position] for position in positions] for positions in _pools(tasks)]
        for group in members:
            if len(group) > 1 and tuple(group) not in self.pools:
                arms = tuple(arm for arm in group[0].arms if all(arm in one.arms for one in group))
                rows = [np.stack([one.of(arm) for arm in arms], axis=1) for one in group]
                name = " ".join(one.name for one in group)
                self.pools[tuple(group)] = Stratum(name, arms, np.concatenate(rows))
        return [group[0] if len(group) == 1 else self.pools[tuple(group)] for group in members]

    def per_seed(self, tasks: Sequence[TaskRow], arm: str) -> list[float]:
        """The accuracy of each seed on the arm's documents; empty when the tasks were run with different seeds."""
        keys = [(task.key, arm) for task in tasks]
        if len({self.answers[key].seeds for key in keys}) != 1:
            return []
        by_task = [self.answers[key].of(self.indices[key]) for key in keys]
        means = [np.concatenate([by_task[position] for position in pool]).mean(axis=0) for pool in _pools(tasks)]
        return np.mean(means, axis=0).tolist()

    def _group(self, task: str, enough: float) -> None:
        """Arms that answered the same documents (of those that full answered) share one array."""
        answered = {arm: set(self.answers[task, arm].by_index) for arm in self.arms if (task, arm) in self.answers}
        groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for arm, indices in answered.items():
            shared = indices & answered.get(FULL, indices)
            groups[tuple(sorted(shared if len(shared) >= enough else indices))].append(arm)
        for indices, members in groups.items():
            arms = tuple(arm for arm, found in answered.items() if found.issuperset(indices))
            scores = [self.answers[task, arm].of(indices).mean(axis=1) for arm in arms]
            stratum = Stratum(task, arms, np.stack(scores, axis=1))
            for arm in members:
                self.strata[task, arm], self.indices[task, arm] = stratum, indices


def _pools(tasks: Sequence[TaskRow]) -> list[list[int]]:
    """Positions of the tasks that count as one."""
    found: dict[tuple[str, str, Length], list[int]] = defaultdict(list)
    for position, task in enumerate(tasks):
        found[("pool", task.pool, task.length) if task.pool else ("task", task.key, None)].append(position)
    return list(found.values())


def scopes(tasks: list[TaskRow]) -> list[Scope]:
    """Overall, each family, each task."""
    families = [*FAMILIES, *sorted({task.family for task in tasks} - set(FAMILIES))]
    grouped = [("family", family, [task for task in tasks if task.family == family]) for family in families]
    names = list(dict.fromkeys(task.name for task in tasks))
    single = [("task", name, [task for task in tasks if task.name == name]) for name in names]
    return [("overall", "overall", tasks), *(entry for entry in grouped if entry[2]), *single]


def by_length(tasks: list[TaskRow]) -> list[tuple[Length, list[TaskRow]]]:
    """(length, tasks); length "all" pools them where there are several."""
    lengths = list(dict.fromkeys(task.length for task in tasks))
    groups: list[tuple[Length, list[TaskRow]]] = [
        (length, [task for task in tasks if task.length == length]) for length in lengths
    ]
    return [*groups, ("all", tasks)] if len(lengths) > 1 else groups


def collect(directory: RunDirectory, manifest: Manifest) -> Scores:
    """Scores of all arms; every record's document is checked against the manifest on the way.

    Raises:
        HashMismatch: a record of another document, task or arm than the manifest lists.
    """
    tasks = {task.key: task for task in manifest.tasks}
    known = {arm.name for arm in manifest.arms}
    found: dict[tuple[str, str], dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for record in directory.records():
        task = _task_of(record, tasks, known)
        found[record.task, record.arm][record.seed][record.index] = 0.0 if record.error is not None else record.score
        counts[record.arm, record.seed].update(_counted(record, task))
    answers = {}
    for arm in manifest.arms:
        for key, task in tasks.items():
            counted = _counting(found[key, arm.name], arm.seeds, len(task.hashes))
            if counted is not None:
                answers[key, arm.name] = counted
    arms = [arm.name for arm in manifest.arms if any((key, arm.name) in answers for key in tasks)]
    wanted = sum(len(task.hashes) for task in tasks.values())
    answered = [
        Answered(arm.name, seed, wanted, **counts[arm.name, seed]) for arm in manifest.arms for seed in arm.seeds
    ]
    return Scores(arms, manifest.tasks, answers, answered)


def _task_of(record: Record, tasks: dict[str, TaskRow], arms: set[str]) -> TaskRow:
    task = tasks.get(record.task)
    if task is None or record.arm not in arms:
        raise HashMismatch(
            f"there are records of {record.arm} on {record.task}, which the run's manifest does not list: the "
            "records do not belong together"
        )
    if not 0 <= record.index < len(task.hashes) or task.hashes[record.index] != record.hash:
        raise HashMismatch(
            f"{record.arm} saw another document {record.index} of {record.task} than the run's manifest lists: the "
            "records do not belong together"
        )
    if not 0 <= record.score <= 1:
        raise HashMismatch(
            f"{record.arm} has a score of {record.score} on document {record.index} of {record.task}: a score is a "
            "share of right answers (0 to 1), so somebody changed the records"
        )
    return task


def _counted(record: Record, task: TaskRow) -> dict[str, int]:
    """What one record adds to the counts of `Answered`."""
    generated = task.output == "generate_until" and record.error is None
    length, tokens = task.length, record.prompt_tokens
    return {
        "answered": 1,
        "failed": int(record.error is not None),
        "generated": int(generated and record.output is not None),
        "empty": int(generated and isinstance(record.output, str) and not record.output.strip()),
        "ended": int(generated and record.cut is not None),
        "cut": int(generated and record.cut is True),
        "overlong": int(length is not None and tokens is not None and tokens > length),
    }


def _counting(by_seed: dict[int, dict[int, float]], seeds: Sequence[int], documents: int) -> Answers | None:
    """The documents that every seed answered, leaving out seeds that are not half through; None when too few."""
    used = tuple(seed for seed in seeds if len(by_seed.get(seed, {})) >= max(1, ENOUGH * documents))
    if not used:
        return None
    shared = sorted(set.intersection(*(set(by_seed[seed]) for seed in used)))
    if len(shared) < max(1, ENOUGH * documents):
        return None
    return Answers(used, {index: np.array([by_seed[seed][index] for seed in used]) for index in shared})
