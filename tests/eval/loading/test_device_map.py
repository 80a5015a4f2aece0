"""Laws of models that do not fit one device: accelerate may keep layers elsewhere, scores stay the same."""

import pytest
from eval_helpers import save_tiny_model
from transformers.integrations import accelerate

from sa_eval.loading import models, sources
from sa_eval.progress import Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.run import runner
from sa_eval.settings.config import settings_from


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def records(model, folder, **given):
    settings = {
        **{"model": model, "tasks": ["majority_topic", "needle_single"], "lengths": [192], "num_samples": 2},
        **{"modes": ["sa"], "window": [16], "seeds": [0], "dtype": "float32", "device": "cpu", "out": str(folder)},
    }
    runner.run(settings_from({**settings, **given}), Progress(enabled=False))
    directory = RunDirectory(folder)
    assert directory.failures() == []
    return {(row.arm, row.task, row.index): row for row in directory.records()}


@pytest.mark.parametrize("memory", [None, 144_000, 60_000], ids=["all there", "layers on disk", "everything on disk"])
def test_a_device_map_changes_no_record(model, tmp_path, monkeypatch, memory):
    expected = records(model, tmp_path / "plain", speed=False)
    if memory is not None:
        monkeypatch.setattr(accelerate, "get_max_memory", lambda *_: {"cpu": memory})
        spread = models.load(sources.find(model), settings_from({"model": model, "device_map": "auto"})).model
        assert sum(parameter.is_meta for parameter in spread.parameters()) > 10
    assert records(model, tmp_path / "mapped", device_map="auto", speed=True) == expected
