"""Laws of runs that lose nothing: whatever ends a run, what was finished stays, and resume makes it the whole run."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from run_helpers import assert_same_run, begin, by_place, contents, ended, lines, start, wait_for_records

from sa_eval.cli import main
from sa_eval.progress import Progress
from sa_eval.records import lock, resume
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import Speed
from sa_eval.run import preparation, runner
from sa_eval.settings.arms import Arm

pytest_plugins = "run_fixtures"
pytestmark = pytest.mark.usefixtures("small_chunks")
DOCUMENTS = 8  # per arm, in chunks of 2


def kill_until_done(run_model, out, log, seed, kills):
    """SIGKILL sessions at random points, most of them while records are written, then let one end."""
    draw, arguments = random.Random(seed), begin(run_model, out)
    for _ in range(kills):
        process = start(arguments, log)
        if draw.random() < 0.75:
            wait_for_records(process, out, sum(lines(out).values()) + draw.randint(0, 8))
            time.sleep(draw.uniform(0, 0.05))
        else:
            time.sleep(draw.uniform(0, 1))
        process.kill()
        process.join()
        if (out / "config.yaml").exists():
            arguments = ["resume", str(out)]
        elif out.exists():  # killed between making the directory and its first file
            (out / "records").rmdir()
            (out / "run.lock").unlink(missing_ok=True)
    assert ended(start(arguments, log)) == 0, log.read_text()


def test_killed_at_random_points_and_resumed_a_run_is_the_uninterrupted_one(run_model, whole, tmp_path):
    kill_until_done(run_model, tmp_path / "run", tmp_path / "log", seed=0, kills=3)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_often_a_run_is_the_uninterrupted_one(run_model, whole, tmp_path, seed):
    kill_until_done(run_model, tmp_path / "run", tmp_path / "log", seed, kills=12)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_interrupted_a_run_reports_what_is_finished_and_resume_ends_it(run_model, whole, tmp_path, number, status):
    out = tmp_path / "run"
    process = start(begin(run_model, out), tmp_path / "log", drawn=True)
    assert wait_for_records(process, out, DOCUMENTS + 1)
    os.kill(process.pid, number)
    assert ended(process) == status
    shown = (tmp_path / "log").read_text()
    results = json.loads((out / "results.json").read_text())
    assert (out / "report.html").exists() and f"sa-eval resume {out}" in shown and "Traceback" not in shown
    assert "full" not in results["unfinished"] and "sa-w24" in results["unfinished"]
    assert [row["error"] for row in results["failures"]] == ["interrupted by the user"]
    assert ended(start(["resume", str(out)], tmp_path / "log")) == 0
    assert_same_run(out, whole)


def test_a_full_disk_stops_the_run_with_one_message_and_loses_nothing(run_model, tmp_path):
    more = ("--batch-size", "1", "--modes", "swa,sa,moba", "--seeds", "0,1")
    whole, out, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert ended(start(begin(run_model, whole, *more), log)) == 0
    largest = (whole / "arm_runs.jsonl").stat().st_size * 3 // 4
    assert largest > (whole / "documents.jsonl").stat().st_size  # so that it is scoring that is stopped
    log.unlink()
    assert ended(start(begin(run_model, out, *more), log, largest_file=largest)) == 2
    shown, finished = log.read_text(), by_place(out)
    assert "cannot write" in shown and "make room" in shown and "sa-eval resume" in shown and "Traceback" not in shown
    assert 0 < len(finished) < 5 * DOCUMENTS and not any(row.error for row in finished.values())
    assert ended(start(["resume", str(out)], log)) == 0
    assert finished.items() <= by_place(out).items()
    assert_same_run(out, whole)


def test_a_torn_line_is_cut_off_and_only_its_document_asked_again(whole, killed, capsys):
    file, wanted = killed / "records" / "sa-w24.seed0.jsonl", by_place(whole)
    file.write_bytes(file.read_bytes()[:-70])
    kept = file.read_bytes().rpartition(b"\n")[0]
    assert len(by_place(killed)) == len(wanted) - 1
    assert main(["resume", str(killed)]) == 0
    assert file.read_bytes().startswith(kept + b"\n") and file.read_bytes().count(b"\n") == DOCUMENTS
    found = by_place(killed)
    again = found.pop(("sa-w24", 0, "cloze@192", 3))  # in another batch than before: equal but for roundings
    before = wanted.pop(("sa-w24", 0, "cloze@192", 3))
    assert found == wanted and replace(again, output=0) == replace(before, output=0)
    assert again.output[0] == pytest.approx(before.output[0], abs=1e-3)


def test_a_damaged_line_is_refused_by_file_and_number_never_skipped(killed, capsys):
    file = killed / "records" / "swa-w24.seed0.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*rows[:4], rows[4][:40] + b"\0\xff\n", *rows[5:]]))
    before = contents(killed)
    assert main(["resume", str(killed)]) == 2
    shown = capsys.readouterr().err
    assert "swa-w24.seed0.jsonl, line 5 is damaged" in shown and "sed -i 5d" in shown
    assert contents(killed) == before


def test_a_second_process_is_refused_at_once_and_a_killed_one_leaves_no_lock(run_model, whole, tmp_path, capsys):
    out = tmp_path / "run"
    process = start(begin(run_model, out), tmp_path / "log")
    assert wait_for_records(process, out, 1)
    assert main(["resume", str(out)]) == 2
    assert f"is in use by process {process.pid} on " in capsys.readouterr().err
    process.kill()
    process.join()
    with lock.hold(out / "run.lock"):
        pass
    assert main(["run", "--model", run_model, "--out", str(out)]) == 2
    assert f"sa-eval resume {out}" in capsys.readouterr().err


# --- resume itself ---------------------------------------------------------------------------------------------------


def test_resume_measures_nothing_twice_and_starts_its_bar_at_what_is_done(killed, monkeypatch, capsys):
    file = killed / "records" / "sa-w24.seed0.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(rows[:6]))
    logs = {name: (killed / f"{name}.jsonl").read_bytes() for name in ("budgets", "checks", "documents")}
    bars, honest = [], runner.Progress.bar

    def bar(self, total, text, unit, done=0):
        bars.append((text, total, done))
        return honest(self, total, text, unit, done)

    monkeypatch.setattr(runner.Progress, "bar", bar)
    monkeypatch.setattr(preparation.selftest, "check", None)  # it holds from before
    assert main(["resume", str(killed)]) == 0
    assert {name: (killed / f"{name}.jsonl").read_bytes() for name in logs} == logs
    assert bars[-1] == ("evaluation", 3 * DOCUMENTS, 2 * DOCUMENTS + 6)


def test_latency_is_measured_again_only_for_lengths_that_lack_an_arm(tmp_path, monkeypatch):
    asked = []

    def measured(arm, length, prefill_ms):
        return Speed(arm.name, length, 2, prefill_ms, [prefill_ms], spread=0.0, first_ms=[])

    def measure_prefill(model, arms, prompts, **given):
        asked.append((list(prompts), [arm.name for arm in arms]))
        return [measured(arm, length, 1.0) for arm in arms for length in prompts]

    monkeypatch.setattr("sa_eval.speed.clock.measure_prefill", measure_prefill)
    lm = SimpleNamespace(model=None, prompt_row=lambda request: [1, 2])
    task = SimpleNamespace(instances=[None])
    tasks = [SimpleNamespace(length=length, task=task) for length in (64, 128, 128)]
    arms, directory = [Arm("full", "full", "full", None), Arm("swa-w8", "swa", "swa", 8)], RunDirectory(tmp_path)
    directory.append(measured(arms[0], 128, 9.0), *(measured(arm, 64, 9.0) for arm in arms))
    for _ in range(2):
        preparation.latency(lm, arms, tasks, directory, Progress(enabled=False), None)
    assert asked == [([128], ["full", "swa-w8"])]
    times = {(row.arm, row.length): row.prefill_ms for row in directory.speed()}
    assert times == {("full", 64): 9.0, ("swa-w8", 64): 9.0, ("full", 128): 1.0, ("swa-w8", 128): 1.0}


def test_a_whole_run_has_nothing_to_resume(run_model, whole, monkeypatch, capsys):
    monkeypatch.setattr(resume, "check_run", None)
    monkeypatch.setattr(runner, "resume_run", None)  # no model is loaded
    before = by_place(whole)
    assert main(["resume", str(whole)]) == 0
    assert "nothing is left to do" in capsys.readouterr().err and by_place(whole) == before


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_resume_needs_a_run(tmp_path, capsys, what):
    (tmp_path / "empty").mkdir()
    assert main(["resume", str(tmp_path / what)]) == 2
    assert "holds no run to resume" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["records are missing", "settings were edited"])
def test_a_finished_run_is_counted_before_nothing_is_left(whole, tmp_path, damage, capsys):
    """Deleting a damaged line is what the message about it advises."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    lines = (out / "records" / "sa-w24.seed0.jsonl").read_text().splitlines(keepends=True)
    if damage == "records are missing":
        (out / "records" / "sa-w24.seed0.jsonl").write_text("".join(lines[1:]))
        assert main(["resume", str(out)]) == 0
        found, wanted = by_place(out), by_place(whole)
        assert found.keys() == wanted.keys()
        assert all(
            (found[place].hash, found[place].score, found[place].key) == (row.hash, row.score, row.key)
            for place, row in wanted.items()
        )
    else:
        text = (out / "config.yaml").read_text()
        (out / "config.yaml").write_text(text.replace("num_samples: 4", "num_samples: 3"))
        assert main(["resume", str(out)]) == 2
        assert "num_samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("score", None, "score: input should be a valid number"),
        ("index", "0", "index: input should be a valid integer"),
        ("score", 5.0, "a score of 5.0"),
    ],
)
def test_records_that_somebody_changed_are_refused_by_line(whole, tmp_path, capsys, field, value, told):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    file = out / "records" / "sa-w24.seed0.jsonl"
    first, rest = file.read_text().split("\n", 1)
    file.write_text(json.dumps({**json.loads(first), field: value}) + "\n" + rest)
    assert main(["report", str(out)]) == 2
    assert told in capsys.readouterr().err
