"""Laws of hostile settings: flags and files of any content give settings that can run, or one short error."""

import itertools
import os
from pathlib import Path

import pytest
import yaml
from eval_helpers import save_tiny_model
from hostile_helpers import files_under
from hypothesis import HealthCheck, example, given, settings, strategies

from sa_eval.cli import main
from sa_eval.documents import harness, selection
from sa_eval.documents.prepared import PreparedTask
from sa_eval.loading import models
from sa_eval.run import runner
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import SettingsError, known_settings, settings_from, to_yaml
from sa_eval.settings.settings_file import read_yaml
from sa_eval.settings.values import LARGEST

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = [None, True, -1, 0, 1, 7, LARGEST, LARGEST + 1, 2**80, 0.5, 1.0, 1e-9, float("nan"), float("inf"), -0.5]
WORDS = ["", " 7 ", "64", "64,64", "0.25", "1e400", "nan", "all", "crossover", "x", "sa", "sa,moba", "\0", "\x1b[31m"]
VALUE = strategies.recursive(
    strategies.sampled_from([*ODD, *WORDS, b"7", {1}]) | strategies.integers(0, 600) | strategies.floats(0, 1),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=3), inner),
    max_leaves=4,
)
GIVEN = strategies.dictionaries(strategies.sampled_from([*known_settings(), "windows"]), VALUE, max_size=3)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@FUZZ
@given(given=GIVEN)
@example(given={"window": 10**5000})  # more digits than Python prints
@example(given={"window": {"x": 10**5000}})
def test_any_values_give_settings_that_last_or_one_short_error(given):
    try:
        found = settings_from(given)
        for arm in arms_from(found):
            arm.check()
    except SettingsError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return
    assert settings_from(yaml.safe_load(to_yaml(found))) == found
    names = [arm.name for arm in arms_from(found)]
    assert len(set(names)) == len(names) and names[0] == "full"
    for name, value in found.to_dict().items():
        numbers = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, (int, float))]
        assert all(abs(number) <= LARGEST for number in numbers), name


@FUZZ
@given(content=strategies.text(alphabet="ab:&*<>!-{}[]'\"\n |?#%@`,0.", max_size=40) | strategies.text(max_size=20))
def test_any_text_is_a_mapping_or_one_error(content):
    Path("fuzz.yaml").write_text(content, encoding="utf-8", errors="replace")
    try:
        found = read_yaml("fuzz.yaml")
    except SettingsError:
        return
    assert all(isinstance(key, str) for key in found)


LEVELS = "abcdefghij"


def bomb(form):
    """Ten levels of ten aliases each: as text 1 KB, written out 10 billion entries."""
    lines = [f"a: &a {form.format(', '.join('xxxxxxxxxx'))}"]
    lines += [
        f"{name}: &{name} {form.format(', '.join([f'*{below}'] * 10))}" for below, name in itertools.pairwise(LEVELS)
    ]
    return "\n".join([*lines, "window: *j"])


def yaml_case(content, message, row=None):
    marks = pytest.mark.cell("Input", f"sa-eval, {row}") if row else ()
    return pytest.param(content, message, marks=marks, id=content[:30])


TAGS, MERGES, TWICE = "YAML with Python tags", "YAML with merges", "a setting given twice in YAML"
YAMLS = [
    yaml_case("window: !!python/object/apply:os.mkdir [made]", "not valid YAML", TAGS),
    yaml_case("window: !!python/name:os.system", "not valid YAML", TAGS),
    yaml_case("!!python/object/new:os.mkdir [made]", "not valid YAML", TAGS),
    yaml_case("window: 64\nmodes: sa\nwindow: 128", "holds 'window' twice", TWICE),
    yaml_case("base: &base {seeds: 1}\n<<: *base", "merges mappings", MERGES),
    yaml_case(bomb("{{<<: [{}]}}").replace("<<: [x", "y: [x"), "merges mappings", MERGES),
    yaml_case(bomb("[{}]"), "unknown setting 'a'"),
    yaml_case("window: &loop [*loop]", "must be a whole number"),
    yaml_case("[" * 5000, "not valid YAML"),
    yaml_case("window: 2020-99-99", "not valid YAML"),
    yaml_case("window: !!bool maybe", "not valid YAML"),
    yaml_case("window: !!timestamp never", "not valid YAML"),
    yaml_case("window: !!map [1]", "not valid YAML"),
    yaml_case("window: " + "9" * 5000, "not valid YAML"),
    yaml_case("window: 0x" + "f" * 5000, "at most 2,147,483,647"),
    yaml_case("window: .nan", "whole number"),
    yaml_case("window: .inf", "whole number"),
    yaml_case("7: 64", "7 where the name of a setting belongs"),
    yaml_case("? [1, 2]\n: 3", "not valid YAML"),
    yaml_case("- window: 64", "found a list"),
    yaml_case("a: 1\n---\na: 2", "not valid YAML"),
    yaml_case("window: \0", "not valid YAML"),
    yaml_case("#" * 2**20 + "\nwindow: 64", "more than 1,048,576 characters"),
]


