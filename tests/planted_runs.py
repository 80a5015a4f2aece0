"""Changes to planted run directories: what summaries, gates and comparisons are tested on."""

from __future__ import annotations

from dataclasses import replace

import planted

FAMILIES = {"needle_single": "retrieval", "majority_topic": "aggregation", "cloze": "cloze"}
PLANTED = {label: planted.PLANTED[label] for label in ("full", "swa", "sa")}
KEYS = {"model": {"weights": "w"}, "code": "c", "versions": {"torch": "2"}, "dtype": "float32", "device": "cpu"}


def planted_run(path, accuracies=PLANTED, documents=40, keys=KEYS, families=FAMILIES, **settings):
    """A small finished run, with what its records' keys are made of."""
    directory = planted.planted_run(path, documents, accuracies, families=families, **{"lengths": "512", **settings})
    model = {"name": "tiny", "parameters": 10, "dtype": "float32"}
    versions = {"torch": "2", "numpy": "1"}
    change(directory, keys=keys, model=model, versions=versions, finished="2026-01-01T01:00:00Z")
    return directory


def change(directory, **manifest):
    """Replace entries of the manifest."""
    directory.write_manifest(replace(directory.manifest(), **manifest))


def change_records(directory, arm, changed, seed=0):
    """Every record of one arm and seed becomes changed(record); None drops it."""
    rows = [record for record in directory.records() if (record.arm, record.seed) == (arm, seed)]
    (directory.path / "records" / f"{arm}.seed{seed}.jsonl").unlink()
    directory.append_records(filter(None, map(changed, rows)))


def keep_records(directory, arm, kept, seed=0):
    """Drop the records of one arm and seed for which kept(record) is false."""
    change_records(directory, arm, lambda record: record if kept(record) else None, seed)


def set_budget(directory, arm, length=512, **changes):
    """Measure an arm's budget anew."""
    row = next(row for row in directory.budgets() if (row.arm, row.length) == (arm, length))
    directory.append(replace(row, **changes))
