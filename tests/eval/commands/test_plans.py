"""Laws of plans as arms: in runs and fidelity they are arms like any other, and no file is needed to continue."""

import json
import shutil

import pytest
import yaml
from eval_helpers import save_tiny_model, tiny_model

import sa_patch
from sa_eval.cli import main
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import SettingsError, settings_from, to_yaml
from sa_patch import Plan, variant
from sa_patch.saved import config_of, write_config

LAYERS = (variant("full"), variant("swa", 12, sinks=2))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def plan(tmp_path):
    """The folder of a plan for two layers."""
    write_config(tmp_path / "mine", config_of(Plan(LAYERS, window=32), "reference"))
    return tmp_path / "mine"


def only_arm(*plans, **given):
    full, arm = arms_from(settings_from({"plans": [str(plan) for plan in plans], **given}))
    assert full.name == "full"
    return arm


def test_a_plan_is_an_arm_with_everything_in_it(plan):
    arm = only_arm(plan)
    assert (arm.name, arm.label, arm.mode, arm.window, arm.kernel) == ("plan-mine",) * 2 + ("plan", 32, "reference")
    assert arm.options["plan"] == json.loads((plan / "sa_patch.json").read_text())
    assert only_arm(plan / "sa_patch.json") == arm and only_arm(plan, kernel="torch").kernel == "torch"
    shutil.copy(plan / "sa_patch.json", plan.parent / "other name.json")
    assert only_arm(plan.parent / "other name.json").name == "plan-other-name"
    net = tiny_model()
    patch = arm.apply(net, 0)
    assert patch.plan == Plan(LAYERS, window=32) and patch.kernel == "reference"


def test_settings_hold_the_plan_when_its_file_is_gone(plan):
    settings = settings_from({"plans": str(plan)})
    before = arms_from(settings)
    shutil.rmtree(plan)
    assert arms_from(settings_from(yaml.safe_load(to_yaml(settings)))) == before


def test_files_of_one_variant_and_plans_without_a_window(tmp_path):
    net = tiny_model()
    sa_patch.apply(net, "sa", 24, dense_tail=4).save(tmp_path / "one.json")
    arm = only_arm(tmp_path / "one.json")
    assert (arm.mode, arm.window, arm.dense_tail) == ("plan", 24, 4)
    assert arm.apply(net, 0).variant == variant("sa", 24, dense_tail=4)
    write_config(tmp_path / "two.json", config_of(Plan((variant("swa", 10), variant("swa", 21))), "auto"))
    assert only_arm(tmp_path / "two.json").window == 16
    write_config(tmp_path / "whole.json", config_of(Plan((variant("full"),) * 2), "auto"))
    with pytest.raises(SettingsError, match="every layer is full attention"):
        only_arm(tmp_path / "whole.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be used: "),
        ("[1]", "it holds no version"),
        ('{"version": 9}', "this release of sa_patch reads up to 2"),
        ('{"version": 2, "variants": [], "layers": [0]}', "must number its 0 variants from 0"),
        ('{"version": 2, "variants": [{"mode": "swa"}], "layer": [0]}', "did you mean 'layers'"),
        ('{"version": 1, "mode": "swaa"}', "unknown mode 'swaa'"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, capsys, content, message):
    (tmp_path / "bad.json").write_text(content)
    assert main(["--plan", str(tmp_path / "bad.json"), "--dry-run"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and "plan" in said
    assert main(["--plan", str(tmp_path / "none"), "--dry-run"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_two_plans_of_one_name_are_refused(plan, tmp_path):
    shutil.copytree(plan, tmp_path / "again" / "mine")
    with pytest.raises(SettingsError, match="two plans called 'mine'"):
        settings_from({"plans": [str(plan), str(tmp_path / "again" / "mine")]})


def test_a_dry_run_shows_the_measured_budget(plan, model, capsys):
    flags = ["--model", model, "--plan", str(plan), "--modes", "swa", "--window", "32", "--lengths", "128"]
    assert main([*flags, "--num-samples", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    patch = only_arm(plan).apply(tiny_model(), 0)
    assert f"{patch.budget(128).keys_per_query:,.1f}" in next(
        line for line in shown.splitlines() if line.startswith("plan-mine")
    )


def test_a_run_with_a_plan_is_compared_and_continued_without_its_file(plan, model, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--model", model, "--plan", str(plan), "--modes", "swa", "--window", "32", "--lengths", "256"]
    more = ["--tasks", "needle_single", "--num-samples", "4", "--device", "cpu", "--no-speed", "--out", str(out)]
    assert main([*flags, *more]) in (0, 1)
    shown = capsys.readouterr().out
    assert "plan-mine" in shown
    results = json.loads((out / "results.json").read_text())
    pairs = {(row["arm"], row["base"]) for row in results["comparisons"]}
    assert ("plan-mine", "swa-w32") in pairs
    assert "plan-mine" in (out / "report.html").read_text()
    rows = (out / "records" / "plan-mine.seed0.jsonl").read_text().splitlines()
    (out / "records" / "plan-mine.seed0.jsonl").write_text(rows[0] + "\n")
    shutil.rmtree(plan)
    assert main(["resume", str(out)]) in (0, 1)
    assert len((out / "records" / "plan-mine.seed0.jsonl").read_text().splitlines()) == len(rows)


def test_fidelity_looks_at_every_layer_under_its_own_variant(plan, model, tmp_path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text(" ".join(f"{number} the baker left the ring near the river" for number in range(60)))
    flags = ["--model", model, "--text", str(text), "--length", "128", "--passages", "2", "--device", "cpu"]
    given = ["--plan", str(plan), "--modes", "swa", "--window", "12", "--sinks", "2", "--out", str(tmp_path / "out")]
    assert main(["fidelity", *flags, *given]) == 0
    found = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    cells = {cell["arm"]: cell for cell in found["cells"]}
    mine, other = cells["plan-mine"]["layers"], cells["swa-w12-sinks2"]["layers"]
    assert mine[0]["isolated_error"] == 0 and mine[0]["kept_mass"] == pytest.approx(1)
    assert (
        mine[1]["isolated_error"] == pytest.approx(other[1]["isolated_error"], rel=1e-4) and other[1]["kept_mass"] < 1
    )
    assert found["arms"][2]["options"]["plan"]["layers"] == [0, 1]
    assert "plan-mine" in (tmp_path / "out" / "report.html").read_text()


def test_speed_takes_plans(plan, model, tmp_path, capsys):
    flags = ["--model", model, "--plan", str(plan), "--lengths", "64", "--repeats", "1", "--new-tokens", "0"]
    assert main(["speed", *flags, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert [row["arm"] for row in found["rows"]] == ["full", "plan-mine", "none"]
