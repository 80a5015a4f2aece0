"""Laws of shipped settings: by name or path they give runs with the dense ceiling and the control, and flags win."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from eval_helpers import save_tiny_model

from sa_eval.cli import main
from sa_eval.commands.run import build_parser, effective_settings
from sa_eval.documents import harness, ruler
from sa_eval.documents.selection import split_names
from sa_eval.settings import presets
from sa_eval.settings.arms import arms_from, left_out
from sa_eval.settings.config import settings_from
from sa_eval.settings.settings_file import read_yaml

pytestmark = pytest.mark.usefixtures("few_tasks")

FOLDER = Path(__file__).parents[3] / "configs"
NAMES = presets.names()
PAPER_TASKS = ("mmlu", "boolq", "hellaswag", "lambada_openai", "arc_easy", "arc_challenge", "humaneval")


def from_flags(*flags):
    return effective_settings(build_parser().parse(flags))


def test_every_file_is_a_name_and_every_name_a_file():
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == NAMES
    assert {"fair-swa", "longbench", "paper", "qwen3-30b-a3b", "qwen3-8b", "ruler", "smoke"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_its_path_mean_the_same_and_flags_win(name):
    settings = from_flags("--config", name)
    assert settings == from_flags("--config", str(FOLDER / f"{name}.yaml"))
    changed = from_flags("--config", name, "--window", "7", "--seeds", "5", "--model", "mine")
    assert (changed.options["window"], changed.seeds, changed.model) == ((7,), (5,), "mine")
    assert changed.tasks == settings.tasks and changed.arms == settings.arms


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_the_dense_ceiling_and_the_control_and_leaves_nothing_out(name):
    settings = from_flags("--config", name)
    arms = arms_from(settings)
    assert arms[0].name == "full" and not left_out(settings)
    controls = [arm for arm in arms if arm.mode == "random-keys"]
    assert {arm.window for arm in controls} == set(settings.options["window"])
    assert all(arm.seeds == settings.seeds for arm in controls)
    for arm in arms:
        arm.check()


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_can_be_planned_on_the_bundled_model(name, capsys):
    flags = ["--model", "qwen3-tiny", "--lengths", "512", "--window", "64", "--dtype", "auto", "--device", "cpu"]
    if name == "qwen3-30b-a3b":
        flags[1] = "qwen3-moe-tiny"
    assert main(["--config", name, *flags, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    settings = from_flags("--config", name, *flags)
    assert all(f"\n{arm.name} " in shown for arm in arms_from(settings))
    assert all(task in shown for task in settings.tasks if task != "offline")
    assert "0 left out" in shown and "memory" in shown


def test_a_plan_shows_the_papers_numbers_for_its_models(tmp_path, capsys):
    save_tiny_model(tmp_path / "Qwen3-8B")
    flags = ["--model", str(tmp_path / "Qwen3-8B"), "--window", "64", "--lengths", "512", "--dry-run"]
    assert main(["--config", "paper", *flags]) == 0
    shown = capsys.readouterr().out
    assert "w 64: swa average 50.7, swa mmlu 46" in shown and "full: full average 71.5" in shown
    assert "arXiv 2604.00754" in shown


def test_the_plan_lists_what_is_left_out_and_why(capsys):
    flags = ["--model", "qwen3-tiny", "--modes", "sa,sa+swa", "--local", "0", "16", "--window", "64"]
    assert main([*flags, "--lengths", "512", "--dense-layers", "none/99", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    reasons = dict(line.strip().split(": ", 1) for line in lines if line.startswith("         "))
    assert "already part of sa+swa" in reasons["sa+swa-w64-local16"]
    assert "99" in reasons["sa-w64-dense_99"]  # refused by this model: it has no such layer
    assert "grid     8 combinations of mode, window and options; 5 left out" in lines
    assert any(line.startswith("4 arms, 7 passes") for line in lines)


def test_an_unknown_name_is_answered_with_the_names(capsys):
    assert main(["--config", "nope"]) == 2
    assert capsys.readouterr().err.strip().endswith(", ".join(NAMES))


def test_a_file_of_that_name_wins_over_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smoke").write_text("window: 5\n")
    assert from_flags("--config", "smoke").options["window"] == (5,)


def test_the_paper_preset_is_the_papers_table():
    settings = from_flags("--config", "paper")
    assert settings.tasks == PAPER_TASKS and settings.options["window"] == (16, 32, 64, 128, 256, 512)
    assert {arm.label for arm in arms_from(settings)} == {"full", "swa", "sa", "moba", "random-keys"}
    assert (settings.num_fewshot, settings.num_samples, settings.confirm_unsafe_code) == (0, "all", False)
    families = [wanted.family for wanted in harness.wanted(list(settings.tasks), settings)]
    assert families.count("mmlu") == 57 and len(families) == 57 + 6


def test_the_ruler_preset_has_all_thirteen_tasks_at_every_length():
    settings = from_flags("--config", "ruler")
    _, names = split_names(settings)
    wanted = harness.wanted(names, settings)
    assert {(task.name, task.length) for task in wanted} == {
        (name, length) for name in ruler.NAMES for length in settings.lengths
    }
    assert len(ruler.NAMES) == 13 and "lm-eval" not in {task.family for task in wanted}
    offline = from_flags("--config", "ruler", "--tasks", "ruler-offline", "--lengths", "512")
    assert [task.name for task in harness.wanted(list(offline.tasks), offline)] == list(ruler.OFFLINE)


def test_longbench_is_taken_apart_into_its_tasks():
    settings = from_flags("--config", "longbench")
    wanted = harness.wanted(list(settings.tasks), settings)
    assert len(wanted) == 21 and {task.family for task in wanted} == {"longbench"}
    assert all(task.length is None for task in wanted)


def test_fair_windows_get_their_help_step_by_step_and_the_others_beside_them():
    settings = from_flags("--config", "fair-swa", "--window", "128")
    arms = {arm.name: arm for arm in arms_from(settings)}
    for mode in ("swa", "sa", "sa+swa", "random-keys"):
        steps = [arms[f"{mode}-{step}-w128"].options for step in ("bare", "sinks", "decode", "fair")]
        assert [step["decode"] for step in steps] == ["sparse", "sparse", "full", "full"]
        assert [step.get("sinks", 0) for step in steps] == [0, 16, 16, 16]
        assert [step.get("dense_layers", ()) for step in steps] == [(), (), (), ("1::2",)]
        assert all(step["budget"] == "pairs" for step in steps)  # so sinks are charged


@pytest.mark.slow
def test_an_installed_package_knows_its_presets(tmp_path):
    """Built without the repository at hand: the YAML files travel in the wheel."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("eval", "sa_patch", "configs"):
        shutil.copytree(FOLDER.parent / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(FOLDER.parent / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*wheel, str(source)], check=True)
    target = tmp_path / "installed"
    (file,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(file, target, "zip")
    code = "from sa_eval.settings import presets; print(presets.FOLDER, *presets.names())"
    # -S keeps the editable install of this repository out; its packages are added by hand
    path = f"import sys; sys.path[:0] = [{str(target)!r}]; "
    found = subprocess.run([sys.executable, "-S", "-c", path + code], check=True, capture_output=True, text=True).stdout
    assert found.split() == [str(target / "sa_eval" / "configs"), *NAMES]


def test_settings_of_every_preset_survive_their_own_file():
    for name in NAMES:
        settings = settings_from(read_yaml(name))
        assert settings_from(settings.to_dict()) == settings
