"""Laws of what fails inside a run: it stays with its documents, counts as wrong, is told, and is tried again."""

import json

import pytest
import torch
from run_helpers import begin, by_place, lines

import sa_patch
from sa_eval.cli import main
from sa_eval.documents import offline
from sa_eval.lm.exact import ExactLM
from sa_eval.records.directory import RunDirectory
from sa_eval.run import scoring
from sa_eval.settings.arms import Arm

pytest_plugins = "run_fixtures"
pytestmark = pytest.mark.usefixtures("small_chunks")


def failing(monkeypatch, error, when):
    """Scoring raises `error` whenever `when(lm, requests)`."""
    honest = ExactLM.loglikelihood

    def loglikelihood(self, requests, **options):
        if when(self, requests):
            raise error
        return honest(self, requests, **options)

    monkeypatch.setattr(ExactLM, "loglikelihood", loglikelihood)


def patched(lm):
    return sa_patch.is_patched(lm.model)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["cuda", "cpu"],
)
def test_when_memory_runs_out_smaller_batches_are_tried_and_told(
    run_model, whole, tmp_path, monkeypatch, capsys, error
):
    failing(monkeypatch, error, lambda lm, requests: patched(lm) and lm.batch_size > 1)
    out = tmp_path / "run"
    assert main(begin(run_model, out, "--num-samples", "2")) == 0
    notes = {row.arm: row.notes for row in RunDirectory(out).arm_runs()}
    assert notes["full"] == [] and "cloze@192: out of memory, so batches of 1" in notes["swa-w24"]
    found, wanted = by_place(out), by_place(whole)
    assert len(found) == 12 and all(row.score == wanted[place].score for place, row in found.items())


def test_an_arm_without_memory_counts_as_wrong_and_resume_tries_it_again(
    run_model, whole, tmp_path, monkeypatch, capsys
):
    honest, running = Arm.apply, []
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Arm, "apply", lambda self, *given: running.append(self.name) or honest(self, *given))
        failing(patch, error, lambda lm, requests: running[-1] == "swa-w24")
        assert main(begin(run_model, out, "--num-samples", "2")) == 1
    results, found = json.loads((out / "results.json").read_text()), by_place(out)
    failed = {place for place, row in found.items() if row.error}
    assert failed == {place for place in found if place[0] == "swa-w24"} and len(failed) == 4
    assert all(found[place].score == 0 and "OutOfMemoryError" in found[place].error for place in failed)
    assert {(row["arm"], row["task"]) for row in results["failures"]} == {
        ("swa-w24", "majority_topic@192"),
        ("swa-w24", "cloze@192"),
    }
    assert main(["resume", str(out)]) == 0
    wanted = by_place(whole)
    assert by_place(out) == {place: wanted[place] for place in found}
    assert json.loads((out / "results.json").read_text())["failures"] == []
    assert lines(out)["full.seed0.jsonl"] == lines(out)["sa-w24.seed0.jsonl"] == 4
    assert lines(out)["swa-w24.seed0.jsonl"] == 8  # what failed stays written


def test_only_the_document_that_fails_counts_as_wrong(run_model, whole, tmp_path, monkeypatch, capsys):
    def bad(lm, requests):
        return patched(lm) and any(request.doc_id == 3 and "cloze" in request.task_name for request in requests)

    failing(monkeypatch, ValueError("a bad document"), bad)
    assert main(begin(run_model, tmp_path / "run")) == 1
    found, wanted = by_place(tmp_path / "run"), by_place(whole)
    failed = {place for place, row in found.items() if row.error}
    assert failed == {(arm, 0, "cloze@192", 3) for arm in ("swa-w24", "sa-w24")}
    assert all(found[place].score == wanted[place].score for place in found if place not in failed)
    (row, other) = RunDirectory(tmp_path / "run").failures()
    assert row.documents == other.documents == [3] and "a bad document" in row.traceback


def test_a_task_that_could_not_be_fetched_is_tried_again(run_model, whole, tmp_path, monkeypatch, capsys):
    honest = offline.prepare_offline

    def prepare(name, *given):
        if name == "cloze":
            raise ConnectionError("no network")
        return honest(name, *given)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(offline, "prepare_offline", prepare)
        assert main(begin(run_model, out)) == 1
    directory = RunDirectory(out)
    assert [(row.task, row.error) for row in directory.failures()] == [("cloze@192", "ConnectionError: no network")]
    assert main(["resume", str(out)]) == 0
    assert by_place(out) == by_place(whole) and directory.failures() == []


def test_what_is_recorded_stays_when_its_data_cannot_be_had_any_more(whole, killed, monkeypatch, capsys):
    def prepare(*given):
        raise ConnectionError("no network")

    monkeypatch.setattr(offline, "prepare_offline", prepare)
    assert main(["resume", str(killed)]) == 2
    assert "no task could be prepared" in capsys.readouterr().err
    assert by_place(killed) == by_place(whole)
    tasks = [task.name for task in RunDirectory(killed).manifest().tasks]
    assert tasks == ["majority_topic", "cloze"]


def test_errors_of_memory_are_known():
    assert scoring.out_of_memory(MemoryError()) and scoring.out_of_memory(torch.OutOfMemoryError("out"))
    assert not scoring.out_of_memory(RuntimeError("shapes cannot be multiplied"))
