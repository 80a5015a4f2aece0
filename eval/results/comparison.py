"""Owns setting two runs side by side: arms of one against arms of the other on the same documents. Reads files only.

Documents are paired by their hash and have to be the same in both runs; models, versions and arms may differ, that may
be what is compared, and are named. Differences are B minus A, tested as in significance.py; Holm's family is
everything that one comparison shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sa_eval.records.directory import RunDirectory
from sa_eval.records.opening import differences
from sa_eval.records.types import ArmRow, Manifest, plain
from sa_eval.results import stats
from sa_eval.results.cells import adjusted, difference
from sa_eval.results.scores import Answers, Scores, Task, collect, scopes, task_key
from sa_eval.settings.values import SettingsError, nearest

A, B = "A", "B"
ABOUT = ("model", "versions", "hardware")


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    directory: RunDirectory
    manifest: Manifest
    scores: Scores

    @classmethod
    def of(cls, directory: RunDirectory, manifest: Manifest) -> Side:
        return cls(directory, manifest, collect(directory, manifest))

    def arm(self, name: str) -> ArmRow:
        arms = {arm["name"]: arm for arm in self.manifest["arms"]}
        if name not in arms:
            raise SettingsError(f"{self.directory.path} has no arm {name!r}: {nearest(name, list(arms))}")
        return arms[name]


def compare(one: Side, other: Side, arms: tuple[str, str] | None = None) -> dict[str, Any]:
    """Everything that is shown, as plain values.

    Args:
        arms: an arm of each run; None takes all arms that have one name in both.

    Raises:
        SettingsError: documents differ, an arm is unknown, or nothing is left to compare.
    """
    partners = _partners(one, other)
    names = [arms] if arms else [(arm, arm) for arm in one.scores.arms if arm in other.scores.arms]
    rows, documents, different = [], {}, {}
    for first, second in names:
        pair = one.arm(first), other.arm(second)
        scores = _joined(one, other, partners, (first, second))
        rows += _rows(scores, first, second)
        documents[f"{first} / {second}"] = _documents(scores)
        different[f"{first} / {second}"] = differences(*({**plain(arm), "name": ""} for arm in pair))
    if not rows:
        choices = [", ".join(side.scores.arms) or "none" for side in (one, other)]
        raise SettingsError(
            f"{one.directory.path} and {other.directory.path} have no arm with answers in common: name one of each "
            f"with --arm-a ({choices[0]}) and --arm-b ({choices[1]})"
        )
    found, tests = adjusted(rows)
    about = [differences(one.manifest[name], other.manifest[name], name) for name in ABOUT]
    about.append(differences(*((side.manifest.keys or {}).get("code") for side in (one, other)), "code"))
    return {
        "a": str(one.directory.path),
        "b": str(other.directory.path),
        "different": [text for texts in about for text in texts],
        "arms": {pair: texts for pair, texts in different.items() if texts},
        "tests": tests,
        "rows": found,
        "documents": documents,
    }


def _partners(one: Side, other: Side) -> dict[str, dict[int, int]]:
    """task -> index in B -> index in A of the same document; copies of a document are taken in order.

    Raises:
        SettingsError: a document is in one of the runs only.
    """
    here, there = ({task_key(task): task["hashes"] for task in side.manifest["tasks"]} for side in (one, other))
    found = [f"task {name} is in {one.directory.path} only" for name in here if name not in there]
    found += [f"task {name} is in {other.directory.path} only" for name in there if name not in here]
    partners = {}
    for name in here.keys() & there.keys():
        places: dict[str, list[int]] = defaultdict(list)
        for index, value in enumerate(here[name]):
            places[value].append(index)
        pairs = {index: places[value].pop(0) for index, value in enumerate(there[name]) if places[value]}
        alone = len(here[name]) + len(there[name]) - 2 * len(pairs)
        found += [f"{alone} document(s) of {name} are in one of them only"] if alone else []
        partners[name] = pairs
    if found:
        raise SettingsError(
            f"the runs are not about the same documents: {'; '.join(found[:5])}{' ...' if len(found) > 5 else ''}; use "
            "the same tasks, lengths, num_samples, doc_seed and tokenizer in both"
        )
    return partners


def _joined(one: Side, other: Side, partners: dict[str, dict[int, int]], arms: tuple[str, str]) -> Scores:
    """Both arms' answers in one place, B's documents numbered as A's."""
    answers = {}
    for task in partners:
        mine, theirs = one.scores.answers.get((task, arms[0])), other.scores.answers.get((task, arms[1]))
        if mine is not None and theirs is not None:
            numbered = {partners[task][index]: values for index, values in theirs.by_index.items()}
            answers[task, A], answers[task, B] = mine, Answers(theirs.seeds, numbered)
    return Scores([A, B], one.manifest["tasks"], answers, [])


def _rows(scores: Scores, first: str, second: str) -> list[tuple[Any, dict[str, Any]]]:
    """Overall, families and tasks with all lengths together; overall at each length where there are several."""
    lengths = list(dict.fromkeys(task["length"] for task in scores.tasks))
    groups: list[tuple[Any, str, str, list[Task]]] = [
        ("all", scope, name, tasks)
        for scope, name, tasks in scopes(scores.tasks)
        if scope != "family" or len({task["name"] for task in tasks}) > 1  # else the task's row says it
    ]
    if len(lengths) > 1:
        at = [(length, [task for task in scores.tasks if task["length"] == length]) for length in lengths]
        groups += [(length, "overall", "overall", tasks) for length, tasks in at]
    rows = []
    for length, scope, name, tasks in groups:
        strata = scores.pair(tasks, B, A)
        if strata is not None:
            row = {"arm_a": first, "arm_b": second, "length": length, "scope": scope, "name": name}
            row |= {"documents": stats.num_documents(strata)}
            row |= {f"accuracy_{side.lower()}": stats.stratified_mean(strata, side) for side in (A, B)}
            row |= difference(strata, B, A)
            rows.append(((first, second, frozenset(map(task_key, tasks))), row))
    return rows


def _documents(scores: Scores) -> list[dict[str, Any]]:
    """The documents that one arm did better than the other, those that B lost first, the clearest first."""
    found = []
    for task in scores.tasks:
        key = task_key(task)
        mine, theirs = (scores.answers.get((key, side)) for side in (A, B))
        if mine is None or theirs is None:
            continue
        for index in sorted(mine.by_index.keys() & theirs.by_index.keys()):
            before, after = float(mine.by_index[index].mean()), float(theirs.by_index[index].mean())
            if before != after:
                about = {"task": key, "index": index, "hash": task["hashes"][index]}
                found.append({**about, "score_a": before, "score_b": after})
    return sorted(found, key=lambda row: row["score_b"] - row["score_a"])


def lost(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in documents if row["score_b"] < row["score_a"]]


def won(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in reversed(documents) if row["score_b"] > row["score_a"]]
