"""Laws of what is said of a run: numbers equal the records, losses come first, a tie is called a tie."""

import csv
import io
import re

import numpy as np
import pytest
from planted import FAMILIES, GOOD, PLANTED, planted_run, summarised

from sa_eval.records.types import Budget
from sa_eval.results import summary, table


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    directory = planted_run(tmp_path_factory.mktemp("planted") / "run")
    return directory, summarised(directory)


def accuracy_from_records(directory, arm, length=None, families=None):
    """Straight from the lines: mean over tasks of the mean over documents (and seeds)."""
    by_task = {}
    for record in directory.records():
        name, at = record.task.split("@")
        if record.arm == arm and length in (None, int(at)) and (families is None or FAMILIES[name] in families):
            by_task.setdefault(record.task, []).append(record.score)
    return float(np.mean([np.mean(scores) for scores in by_task.values()]))


def test_cells_equal_the_records(planted):
    directory, results = planted
    for cell in results["cells"]:
        if cell["scope"] != "task":
            families = None if cell["scope"] == "overall" else [cell["name"]]
            length = None if cell["length"] == "all" else cell["length"]
            wanted = accuracy_from_records(directory, cell["arm"], length, families)
            assert cell["accuracy"] == pytest.approx(wanted) and cell["low"] <= wanted <= cell["high"]
            if cell["arm"] != "full":
                full = accuracy_from_records(directory, "full", length, families)
                assert cell["difference"] == pytest.approx(wanted - full)


def test_the_first_sentence_says_that_sa_loses_and_by_how_much(planted):
    directory, results = planted
    first = results["answer"][0]
    assert re.match(r"With window 64, sa costs [\d.]+ points \(corrected 95\s% interval [\d.]+ to [\d.]+\): ", first)
    assert re.search(r"\. At this budget it loses to swa by [\d.]+ points \([\d.]+ to [\d.]+\) and moba by", first)
    gap = accuracy_from_records(directory, "swa-w64") - accuracy_from_records(directory, "sa-w64")
    assert f"swa by {100 * gap:.1f} points" in first
    assert "on aggregation it beats swa and moba" in first.replace("On ", "on ")


def test_the_sentence_turns_when_sa_wins(tmp_path):
    winning = {**PLANTED, "sa": {"retrieval": GOOD, "aggregation": GOOD, "cloze": GOOD}}
    first = summarised(planted_run(tmp_path / "run", planted=winning))["answer"][0]
    assert "it beats swa by" in first and "loses" not in first and "cannot be told apart from full" in first


def test_arms_that_are_alike_are_called_alike(tmp_path):
    alike = {label: {"retrieval": 0.6, "aggregation": 0.6, "cloze": 0.6} for label in PLANTED}
    first = summarised(planted_run(tmp_path / "run", planted=alike))["answer"][0]
    assert "cannot be told apart from swa" in first and "beats" not in first


def test_the_terminal_table_holds_the_same_numbers_and_is_not_wide(planted):
    directory, results = planted
    text = table.render(summary.read(directory))
    assert max(map(len, text.splitlines())) <= 120
    for cell in results["cells"]:
        if cell["scope"] == "overall" and cell["length"] != "all":
            row = next(
                line for line in text.split(f"Length {cell['length']}")[1].splitlines() if line.startswith(cell["arm"])
            )
            assert f" {100 * cell['accuracy']:.1f} [" in row


def test_the_csv_holds_every_cell(planted):
    directory, results = planted
    rows = list(csv.DictReader(io.StringIO((directory.path / "summary.csv").read_text())))
    assert len(rows) == len(results["cells"])
    assert {(row["arm"], row["name"], float(row["accuracy"])) for row in rows} == {
        (cell["arm"], cell["name"], cell["accuracy"]) for cell in results["cells"]
    }


def test_moba_is_called_untrained_and_dense_arms_are_flagged(tmp_path):
    directory = planted_run(tmp_path / "run", documents=4, lengths="512")
    directory.append(Budget("sa-w64", 512, keys_per_query=255.0, density=0.99))
    results = summarised(directory)
    assert "moba is untrained" in " ".join(results["notes"])
    dense = next(gate for gate in results["gates"] if gate["gate"] == "density near 1")
    assert dense["status"] == "warning" and dense["where"] == ["sa-w64 at 512 (0.99)"]


def test_families_that_full_attention_fails_decide_nothing(tmp_path):
    weak = {label: {**shares, "cloze": 0.9 if label == "sa" else 0.1} for label, shares in PLANTED.items()}
    results = summarised(planted_run(tmp_path / "run", planted=weak))
    assert "cloze" not in results["answer"][0]
    weak_gate = next(gate for gate in results["gates"] if gate["gate"] == "full below floor")
    assert weak_gate["status"] == "warning" and any("cloze" in place for place in weak_gate["where"])


def test_a_run_with_nothing_finished_still_gets_an_answer(tmp_path):
    directory = planted_run(tmp_path / "run", documents=4, lengths="512")
    for file in (directory.path / "records").glob("*"):
        file.unlink()
    results = summarised(directory)
    assert "nothing to compare" in results["answer"][0] and "nothing to compare" in table.render(
        summary.read(directory)
    )
