"""Options of the test run, and the fixtures that tests of sa_patch share."""

import os
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for each of the processes; before torch is imported
    os.environ.pop("COLUMNS", None)  # the width of tables is that of a process without a terminal

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

os.environ["SA_PATCH_HOME"] = tempfile.mkdtemp(prefix="sa-patch-")  # rules of whoever runs the tests count for nothing

from models import make_model
from support import Support

from sa_patch.kernels import rules


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too (minutes)")
    parser.addoption("--write-notebooks", action="store_true", help="keep in notebooks/ what their cells show")
    parser.addoption("--write-support", action="store_true", help="write docs/support.md from what the tests saw")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


def pytest_configure(config):
    config.pluginmanager.register(Support(config), "support")


@pytest.fixture(params=["qwen3", "qwen3_moe"])
def model(request):
    return make_model(request.param)


@pytest.fixture
def qwen3():
    return make_model("qwen3")


@pytest.fixture
def tokens():
    """[1, 48] token ids."""
    return torch.randint(1, 97, (1, 48), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rules_folder(tmp_path, monkeypatch):
    """Where tuned rules lie: an empty cache folder of the user's."""
    monkeypatch.setenv("SA_PATCH_HOME", str(tmp_path))
    rules.forget()
    yield tmp_path / "rules"
    rules.forget()
