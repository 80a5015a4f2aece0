"""Laws of `sa-eval calibrate`: one command gives a plan and its page, and a stopped one goes on."""

import contextlib
import io
import json
import re
import shutil

import pytest
from eval_helpers import save_tiny_model, tiny_model

import sa_patch
from sa_eval.calibration import session, words
from sa_eval.calibration.types import CalibrationResult
from sa_eval.cli import main
from sa_eval.loading import models, sources
from sa_eval.records.result_folder import kind_of, read_result
from sa_eval.settings.config import settings_from
from sa_patch.calibration.reading import Reader

WORDS = ("the old baker left the ring in the kitchen", "a young teacher found the coin", "near the river they met")
SMALL = (
    "--window",
    "24",
    "--lengths",
    "256",
    "--passages",
    "1,1,2",
    "--swaps",
    "2",
    "--device",
    "cpu",
    "--threads",
    "1",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "notes.txt"
    path.write_text(" ".join(f"{number} {WORDS[number % 3]}." for number in range(400)))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def flags(model, text, out, *more):
    return ["calibrate", "--model", model, "--text", text, "--out", str(out), *SMALL, *more]


def result_of(out):
    return read_result(str(out), "calibrate", CalibrationResult)


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """The bundled model calibrated: its folder, and what was printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "plan", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(flags("qwen3-tiny", text, out)) == 0
    return out, printed.getvalue()


def test_one_command_gives_a_plan_numbers_and_a_page(done):
    out, shown = done
    made = {"sa_patch.json", "calibration.json", "journal.jsonl", "report.html", "figures", "run.lock"}
    assert {path.name for path in out.iterdir()} == made and kind_of(str(out)) == "calibrate"
    result = result_of(out)
    found, plan = result.found, json.loads((out / "sa_patch.json").read_text())
    assert result.finished and not result.interrupted and result.texts[0].name == "notes.txt"
    assert found.sentence in " ".join(shown.split()) and "sa_patch.load(model" in shown
    assert found.outcome("plan").config == plan and plan["window"] == 24
    assert [row.role for row in found.outcomes][:2] == ["plan", "recipe"]
    assert {row.role for row in found.outcomes} == {"plan", "recipe", "control"}
    assert all(row.pairs[length] <= most for row in found.outcomes for length, most in found.allowed.items())
    routers = {row.name: row.router for row in found.outcomes}
    assert routers["routed"] > 1 and routers["swa, 4 sinks"] == 0 and f"{routers['routed']:.1f}" in shown
    assert len(found.layers) == 6 and found.seconds > 0 and found.swaps_tried <= 2
    pairs = sum(row.keys_per_query for row in found.layers) * 256
    assert pairs == pytest.approx(found.outcome("plan").pairs["256"])


def test_the_plan_is_loaded_by_sa_patch_at_the_budget_it_says(done):
    out, _ = done
    net = models.load(sources.find("qwen3-tiny"), settings_from({"device": "cpu", "threads": 1})).model
    patch = sa_patch.load(net, out)
    assert patch.budget(256).pairs == result_of(out).found.outcome("plan").pairs["256"]
    assert patch.plan.window == 24


def test_the_page_says_everything_and_the_figures_have_their_text(done):
    out, _ = done
    found, written = result_of(out).found, (out / "report.html").read_text()
    assert all(row.name in written for row in found.outcomes) and f"--plan {out}" in written
    (said,) = re.findall(r'aria-label="(The plan at[^"]+)"', written)
    for row in found.layers:
        assert f"layer {row.layer}: {row.recipe}" in said
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("outcomes", "layers") for kind in ("png", "svg")}


def test_report_makes_the_page_anew_from_files_alone(done, tmp_path, capsys, monkeypatch):
    out, shown = done
    shutil.copytree(out, tmp_path / "moved")
    for name in ("report.html", "journal.jsonl", "sa_patch.json"):
        (tmp_path / "moved" / name).unlink()
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("loaded"))
    assert main(["report", str(tmp_path / "moved")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == shown.splitlines()[1]
    assert (tmp_path / "moved" / "report.html").is_file()


def test_losses_come_first(done, tmp_path):
    raw = json.loads((done[0] / "calibration.json").read_text())
    (plan,) = (row for row in raw["found"]["outcomes"] if row["name"] == "plan")
    plan["strata"][1] |= {"difference": 0.5, "low": 0.25, "high": 0.75, "divergence": 0.9}
    (tmp_path / "calibration.json").write_text(json.dumps(raw))
    result = result_of(tmp_path)
    first = words.answer(result)[0]
    assert first.startswith(f"On needle this plan loses to {result.found.recipe}: 0.9 nats against")
    assert "difference +0.5, 95\u00a0% +0.25 to +0.75" in first and words.answer(result)[-1] == result.found.sentence
    gate = next(gate for gate in words.gates(result) if gate.gate == "strata")
    assert gate.status == "warning" and "needle" in gate.where
    shown = words.render(result, 110)
    assert shown.startswith("On needle this plan loses") and "! strata" in shown


@pytest.fixture
def stopped(model, text, tmp_path, monkeypatch, capsys):
    """A folder that was interrupted in the middle of choosing."""
    out, real = tmp_path / "out", session.Steps.__call__

    def stop(steps, stage, step, total):
        if stage == "recipes" and step == 4:
            raise KeyboardInterrupt
        real(steps, stage, step, total)

    with monkeypatch.context() as patched:
        patched.setattr(session.Steps, "__call__", stop)
        assert main(flags(model, text, out)) == 130
    said = capsys.readouterr()
    assert f"sa-eval resume {out}" in said.err and "No plan yet" in said.out
    assert not (out / "sa_patch.json").exists() and result_of(out).interrupted
    return out


@pytest.fixture(scope="module")
def whole(model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(flags(model, text, out)) == 0
    return result_of(out).found


@pytest.mark.parametrize("way", ["resume", "the same command"])
def test_a_stopped_one_goes_on(stopped, whole, model, text, way, monkeypatch, capsys):
    before = (stopped / "journal.jsonl").read_text()
    asked, real = [], Reader.log_probs
    monkeypatch.setattr(Reader, "log_probs", lambda reader, *rest: (asked.append(1), real(reader, *rest))[1])
    assert main(["resume", str(stopped)] if way == "resume" else flags(model, text, stopped)) == 0
    found = result_of(stopped).found
    assert found.outcomes == whole.outcomes and found.layers == whole.layers and found.recipe == whole.recipe
    assert (stopped / "journal.jsonl").read_text().startswith(before) and not result_of(stopped).interrupted
    count = len(asked)
    assert main(["resume", str(stopped)]) == 0 and len(asked) == count
    assert "nothing is left to do" in capsys.readouterr().err


def test_other_settings_other_texts_and_used_folders_are_refused(stopped, model, text, tmp_path, capsys):
    assert main(flags(model, text, stopped, "--seed", "3")) == 2
    assert "holds a calibration with other settings: seed" in capsys.readouterr().err
    assert main(["fidelity", "--model", model, "--text", text, "--out", str(stopped)]) == 2
    assert "already holds a result of `sa-eval calibrate`" in capsys.readouterr().err
    held = json.loads((stopped / "calibration.json").read_text())
    (tmp_path / "other.txt").write_text("something else " * 2000)
    held["settings"]["text"] = [str(tmp_path / "other.txt")]
    (stopped / "calibration.json").write_text(json.dumps(held))
    assert main(["resume", str(stopped)]) == 2 and "cannot be continued" in capsys.readouterr().err
    assert main(["compare", str(stopped), str(stopped)]) == 2
    assert "sa-eval fidelity --plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--window", "4"], "window must be at least 12"),
        (["--window", "200"], "more than twice the window of 200"),
        (["--passages", "1,2"], "passages takes three numbers"),
        (["--passages", "9,9,9"], "calibration needs 54 passages of 256 tokens, the texts hold"),
        (["--lengths", "100"], "lengths must be at least 256"),
        (["--lengths", "2048"], "longer than the model's 1024 positions"),
        (["--text", "nowhere.txt"], "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_and_leaves_nothing(model, text, tmp_path, capsys, changes, message):
    assert main(flags(model, text, tmp_path / "out", *changes)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said and not (tmp_path / "out").exists()


def test_what_is_needed_is_said(capsys):
    assert main(["calibrate", "--window", "24"]) == 2 and "--text FILE" in capsys.readouterr().err
    assert main(["calibrate", "--text", "a.txt"]) == 2 and "--window N" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    shown = capsys.readouterr().out
    for part in ("what it does", "strata", "cost", "what comes out", "exit status", "needle", "aggregation"):
        assert part in shown


def test_the_bar_moves_forward_to_its_end():
    moved = []
    bar = type("Bar", (), {"describe": lambda *_, **__: None, "advance": lambda _, count: moved.append(count)})()
    steps = session.Steps(bar, {"fit": 10, "recipes": 6, "swaps": 0, "report": 4})
    for stage, done, total in (("fit", 0, 2), ("fit", 1, 2), ("recipes", 0, 3), ("recipes", 2, 3), ("report", 1, 2)):
        steps(stage, done, total)
    steps.finish()
    assert min(moved) >= 0 and sum(moved) == 20


def test_the_plan_is_an_arm_of_fidelity(model, text, tmp_path, capsys):
    net = tiny_model()
    assert main(flags(model, text, tmp_path / "mine", "--swaps", "0")) == 0
    given = ["--plan", str(tmp_path / "mine"), "--modes", "swa", "--window", "24", "--sinks", "4"]
    asked = ["fidelity", "--model", model, "--text", text, "--length", "256", "--passages", "2", "--device", "cpu"]
    assert main([*asked, *given, "--out", str(tmp_path / "fidelity")]) == 0
    cells = {cell["arm"]: cell for cell in json.loads((tmp_path / "fidelity" / "fidelity.json").read_text())["cells"]}
    pairs = sa_patch.load(net, tmp_path / "mine").budget(256).keys_per_query
    assert (
        cells["plan-mine"]["budget"]["keys_per_query"] == pytest.approx(pairs)
        and "plan-mine" in capsys.readouterr().out
    )


def test_a_target_in_nats_in_place_of_a_budget(model, text, tmp_path, capsys):
    out = tmp_path / "target"
    assert main(flags(model, text, out, "--passages", "1,1,1", "--swaps", "0", "--target-kl", "1e-9")) == 2
    assert "at or below 1e-09 on every stratum with 24 keys per query" in capsys.readouterr().err
    out = tmp_path / "reached"
    assert main(flags(model, text, out, "--passages", "1,1,1", "--swaps", "0", "--target-kl", "10")) == 0
    result, shown = result_of(out), " ".join(capsys.readouterr().out.split())
    assert "keep KL at or below 10 on the passages that the plan was chosen with" in shown
    assert json.loads((out / "sa_patch.json").read_text())["window"] < 24
    assert result.found.outcome("plan").pairs["256"] <= result.found.allowed["256"]
    assert "to stay within 10 nats of full attention?" in (out / "report.html").read_text()
    for wrong in ("0", "many"):
        assert main(flags(model, text, tmp_path / "no", "--target-kl", wrong)) == 2
        assert "target_kl must be a number of nats above 0" in capsys.readouterr().err
