"""`scripts/adapt_tiny.py` as its user calls it, for two steps."""

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
BRIEF = """--seeds 0 --steps 2 --length 320 --tokens 640 --documents 2 --threads 1 --window 32"""


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
    assert {name: round(run["keys"]) for name, run in kept.items() if name.startswith(("swa", "gated-swa"))} == {
        "swa-w32": 32,
        "gated-swa-w32": 32,
    }
    assert kept["sa-w32"]["keys"] > 34  # late queries of sa see more
    report = json.loads((tmp_path / "report.json").read_text())
    assert [arm["attention"] for arm in report["arms"]] == ["full", "swa", "sa", "gated", "gated-swa"]
    text = (tmp_path / "report.md").read_text()
    assert "| swa | 1 | 32 |" in text and "| gated minus gated-swa | 1 |" in text
    with pytest.raises(SystemExit):
        adapt.main(["--out", str(tmp_path), "--attention", "swa", *BRIEF.split(), "--steps", "3"])
    assert "holds runs of other settings (steps: 2 then, 3 now)" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_run(adapt, tmp_path):
    kept = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        adapt.main(["--out", str(folder), "--attention", "gated", *BRIEF.split()])
        kept.append(json.loads((folder / "gated-w32-seed0.json").read_text()))
        del kept[-1]["seconds"]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--attention swa,sparse", "unknown attention sparse: choose from full, swa"),
        ("--length 200", "--length 200 has to be at least 320"),
        ("--model no/such", "has no model.safetensors and no tokenizer.json"),
    ],
)
def test_what_could_not_be_compared_is_refused(adapt, tmp_path, capsys, flags, told):
    with pytest.raises(SystemExit):
        adapt.main(["--out", str(tmp_path), *flags.split()])
    assert told in capsys.readouterr().err


def test_differences_are_paired_by_seed_and_question(adapt):
    """Planted: one task of nine gains a quarter of its questions in both seeds that two arms share."""
    import numpy as np
    import tiny_adapted

    draw = np.random.default_rng(0)
    right = {task: (draw.random((3, 40)) < 0.5).astype(int) for task in tiny_adapted.TASKS}
    base = {
        seed: {"after": {task: found[seed].tolist() for task, found in right.items()}, "losses": [9.0] * 9 + [2.0] * 50}
        for seed in (0, 1, 2)
    }
    better = {
        seed: {"after": {task: list(found) for task, found in base[seed]["after"].items()}, "losses": [2.0 - seed] * 50}
        for seed in (1, 2)
    }
    for seed, run in better.items():
        wrong = [index for index, one in enumerate(run["after"]["cloze"]) if not one][:10]
        for index in wrong:
            run["after"]["cloze"][index] = 1
        assert len(wrong) == 10, seed
    found = tiny_adapted.difference(tiny_adapted.Arm("gated", better), tiny_adapted.Arm("swa", base))
    assert found.by_seed == pytest.approx((0.25 / 9, 0.25 / 9)) and found.low < found.mean < found.high
    assert found.low > 0 and found.p < 0.01
    assert found.loss_by_seed == (-1.0, -2.0)
