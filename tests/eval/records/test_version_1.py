"""Laws of files that the first release wrote (a part of a real run): they read as they are, report and compare work."""

import json
import shutil
from pathlib import Path

import pytest

from sa_eval.cli import main
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import VERSION, plain

FILES = Path(__file__).parent / "version_1"


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(FILES, tmp_path / "run")


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def holds(row, wanted):
    """Whether a row says everything that its line in the file says."""
    found = plain(row)
    return all(found[name] == value for name, value in wanted.items())


def test_every_line_reads_as_what_it_says():
    directory = RunDirectory(FILES)
    wanted = {(row["arm"], row["seed"], row["task"], row["index"]): row for row in _records()}
    records = {record.place: record for record in directory.records()}
    assert records.keys() == wanted.keys() and all(holds(records[place], wanted[place]) for place in wanted)
    logs = {"budgets": directory.budgets(), "speed": directory.speed(), "checks": directory.checks()}
    for name, rows in {**logs, "documents": directory.prompts()}.items():
        assert rows and all(holds(row, line) for row, line in zip(rows, lines(FILES / f"{name}.jsonl"), strict=True))
    manifest = json.loads((FILES / "manifest.json").read_text(encoding="utf-8"))
    assert directory.manifest().schema == manifest["schema"] == 1 < VERSION
    assert directory.manifest().keys == manifest["keys"] and directory.failures() == []
    seconds = sum(row["seconds"] for row in lines(FILES / "arm_runs.jsonl"))
    assert sum(row.seconds for row in directory.arm_runs()) == pytest.approx(seconds)


def test_it_is_reported_and_compared(run, capsys):
    assert main(["report", str(run)]) == 0
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for arm in ("full", "swa-w64", "sa-w64"):
        scores = [row["score"] for row in _records() if row["arm"] == arm]
        cell = next(one for one in results["cells"] if one["arm"] == arm and one["scope"] == "overall")
        assert cell["accuracy"] == pytest.approx(sum(scores) / len(scores))
    (cut,) = [gate for gate in results["gates"] if gate["gate"] == "answers cut"]
    assert cut["status"] == "warning" and "Not recorded" in cut["text"]  # and not that none was
    assert main(["compare", str(FILES), str(run)]) == 0
    assert "same versions, code, machine" in capsys.readouterr().out


def _records():
    return [row for file in (FILES / "records").glob("*.jsonl") for row in lines(file)]
