"""The fixtures of tests about whole runs: test modules take them by `pytest_plugins = "run_fixtures"`."""

import shutil

import pytest
from eval_helpers import save_tiny_model
from run_helpers import begin, ended, start, undrawn, unfinish

from sa_eval.page import report
from sa_eval.run import chunks


@pytest.fixture(scope="session")
def run_model(tmp_path_factory):
    """The folder of a tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def whole(run_model, tmp_path_factory):
    """A run that nothing interrupted, in one process."""
    folder = tmp_path_factory.mktemp("runs")
    assert ended(start(begin(run_model, folder / "whole"), folder / "log")) == 0
    return folder / "whole"


@pytest.fixture
def killed(whole, tmp_path):
    """The whole run as if the process had been killed before its last word."""
    out = shutil.copytree(whole, tmp_path / "killed")
    unfinish(out)
    return out


@pytest.fixture
def small_chunks(monkeypatch):
    """Runs in this process are as in those started here."""
    monkeypatch.setattr(chunks, "TOKENS_PER_ROW", 1)
    monkeypatch.setattr(report, "write", undrawn)
