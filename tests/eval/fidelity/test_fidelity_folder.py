"""Laws of a fidelity result as a folder: it is read, continued, compared and rendered from its file alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from eval_helpers import save_tiny_model

from sa_eval.cli import main
from sa_eval.fidelity import loss_headline, measuring
from sa_eval.fidelity.types import Fidelity
from sa_eval.records.result_folder import read_result

VERSION_1 = Path(__file__).parent / "version1"
SPEED_VERSION_1 = Path(__file__).parents[1] / "speed" / "version1"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "notes.txt"
    path.write_text(" ".join(f"{number} the baker left the ring near the river" for number in range(60)))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def interrupted(model, text, tmp_path, monkeypatch, capsys):
    """A folder whose last arm is missing; the flags that made it."""
    real, out = measuring.measure, tmp_path / "out"

    def stop(subject, arm, *rest):
        if arm.name == "sa-w16":
            raise KeyboardInterrupt
        return real(subject, arm, *rest)

    monkeypatch.setattr(measuring, "measure", stop)
    flags = ["--model", model, "--text", text, "--length", "64", "--passages", "2", "--window", "16", "--modes"]
    assert main(["fidelity", *flags, "swa", "sa", "--device", "cpu", "--out", str(out)]) == 130
    monkeypatch.setattr(measuring, "measure", real)
    assert f"sa-eval resume {out}" in capsys.readouterr().err
    return out


def test_files_of_version_1_read_and_newer_ones_are_refused(tmp_path, capsys):
    found = read_result(str(VERSION_1), "fidelity", Fidelity)
    assert [(cell.arm, cell.overall.kl) for cell in found.cells] == [("full", 0.0), ("sa-w64", 4.719888793436675)]
    assert found.cells[0].by_copy_distance[0].kl is None and found.request is None
    shutil.copytree(VERSION_1, tmp_path / "new")
    file = tmp_path / "new" / "fidelity.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 99'))
    assert main(["report", str(tmp_path / "new")]) == 2 and "schema 99" in capsys.readouterr().err


def test_report_makes_the_page_of_a_version_1_file(tmp_path, capsys):
    shutil.copytree(VERSION_1, tmp_path / "old")
    assert main(["report", str(tmp_path / "old")]) == 0
    page = (tmp_path / "old" / "report.html").read_text()
    assert "sa is 4.72 nats from full (3.84 to 5.59)" in page and "sa is 4.72" in capsys.readouterr().out


def test_resume_measures_only_what_is_missing(interrupted, monkeypatch, capsys):
    asked, real = [], measuring.measure
    monkeypatch.setattr(
        measuring, "measure", lambda subject, arm, *rest: (asked.append(arm.name), real(subject, arm, *rest))[1]
    )
    before = json.loads((interrupted / "fidelity.json").read_text())
    assert main(["resume", str(interrupted)]) == 0
    found = json.loads((interrupted / "fidelity.json").read_text())
    assert asked == ["sa-w16"] and found["cells"][:2] == before["cells"]
    assert [cell["arm"] for cell in found["cells"]] == ["full", "swa-w16", "sa-w16"]
    assert found["finished"] and not found["interrupted"]
    assert main(["resume", str(interrupted)]) == 0 and "nothing is left to do" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("code", "another"), ("versions", {"torch": "1.0"})])
def test_resume_refuses_another_code_or_version_and_changes_nothing(interrupted, capsys, name, value):
    file = interrupted / "fidelity.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    before = file.read_bytes()
    assert main(["resume", str(interrupted)]) == 2
    assert "cannot be continued: " + name in capsys.readouterr().err and file.read_bytes() == before


def test_identical_results_compare_in_one_line_and_other_kinds_are_refused(tmp_path, capsys):
    assert main(["compare", str(VERSION_1), str(VERSION_1)]) == 0
    assert "identical: 2 of 2 arms and lengths (all)" in capsys.readouterr().out
    assert main(["compare", str(VERSION_1), str(SPEED_VERSION_1)]) == 2
    assert "folders of one kind belong together" in capsys.readouterr().err


def test_a_model_that_is_not_bundled_needs_a_text(model, tmp_path, capsys):
    assert main(["fidelity", "--model", model, "--out", str(tmp_path / "out")]) == 2
    assert "--text FILE" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_headline_names_no_closest_arm_that_the_passages_cannot_show():
    result = read_result(str(VERSION_1), "fidelity", Fidelity)
    sa = result.cells[1]
    near = replace(
        sa, arm="near", overall=replace(sa.overall, kl=0.5), by_passage=[replace(row, kl=0.5) for row in sa.by_passage]
    )
    result.arms.append(replace(result.arms[1], name="near", label="near"))
    result.cells.append(near)
    (said,) = loss_headline.sentences(result)
    assert "sa is 4.72 nats from full (3.84 to 5.59), near 0.5" in said and said.endswith("the closest is near.")
    result.cells[2] = replace(near, by_passage=sa.by_passage)
    assert "cannot tell sa and near apart" in loss_headline.sentences(result)[0]
    result.cells[1:] = [replace(cell, passages=3) for cell in result.cells[1:]]
    assert loss_headline.sentences(result)[0].startswith("3 passages: too few to say which arm is closest.")
