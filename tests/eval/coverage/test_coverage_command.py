"""`sa-eval coverage`: tables, JSON and pictures of what layers connect; refusals before anything is simulated."""

import json
import subprocess
import sys

import pytest

import sa_patch
from sa_eval.cli import main
from sa_eval.coverage import figures, simulating
from sa_eval.coverage.settings import coverage_settings
from sa_eval.coverage.types import Curve
from sa_patch import analysis

SMALL = ["--lengths", "96", "--window", "16", "--layers", "4", "--seeds", "0,1,2", "--last", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("coverage") / "run"
    assert main(["coverage", *SMALL, "--modes", "swa,sa", "--out", str(out)]) == 0
    return out


def test_the_file_holds_what_analysis_finds(folder):
    held = json.loads((folder / "coverage.json").read_text())
    assert held["finished"] and held["arms"] == ["swa-w16", "sa-w16"]
    row = next(row for row in held["rows"] if row["arm"] == "sa-w16")
    variant = sa_patch.variant("sa", 16)
    causal, both = (analysis.coverage(variant, 96, 4, [0, 1, 2], causal=way) for way in (True, False))
    assert row["curves"][0]["covered"] == list(causal.covered) and row["curves"][1]["covered"] == list(both.covered)
    assert row["curves"][0]["expected"] == list(causal.expected)
    assert row["coherence"]["previous"] == analysis.local_coherence(variant, 96, 4, [0, 1, 2], last=16).previous
    assert row["mixing"][1]["distance"] == list(analysis.mixing(variant, 96, 4, [0, 1, 2]).distance)
    assert figures.curve_of(Curve(**row["curves"][0])).covered == list(causal.covered)
    assert held["fly"] == {"density": 0.0002, "hops": 4.4}


def test_tables_and_pictures_are_made_anew_from_the_file(folder, capsys):
    pictures = sorted(path.name for path in (folder / "figures").iterdir())
    assert pictures == sorted(
        f"{name}.{kind}"
        for name in ("coverage-96-causal", "coverage-96-both", "distances-96")
        for kind in ("png", "svg")
    )
    (folder / "figures" / "distances-96.png").unlink()
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert (folder / "figures" / "distances-96.png").exists()
    assert "  theory" in shown and "fly (quoted)" in shown and "±" in shown
    row = next(line.split() for line in shown.splitlines() if line.startswith("swa-w16 "))
    expected = analysis.theory.expected_coverage(96, 16, 4, form="window")
    assert row[:4] == ["swa-w16", "96", "causal", "1.3"] and row[4] == f"{100 * expected[0]:.2f}"


def test_what_is_missing_is_simulated_and_nothing_else(folder, tmp_path, capsys, monkeypatch):
    held = json.loads((folder / "coverage.json").read_text())
    lost = held["rows"].pop(1)
    held.update(finished=None, interrupted=True)
    (tmp_path / "coverage.json").write_text(json.dumps(held))
    real, done = simulating.simulate, []
    monkeypatch.setattr(simulating, "simulate", lambda *given: done.append(given[1].name) or real(*given))
    monkeypatch.setattr(figures, "write", lambda directory, result: [])
    assert main(["resume", str(tmp_path)]) == 0
    assert done == [lost["arm"]]
    again = json.loads((tmp_path / "coverage.json").read_text())
    assert again["rows"][1] == lost and again["finished"]
    assert main(["resume", str(tmp_path)]) == 0 and len(done) == 1


def test_plans_bring_their_own_depth(tmp_path):
    plan = sa_patch.Plan((sa_patch.variant("full"), sa_patch.variant("sa", 8), sa_patch.variant("swa", 8)))
    file = tmp_path / "mine.json"
    from sa_patch.saved import config_of

    file.write_text(json.dumps(config_of(plan, "auto")))
    out = tmp_path / "run"
    asked = ["--plan", str(file), "--lengths", "80", "--seeds", "0", "--last", "8", "--directions", "causal"]
    assert main(["coverage", *asked, "--out", str(out)]) == 0
    (row,) = json.loads((out / "coverage.json").read_text())["rows"]
    assert row["layers"] == 3 and row["curves"][0]["covered"] == [1.0, 1.0, 1.0]
    assert row["curves"][0]["intervals"][0] == [None, None]  # one seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "moba"], "arm moba-w16 cannot be simulated"),
        (["--modes", "routed", "--window", "64"], "prompt_coverage(patch, input_ids) measures on a prompt"),
        (["--modes", "full"], "modes holds full only"),
        (["--layers", "0"], "layers must be at least 1"),
        (["--last", "96"], "last=96 asks for more tokens"),
        (["--directions", "up"], "directions 'up' is not known"),
        (["--dense-layers", "9"], "dense_layers has 9, but the stack has layers 0..3"),
        (["--dense-below", "crossover"], "depends on what was measured on a device"),
        (["--lengths", "2000000"], "at most 1,048,576 tokens"),
        (["--kernel", "torch"], "unknown argument '--kernel'"),
    ],
)
def test_what_can_not_be_simulated_is_refused_at_once(arguments, message, tmp_path, capsys):
    assert main(["coverage", *SMALL, "--modes", "sa", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_results_of_it_are_not_compared(folder, tmp_path, capsys):
    assert main(["compare", str(folder), str(folder)]) == 2
    assert "are not compared" in capsys.readouterr().err


def test_the_bar_counts_what_is_done():
    asked = coverage_settings(
        {"modes": "sa,swa", "window": "8", "lengths": "64,2080", "layers": 1, "seeds": "0,1", "last": 8}
    )
    for arm, variant, depth in simulating._arms(asked):
        for length in asked.of.lengths:
            ticks = []
            simulating.simulate(asked, arm, variant, depth, length, ticks.append)
            assert sum(ticks) == simulating._work(asked, arm, variant, depth, length)


def test_its_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys; from sa_eval.commands.coverage import build_parser; print(build_parser().format_help());"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sa_patch', 'pydantic', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for taught in ("--directions", "how to read it", "upper bound", "sa-eval coverage --modes", "exit status"):
        assert taught in done.stdout