@pytest.mark.parametrize(("content", "message"), YAMLS)
def test_yaml_that_is_more_than_settings_is_refused(capsys, refused, content, message):
    Path("run.yaml").write_text(content)
    with refused(SettingsError, match=message):
        settings_from(read_yaml("run.yaml"))
    assert main(["--config", "run.yaml", "--out", "run"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("sa-eval: ") and "Traceback" not in shown and len(shown) < 1500
    assert os.listdir() == ["run.yaml"]


def test_endless_aliases_are_shown_in_short():
    Path("run.yaml").write_text(bomb("[{}]"))
    with pytest.raises(SettingsError, match="whole number") as caught:
        settings_from({"window": read_yaml("run.yaml")["window"]})
    assert len(str(caught.value)) < 700


FLAGS = [
    (["--window", "-64"], "window must be at least 1, found -64"),
    (["--window", "64,64"], "window holds 64 twice"),
    (["--window", "nan"], "whole number"),
    (["--window", "99999999999999999999"], "at most 2,147,483,647"),
    (["--modes", "sa,swa,sa"], "modes holds sa twice"),
    (["--lengths", "2147483647"], "longer than the model's 1024 positions"),
    (["--threads", "1000000"], "threads must be at most 1,024"),
    (["--seeds", "-1"], "seeds must be at least 0"),
    (["--num-samples", "all"], "num_samples 'all' has no end for cloze"),
    (["--device", "meta"], "'meta' holds no numbers"),
    (["--device", "nonsense"], "is not a torch device"),
    (["--device-map", "nonsense"], "cannot load the model"),
    (["--revision", "main"], "revision 'main' is for hub models"),
    (["--model", "~nobody/model"], "nor a hub id"),
    (["--model", "x" * 5000], "nor a hub id"),
    (["--model", "a\0b"], "nor a hub id"),
    (["--config", "/dev/zero"], "that is no config"),
    (["--config", "\0"], "not valid YAML"),
    (["--out", "tiny/config.json"], "already holds something"),
    (["--out", "tiny/config.json/run"], "no directory that can be written"),
    (["--out", "x" * 5000], "cannot be made"),
    (["--out", "a\0b"], "cannot be made"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS, ids=lambda value: str(value)[:40])
def test_hostile_flags_give_one_message_and_change_nothing(place, capsys, flags, message):
    save_tiny_model(place / "tiny")
    before = files_under(place)
    capsys.readouterr()
    usual = ["--model", "tiny", "--tasks", "cloze", "--device", "cpu", "--no-speed", "--out", "run"]
    assert main([*usual, *flags]) == 2
    *before_it, shown = capsys.readouterr().err.strip().splitlines()
    assert message in shown and shown.startswith("sa-eval: ") and len(shown) < 1500
    assert all(line.startswith("loading tiny") for line in before_it)
    assert files_under(place) == before and os.listdir() == ["tiny"]


@pytest.mark.parametrize("flags", [["--lengths", "2147483647"], ["--dense-layers", "99"], ["--sinks", "0.9"]], ids=str)
def test_a_dry_run_refuses_what_the_model_cannot_do(place, capsys, flags):
    save_tiny_model(place / "tiny")
    assert main(["--model", "tiny", "--window", "32", "--modes", "swa", "--lengths", "320", *flags, "--dry-run"]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith("sa-eval: ") and not any("Traceback" in line for line in shown)


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--window", "2147483647"], 160.5),
        (["--window", "1"], 1.0),
        (["--window", "1e-9"], 1.0),
        (["--dense-tail", "2147483647", "--window", "32"], 160.5),
    ],
    ids=str,
)
def test_extreme_budgets_mean_all_or_one_key(place, capsys, flags, keys):
    save_tiny_model(place / "tiny")
    command = ["--model", "tiny", "--tasks", "cloze", "--lengths", "320", "--modes", "swa,sa", "--device", "cpu"]
    assert main([*command, *flags, "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("swa-", "sa-"))]
    assert len(lines) == 2 and all(float(line[2]) == keys for line in lines)


def test_two_tasks_of_one_name_are_told_apart_by_refusing_the_second(monkeypatch):
    """Their records would be counted as one task's, with twice the seeds."""
    task = PreparedTask("same", None, "lm-eval", "multiple_choice", None)
    monkeypatch.setattr(harness, "prepare", lambda *arguments: [task])
    given, failed = settings_from({"tasks": "one.yaml,two.yaml"}), []
    quiet = runner.Progress(enabled=False)
    tasks = selection.all_tasks(given, None, quiet, lambda label, error: failed.append((label, str(error))))
    assert tasks == [task] and [label for label, _ in failed] == ["two.yaml"]
    assert "another task is called same" in failed[0][1]


def test_an_unwritable_place_is_refused_before_loading(place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(models, "load", lambda *arguments: pytest.fail("loaded"))
    save_tiny_model(place / "tiny")
    given = settings_from({"model": "tiny", "tasks": "cloze", "out": "run"})
    with pytest.raises(SettingsError, match=r"out 'run' cannot be made: .*no directory that can be written"):
        runner.run(given, runner.Progress(enabled=False))
