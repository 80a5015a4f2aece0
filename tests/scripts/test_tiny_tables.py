"""docs/tiny-model.md says what the kept runs found."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import write_tiny

    return write_tiny


def run(folder, arms):
    """A run's results.json with these accuracies: arm -> family -> share."""
    folder.mkdir()
    cells = [
        {"arm": arm, "length": 2048, "scope": scope, "name": name, "documents": 9, "accuracy": share}
        | {"difference": None if arm == "full" else -0.5, "corrected_low": -0.75, "corrected_high": 0.0, "p_value": 0.1}
        for arm, found in arms.items()
        for scope, name, share in [*(("family", *item) for item in found.items()), ("task", "cloze", 0.123)]
    ]
    budgets = [{"arm": arm, "length": 2048, "keys_per_query": 1016.5, "density": 1.0} for arm in arms]
    whole = {"cells": cells, "budgets": budgets, "comparisons": [], "model": {}, "versions": {}, "hardware": {}}
    (folder / "results.json").write_text(json.dumps(whole | {"tasks": ["left out"]}))
    return folder


def test_the_tables_are_what_the_results_give(tables):
    text = tables.PAGE.read_text()
    assert text == tables.page(text, json.loads(tables.KEPT.read_text()))


def test_an_arm_and_its_dense_tail_share_a_row(tables, tmp_path):
    found = {"retrieval": 0.25, "aggregation": 0.5, "tracing": 1.0}
    kept = tables.of_run(
        run(tmp_path / "run", {"full": found, "sa-w128": found, "sa-w128-tail64": {"retrieval": 0.75}})
    )
    assert "tasks" not in kept and all(cell["scope"] != "task" for cell in kept["cells"])
    rows = tables.example_table(kept).splitlines()[2:]
    assert rows == [
        "| full | 1,016 | 25 | 50 | 100 |  |  |  |  |  |",
        "| sa | 1,016 | 25 | 50 | 100 |  | 75 |  |  |  |",
    ]


def test_a_plan_is_told_with_what_it_loses(tables, tmp_path):
    found = {"retrieval": 0.25, "overall": 0.5}
    kept = tables.of_run(run(tmp_path / "run", {"full": found, "routed-block4-w128": found, "plan-mine": found}))
    rows = tables.plan_table(kept).splitlines()[2:]
    lost = "-50.0 (-75.0 to +0.0)"
    assert rows[0] == "| full | 1,016 | 25.0 |  |  |  | 50.0 |  |"
    assert rows[1:] == [
        f"| {name} | 1,016 | 25.0 |  |  |  | 50.0 | {lost} |" for name in ("routed, blocks of 4", "plan")
    ]
