"""From records to results: what `results.json` and `summary.csv` hold. Reads the run directory only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import TypeVar

from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import FULL, Budget, Json, Manifest, plain
from sa_eval.results import types
from sa_eval.results.answer import answer
from sa_eval.results.cells import cells, comparisons
from sa_eval.results.gates import gates
from sa_eval.results.notes import notes
from sa_eval.results.scores import HashMismatch, collect
from sa_eval.results.types import Length, Levels, MeasuredSpeed, Published, Results, Tests
from sa_eval.settings.published import published_for

__all__ = ["HashMismatch", "by_arm_and_length", "read", "results_of", "summarise", "to_csv"]

RESULTS = "results.json"
Measured = TypeVar("Measured", Budget, MeasuredSpeed)

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
    "corrected_low",
    "corrected_high",
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
    "speedup",
    "peak_gib",
    "decode_tokens_per_s",
)


def summarise(directory: RunDirectory) -> Results:
    """Compute results.json and summary.csv from the records, write both and return the results.

    Raises:
        HashMismatch: records of other documents than the manifest lists.
    """
    results = results_of(directory, directory.manifest())
    directory.write_json(RESULTS, types.plain(results))
    directory.write_text("summary.csv", to_csv(results))
    return results


def read(directory: RunDirectory) -> Results:
    """What `summarise` wrote, this version's or an earlier one's."""
    return types.read((directory.path / RESULTS).read_text(encoding="utf-8"))


def results_of(directory: RunDirectory, manifest: Manifest) -> Results:
    """The manifest, the logs, estimates and tests, gates, the answer in words."""
    scores = collect(directory, manifest)
    found, to_full = cells(scores)
    pairs, between_arms = comparisons(scores, manifest.arms)
    unfinished = {row.arm: None for row in scores.answered if row.answered < row.wanted}
    results = Results(
        **{item.name: getattr(manifest, item.name) for item in fields(manifest)},
        failures=directory.failures(),
        arm_runs=directory.arm_runs(),
        budgets=directory.budgets(),
        checks=directory.checks(),
        speed=_speed(directory),
        published=_published(manifest),
        answered=scores.answered,
        unfinished=list(unfinished),
        tests=Tests(to_full.tests, between_arms.tests),
        levels=Levels(to_full.level, between_arms.level),
        cells=found,
        comparisons=pairs,
    )
    return replace(results, gates=gates(results), answer=answer(results), notes=notes(results))


def _published(manifest: Manifest) -> list[Published]:
    model = manifest.model
    return [Published(**row) for row in published_for(manifest.settings, model.get("hub_id") or model["name"])]


def _speed(directory: RunDirectory) -> list[MeasuredSpeed]:
    rows = directory.speed()
    full = {row.length: row.prefill_ms for row in rows if row.arm == FULL}
    return [
        MeasuredSpeed(**plain(row), speedup=full[row.length] / row.prefill_ms if row.length in full else None)
        for row in rows
    ]


def by_arm_and_length(rows: Iterable[Measured]) -> dict[tuple[str, Length], Measured]:
    return {(row.arm, row.length): row for row in rows}


def to_csv(results: Results) -> str:
    """One line per cell."""
    arms = {arm.name: arm for arm in results.arms}
    budgets, speeds = by_arm_and_length(results.budgets), by_arm_and_length(results.speed)
    stream = io.StringIO()
    columns: list[str] = list(CSV_COLUMNS)
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in results.cells:
        measured = (rows.get((cell.arm, cell.length)) for rows in (budgets, speeds))
        line: dict[str, Json] = asdict(arms[cell.arm])
        for row in measured:
            line |= asdict(row) if row is not None else {}
        writer.writerow(line | types.flat(asdict(cell), "versus_full"))
    return stream.getvalue()
