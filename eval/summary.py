"""Owns the step from records to results: what `results.json` and `summary.csv` hold. Reads the run directory only."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sa_eval import stats
from sa_eval.store import RunDirectory

FAMILIES = ("retrieval", "aggregation", "tracing", "cloze")
CSV_COLUMNS = (
    "arm",
    "label",
    "window",
    "dense_tail",
    "length",
    "scope",
    "name",
    "documents",
    "accuracy",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "seed_sd",
    "keys_per_query",
    "density",
    "prefill_ms",
    "prefill_ratio",
)


class HashMismatch(RuntimeError):
    """Two arms saw different documents: their scores cannot be compared."""


@dataclass
class Scores:
    """Scores by task: documents x arms (seeds averaged), and each seed's own column for the spread."""

    arms: list[str]
    tasks: list[dict[str, Any]]
    mean: dict[str, np.ndarray]
    per_seed: dict[str, dict[str, np.ndarray]]  # task -> arm -> [documents, seeds]

    def strata(self, tasks: Iterable[dict[str, Any]]) -> list[np.ndarray]:
        return [self.mean[task_key(task)] for task in tasks]


def task_key(task: dict[str, Any]) -> str:
    return task["name"] if task["length"] is None else f"{task['name']}@{task['length']}"


def summarise(directory: RunDirectory) -> dict[str, Any]:
    """Compute results.json and summary.csv from the records, write both and return the results."""
    manifest = directory.read_json("manifest.json")
    scores = collect(directory, manifest)
    results = {
        **manifest,
        "failures": [
            {key: row.get(key) for key in ("arm", "seed", "task", "error")} for row in directory.log("failures")
        ],
        "arm_runs": directory.log("arm_runs"),
        "budgets": directory.log("budgets"),
        "speed": _speed(directory),
        "unfinished": [arm["name"] for arm in manifest["arms"] if arm["name"] not in scores.arms],
    }
    results["cells"] = list(_cells(scores, manifest)) if scores.arms else []
    results["comparisons"] = list(_comparisons(scores, manifest)) if scores.arms else []
    from sa_eval.answer import answer, notes

    results["answer"], results["notes"] = answer(results), notes(results)
    directory.write_json("results.json", results)
    directory.write_text("summary.csv", to_csv(results))
    return results


def collect(directory: RunDirectory, manifest: dict[str, Any]) -> Scores:
    """Scores of every arm that finished all tasks with all its seeds; hashes are checked on the way."""
    hashes = {task_key(task): task["hashes"] for task in manifest["tasks"]}
    found: dict[tuple[str, str], dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in directory.records():
        if hashes[record["task"]][record["index"]] != record["hash"]:
            raise HashMismatch(
                f"{record['arm']} saw another document {record['index']} of {record['task']} than the "
                "run's manifest lists: the records do not belong together"
            )
        found[record["task"], record["arm"]][record["index"]].append((record["seed"], record["score"]))
    arms = [
        arm["name"]
        for arm in manifest["arms"]
        if all(_complete(found[key, arm["name"]], len(hashes[key]), len(arm["seeds"])) for key in hashes)
    ]
    per_seed = {
        key: {
            arm: np.array([[score for _, score in sorted(found[key, arm][index])] for index in range(len(hashes[key]))])
            for arm in arms
        }
        for key in hashes
    }
    mean = {
        key: np.stack([values.mean(axis=1) for values in by_arm.values()], axis=1) if by_arm else np.empty((0, 0))
        for key, by_arm in per_seed.items()
    }
    return Scores(arms, manifest["tasks"], mean, per_seed)


def _complete(by_index: dict[int, list[Any]], documents: int, seeds: int) -> bool:
    return len(by_index) == documents and all(len(values) == seeds for values in by_index.values())


def scopes(tasks: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(scope, name, tasks): overall, each family, each task."""
    families = [*FAMILIES, *sorted({task["family"] for task in tasks} - set(FAMILIES))]
    grouped = [("family", family, [task for task in tasks if task["family"] == family]) for family in families]
    names = list(dict.fromkeys(task["name"] for task in tasks))
    single = [("task", name, [task for task in tasks if task["name"] == name]) for name in names]
    return [("overall", "overall", tasks), *(entry for entry in grouped if entry[2]), *single]


def _cells(scores: Scores, manifest: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Accuracy and difference to full per arm, length and scope; length "all" pools the lengths."""
    lengths = list(dict.fromkeys(task["length"] for task in scores.tasks))
    groups: list[tuple[Any, list[dict[str, Any]]]] = [
        (length, [task for task in scores.tasks if task["length"] == length]) for length in lengths
    ]
    if len(lengths) > 1:
        groups.append(("all", scores.tasks))
    for length, tasks in groups:
        for scope, name, members in scopes(tasks):
            strata = scores.strata(members)
            means = stats.bootstrap_means(strata)
            for column, arm in enumerate(scores.arms):
                yield {
                    "arm": arm,
                    "length": length,
                    "scope": scope,
                    "name": name,
                    "documents": sum(len(stratum) for stratum in strata),
                    **_cell(scores, members, strata, means, column),
                }


def _cell(
    scores: Scores, members: list[dict[str, Any]], strata: list[np.ndarray], means: np.ndarray, column: int
) -> dict[str, Any]:
    arm = scores.arms[column]
    found = stats.accuracy(strata, column, means)
    seeds = stats.stratified_mean([scores.per_seed[task_key(task)][arm] for task in members])
    cell: dict[str, Any] = {
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "interval": found.method,
        "seed_sd": stats.between_seed_sd(list(seeds)),
    }
    if "full" in scores.arms and arm != "full":
        cell.update(_difference(strata, means, column, scores.arms.index("full")))
    return cell


def _difference(strata: list[np.ndarray], means: np.ndarray, column: int, base: int) -> dict[str, Any]:
    found = stats.paired_difference(strata, column, base, means)
    return {
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "difference_interval": found.method,
    }


def _comparisons(scores: Scores, manifest: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Every pair of variants at the same budget and tail, overall and by family, lengths pooled."""
    arms = {arm["name"]: arm for arm in manifest["arms"]}
    sparse = [name for name in scores.arms if name != "full"]
    pairs = [
        (first, second)
        for first in sparse
        for second in sparse
        if first != second and all(arms[first][key] == arms[second][key] for key in ("window", "dense_tail"))
    ]
    for scope, name, members in scopes(scores.tasks):
        if scope == "task" or not pairs:
            continue
        strata = scores.strata(members)
        means = stats.bootstrap_means(strata)
        for first, second in pairs:
            yield {
                "arm": first,
                "base": second,
                "scope": scope,
                "name": name,
                **_difference(strata, means, scores.arms.index(first), scores.arms.index(second)),
            }


def _speed(directory: RunDirectory) -> list[dict[str, Any]]:
    rows = directory.log("speed")
    full = {row["length"]: row["prefill_ms"] for row in rows if row["arm"] == "full"}
    return [
        {**row, "prefill_ratio": row["prefill_ms"] / full[row["length"]] if row["length"] in full else None}
        for row in rows
    ]


def by_arm_and_length(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, Any], dict[str, Any]]:
    return {(row["arm"], row["length"]): row for row in rows}


def to_csv(results: dict[str, Any]) -> str:
    arms = {arm["name"]: arm for arm in results["arms"]}
    budgets, speeds = by_arm_and_length(results["budgets"]), by_arm_and_length(results["speed"])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in results["cells"]:
        place = cell["arm"], cell["length"]
        writer.writerow({**arms[cell["arm"]], **budgets.get(place, {}), **speeds.get(place, {}), **cell})
    return stream.getvalue()
