"""Owns the step from records to results: what `results.json` and `summary.csv` hold. Reads the run directory only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import Manifest, plain
from sa_eval.results import answer, cells, gates
from sa_eval.results.scores import FULL, HashMismatch, collect, task_key
from sa_eval.settings.published import published_for

__all__ = ["HashMismatch", "by_arm_and_length", "summarise", "task_key", "to_csv"]

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
    "test",
    "p_value",
    "p_adjusted",
    "significant",
    "detectable",
    "won",
    "lost",
    "seed_sd",
    "sampling_sd",
    "keys_per_query",
    "density",
    "prefill_ms",
    "prefill_ratio",
    "peak_gib",
    "decode_tokens_per_s",
)
LATENCY = ("peak_gib", "decode_tokens_per_s")  # not measured everywhere


def summarise(directory: RunDirectory) -> dict[str, Any]:
    """Compute results.json and summary.csv from the records, write both and return the results.

    Raises:
        HashMismatch: records of other documents than the manifest lists.
    """
    manifest = directory.manifest()
    results = results_of(directory, manifest)
    directory.write_json("results.json", results)
    directory.write_text("summary.csv", to_csv(results))
    return results


def results_of(directory: RunDirectory, manifest: Manifest) -> dict[str, Any]:
    """What results.json holds: the manifest, the logs, estimates and tests, gates, the answer in words."""
    scores = collect(directory, manifest)
    finished = {row["arm"]: True for row in scores.answered}
    for row in scores.answered:
        finished[row["arm"]] &= row["answered"] == row["wanted"]
    results: dict[str, Any] = {
        **{name: value for name, value in plain(manifest).items() if value is not None},
        "failures": [
            {key: getattr(row, key) for key in ("arm", "seed", "task", "error")} for row in directory.failures()
        ],
        "arm_runs": list(map(plain, directory.arm_runs())),
        "budgets": list(map(plain, directory.budgets())),
        "checks": list(map(plain, directory.checks())),
        "speed": _speed(directory),
        "published": _published(manifest),
        "answered": scores.answered,
        "unfinished": [name for name, whole in finished.items() if not whole],
        "tests": {},
    }
    results["cells"], results["tests"]["cells"] = cells.cells(scores)
    results["comparisons"], results["tests"]["comparisons"] = cells.comparisons(scores, manifest)
    results["gates"] = gates.gates(results)
    results["answer"], results["notes"] = answer.answer(results), answer.notes(results)
    return results


def _published(manifest: Manifest) -> list[dict[str, Any]]:
    model = manifest["model"]
    return published_for(manifest["settings"], model.get("hub_id") or model["name"])


def _speed(directory: RunDirectory) -> list[dict[str, Any]]:
    rows = directory.speed()
    full = {row["length"]: row["prefill_ms"] for row in rows if row["arm"] == FULL}
    return [
        {
            **dict.fromkeys(LATENCY),
            **plain(row),
            "prefill_ratio": row["prefill_ms"] / full[row["length"]] if row["length"] in full else None,
        }
        for row in rows
    ]


def by_arm_and_length(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, Any], dict[str, Any]]:
    return {(row["arm"], row["length"]): row for row in rows}


def to_csv(results: dict[str, Any]) -> str:
    """One line per cell."""
    arms = {arm["name"]: arm for arm in results["arms"]}
    budgets, speeds = by_arm_and_length(results["budgets"]), by_arm_and_length(results["speed"])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in results["cells"]:
        place = cell["arm"], cell["length"]
        writer.writerow({**arms[cell["arm"]], **budgets.get(place, {}), **speeds.get(place, {}), **cell})
    return stream.getvalue()
