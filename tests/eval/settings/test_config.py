"""Laws of settings and arms: flags and YAML are one thing, and nothing unknown gets through."""

from pathlib import Path

import pytest
import yaml

from sa_eval.commands.run import build_parser, effective_settings
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import Settings, SettingsError, known_settings, settings_from, to_yaml


def from_flags(*flags):
    return effective_settings(build_parser().parse(flags))


def test_saved_settings_give_the_same_settings():
    settings = settings_from(
        {"modes": "sa,moba", "window": [32, 0.25], "dense_layers": "0,-1", "seeds": "3,4", "out": "x"}
    )
    assert settings_from(yaml.safe_load(to_yaml(settings))) == settings


def test_defaults_survive_the_round_trip():
    assert settings_from(yaml.safe_load(to_yaml(Settings()))) == Settings()


def test_flags_and_yaml_are_the_same_settings(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("modes: [sa, sa+swa]\nwindow: [64, 0.5]\nlengths: [512]\nnum_samples: 7\nspeed: false\n")
    flags = ["--modes", "sa,sa+swa", "--window", "64", "0.5", "--lengths", "512", "--num-samples", "7", "--no-speed"]
    assert from_flags("--config", str(file)) == from_flags(*flags)


def test_a_flag_wins_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("num_samples: 7\nbatch_size: 3\n")
    settings = from_flags("--config", str(file), "--num-samples", "9")
    assert (settings.num_samples, settings.batch_size) == (9, 3)


def test_every_setting_has_a_flag_with_help():
    text = build_parser().format_help()
    for name, setting in known_settings().items():
        assert setting.help and ("--" + name.replace("_", "-") in text) != setting.in_files_only


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windows": 64}, "did you mean 'window'"),
        ({"modes": "sa-buckets"}, "did you mean 'sa-bucket'"),
        ({"window": 0}, "at least 1"),
        ({"window": 1.5}, "fraction between 0 and 1"),
        ({"window": 1.0}, "fraction between 0 and 1"),
        ({"window": "many"}, "whole number"),
        ({"window": -0.5}, "fraction between 0 and 1"),
        ({"lengths": [512, 512]}, "512 twice"),
        ({"lengths": []}, "empty list"),
        ({"lengths": True}, "whole number"),
        ({"num_samples": 0}, "at least 1"),
        ({"num_samples": "some"}, "whole number"),
        ({"num_samples": "all"}, "endless"),
        ({"num_samples": [1, 2]}, "one value"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"speed": "yes"}, "true or false"),
        ({"decode": None}, "empty"),
        ({"model": 3}, "must be text"),
        ({"seeds": "0,x"}, "whole number"),
    ],
)
def test_bad_settings_are_refused_with_what_to_do(given, message):
    with pytest.raises(SettingsError, match=message):
        settings_from(given)


def test_a_broken_file_is_refused_by_name(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("modes: [sa\n")
    with pytest.raises(SettingsError, match=r"broken\.yaml is not valid YAML"):
        from_flags("--config", str(file))
    with pytest.raises(SettingsError, match="cannot read"):
        from_flags("--config", str(tmp_path / "missing.yaml"))


def test_full_is_always_there_once_and_first():
    for modes in ("sa,moba", "moba,full,sa"):
        names = [arm.name for arm in arms_from(settings_from({"modes": modes, "window": "32,64"}))]
        assert names[0] == "full" and names.count("full") == 1 and len(names) == 5


def test_arms_are_unique_and_only_random_ones_have_seeds():
    settings = settings_from(
        {"modes": "swa,sa,sa-bucket,sa+swa,moba", "window": "32,0.5", "seeds": "0,1,2", "dense_tail": "0,16"}
    )
    arms = arms_from(settings)
    assert len({arm.name for arm in arms}) == len(arms) == 1 + 5 * 2 * 2
    assert {arm.label for arm in arms if len(arm.seeds) == 3} == {"sa", "sa-bucket", "sa+swa"}


def test_every_built_in_arm_can_be_made():
    for arm in arms_from(settings_from({"modes": "swa,sa,sa-bucket,sa-circular,sa+swa,moba", "window": "64,0.25"})):
        arm.check()


def test_an_impossible_arm_is_refused_before_a_model_is_loaded():
    with pytest.raises(SettingsError, match="sa-w8-sinks64 cannot run"):
        arms_from(settings_from({"modes": "sa", "window": 8, "sinks": 64}))
    (_, arm) = arms_from(settings_from({"modes": "sa", "kernel": "fast"}))[:2]
    with pytest.raises(SettingsError, match="sa-w64 cannot run"):
        arm.check()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_config_we_ship_can_run(path):
    for arm in arms_from(from_flags("--config", str(path))):
        arm.check()
