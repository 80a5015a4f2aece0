"""Laws of the package: what is installed from a wheel does what README says, away from the source."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_is_complete_and_runs_in_an_empty_folder(tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    source.mkdir(), empty.mkdir()
    run("git", "archive", "-o", tmp_path / "source.tar", "HEAD", cwd=ROOT)
    with tarfile.open(tmp_path / "source.tar") as archive:
        archive.extractall(source, filter="data")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", cwd=source)
    packages = sorted((tmp_path / "dist").iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *packages, cwd=empty)
    (wheel,) = (package for package in packages if package.suffix == ".whl")
    (sdist,) = (package for package in packages if package.suffix == ".gz")
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {path for path in run("git", "ls-files", cwd=ROOT).split() if not path.startswith(".")} <= held

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip())
    paths = {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}
    (purelib / "dependencies.pth").write_text("\n".join(sorted(paths)))  # not their own .pth: no editable install
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=empty)
    place = run(python, "-c", "import sa_eval, sa_patch; print(sa_eval.__file__, sa_patch.__file__)", cwd=empty)
    assert all(Path(path).is_relative_to(purelib) for path in place.split())
    command = [python, "-m", "sa_eval", "--config", "smoke", "--num-samples", "2", "--out", "run"]
    run(*command, "--tasks", "cloze", "--lengths", "320", "--modes", "swa", "--threads", "1", cwd=empty)
    assert len(json.loads((empty / "run" / "results.json").read_text())["arms"]) == 2
    assert (empty / "run" / "report.html").is_file()
    assert "qwen3-8b" in run(python, "-m", "sa_eval", "speed", "--help", cwd=empty)
