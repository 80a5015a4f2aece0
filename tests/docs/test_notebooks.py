"""The notebooks run from a clean kernel, and what they show is what is committed in them.

Numbers may differ by rounding (5 %, or 0.02); cells tagged `varies` name the machine and are only run. What programs
say on stderr (progress, warnings of other packages) is not kept.
"""

import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
MOST_BYTES = 400_000


def executed(path):
    """The notebook as a clean kernel leaves it, without stderr and timestamps."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    with TemporaryDirectory() as sockets:  # files: a TCP port that was free may be taken by the time it is bound
        NotebookClient(
            notebook,
            timeout=600,
            startup_timeout=300,
            record_timing=False,
            resources={"metadata": {"path": str(FOLDER)}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def texts(cell):
    """What a cell printed and returned, as text; pictures as the fact that there is one."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        found.append("picture" if "image/png" in data else output.get("text", data.get("text/plain", "")))
    return "".join(found)  # a stream comes in as many pieces as it was read in


def assert_alike(found, committed, where):
    assert NUMBER.sub("#", found) == NUMBER.sub("#", committed), where
    for one, other in zip(NUMBER.findall(found), NUMBER.findall(committed), strict=True):
        numbers = float(one.replace(",", "")), float(other.replace(",", ""))
        assert math.isclose(*numbers, rel_tol=0.05, abs_tol=0.02), f"{where}: {one} is committed as {other}"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    """A kernel that shares a machine, knows no terminal, and keeps its own folder of IPython."""
    for name, value in {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path), "TQDM_DISABLE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("COLUMNS", "SA_PATCH_HOME", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * ("calibrate" in path.stem)) for path in NOTEBOOKS],
)
def test_a_clean_kernel_shows_what_is_committed(path, request):
    committed = nbformat.read(path, as_version=4)
    found = executed(path)
    if request.config.getoption("--write-notebooks"):
        nbformat.write(found, path)
        return
    for number, (one, other) in enumerate(zip(found.cells, committed.cells, strict=True)):
        if one.cell_type == "code" and "varies" not in one.metadata.get("tags", ()):
            assert_alike(texts(one), texts(other), f"{path.name}, cell {number}")


def test_there_are_five_and_they_are_small_and_whole():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert path.stat().st_size <= MOST_BYTES
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed in order"
        assert sum(bool(cell.outputs) for cell in code) >= 2, "shows results"
        said = " ".join(texts(cell) for cell in code)
        assert not re.search(r"Traceback|(?<![\w.])/(?:home|root|tmp|work)/", said), "no paths, no errors"
