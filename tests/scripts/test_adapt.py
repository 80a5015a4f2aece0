"""`scripts/adapt_tiny.py` as its user calls it, for two steps."""

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
BRIEF = """--seeds 0 --steps 2 --length 256 --tokens 512 --documents 2 --threads 1 --window 32"""


@pytest.fixture
def adapt(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import adapt_tiny

    return adapt_tiny


def test_runs_are_trained_once_and_start_from_what_the_pattern_leaves(adapt, tmp_path, capsys):
    adapt.main(["--out", str(tmp_path), "--attention", "full,swa,sa,gated,gated-swa", *BRIEF.split()])
    assert "| full | 1 |" in capsys.readouterr().out
    kept = {
        file.name.removesuffix("-seed0.json"): json.loads(file.read_text()) for file in tmp_path.glob("*-seed0.json")
    }
    assert set(kept) == {"full", "swa-w32", "sa-w32", "gated-w32", "gated-swa-w32"}
    right = {name: sum(map(sum, run["before"].values())) for name, run in kept.items()}
    assert right["full"] > 12 and max(count for name, count in right.items() if name != "full") < 12  # of 18
    first = {name: run["losses"][0] for name, run in kept.items()}
    assert len(set(first.values())) == 5 and first["full"] == min(first.values())
    for name, run in kept.items():
        assert len(run["losses"]) == 2 and run["losses"][0] != run["losses"][1], name
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-seed0.json")}
    adapt.main(["--out", str(tmp_path), "--attention", "swa,sa", *BRIEF.split()])
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-seed0.json")}
    report = json.loads((tmp_path / "report.json").read_text())
    assert [arm["attention"] for arm in report["arms"]] == ["full", "swa", "sa", "gated", "gated-swa"]
    assert "| swa | 1 |" in (tmp_path / "report.md").read_text()


def test_the_same_seed_gives_the_same_run(adapt, tmp_path):
    kept = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        adapt.main(["--out", str(folder), "--attention", "gated", *BRIEF.split()])
        kept.append(json.loads((folder / "gated-w32-seed0.json").read_text()))
        del kept[-1]["seconds"]
    assert kept[0] == kept[1]


def test_an_unknown_attention_is_refused(adapt, tmp_path, capsys):
    with pytest.raises(SystemExit):
        adapt.main(["--out", str(tmp_path), "--attention", "swa,sparse"])
    assert "unknown attention sparse: choose from full, swa" in capsys.readouterr().err
