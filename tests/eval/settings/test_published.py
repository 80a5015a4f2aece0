"""Laws of published numbers: checked when read, kept with the run, found for the model that ran and for no other."""

import json

import pytest
import yaml

from sa_eval.settings.config import SettingsError, settings_from, to_yaml
from sa_eval.settings.presets import settings_path
from sa_eval.settings.published import published_for
from sa_eval.settings.settings_file import read_yaml

GIVEN = {
    "source": "a paper",
    "models": {
        "Qwen/Qwen3-8B": {64: {"swa": 50.7, "sa": {"average": 66.4, "mmlu": 63}}, "full": {"full": 71.5}},
        "Qwen/Qwen3-30B-A3B": {0.5: {"sa": 73.2}},
    },
}


def test_published_numbers_last_through_yaml_and_json():
    settings = settings_from({"published": GIVEN})
    assert settings_from(yaml.safe_load(to_yaml(settings))) == settings
    assert settings_from(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "/models/qwen3-8b/", "C:\\models\\Qwen3-8B"])
def test_a_model_finds_its_own_numbers(model):
    settings = json.loads(json.dumps(settings_from({"published": GIVEN}).to_dict()))
    assert published_for(settings, model) == [
        {"label": "swa", "window": 64, "name": "average", "value": 0.507, "source": "a paper"},
        {"label": "sa", "window": 64, "name": "average", "value": 0.664, "source": "a paper"},
        {"label": "sa", "window": 64, "name": "mmlu", "value": 0.63, "source": "a paper"},
        {"label": "full", "window": None, "name": "average", "value": 0.715, "source": "a paper"},
    ]


def test_other_models_and_other_settings_find_none():
    settings = settings_from({"published": GIVEN}).to_dict()
    assert published_for(settings, "Qwen/Qwen3-8B-Base") == [] == published_for(settings_from({}).to_dict(), "qwen3-8b")
    assert published_for(settings, "Qwen3-30B-A3B")[0]["window"] == 0.5


def wrong(**change):
    return {**GIVEN, **change}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": GIVEN["models"]}, "needs a source"),
        (wrong(source=3), "needs a source"),
        (wrong(model={}), "did you mean 'models'"),
        (wrong(models={}), "must be a mapping"),
        (wrong(models={"m": {64: {"sb": 1}}}), "arm 'sb' is not known"),
        (wrong(models={"m": {64: {"sa": 101}}}), "between 0 and 100"),
        (wrong(models={"m": {64: {"sa": float("nan")}}}), "between 0 and 100"),
        (wrong(models={"m": {64: {"sa": True}}}), "between 0 and 100"),
        (wrong(models={"m": {64: {"sa": {3: 1}}}}), "no name of a task"),
        (wrong(models={"m": {-1: {"sa": 1}}}), "at least 1"),
        (wrong(models={"m": {"all": {"sa": 1}}}), "whole number"),
        (wrong(models={"m": {64: {"sa": 1}, "64": {"sa": 1}}}), "window 64 twice"),
        (wrong(models={3: {64: {"sa": 1}}}), "no name of a model"),
        ("x", "must be a mapping"),
    ],
)
def test_bad_published_numbers_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        settings_from({"published": given})


def test_the_papers_preset_holds_the_papers_numbers():
    settings = settings_from(read_yaml(settings_path("paper"))).to_dict()
    rows = {(row["label"], row["window"], row["name"]): row["value"] for row in published_for(settings, "Qwen3-8B")}
    average = [rows[label, 64, "average"] for label in ("swa", "moba", "sa")]
    assert average == pytest.approx([0.507, 0.629, 0.664]) and rows["full", None, "average"] == pytest.approx(0.715)
    assert rows["sa", 64, "lambada_openai"] == pytest.approx(0.629) and rows["swa", 32, "mmlu"] == pytest.approx(0.29)
    larger = {(row["label"], row["window"]): row["value"] for row in published_for(settings, "Qwen3-30B-A3B")}
    assert larger["sa", 256] == pytest.approx(0.777) and ("sa", 128) not in larger
