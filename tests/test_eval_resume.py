"""Laws of runs that lose nothing: whatever ends a run, what was finished stays, and resume makes it the whole run."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from eval_helpers import save_tiny_model
from run_helpers import FLAGS, assert_same_run, by_place, ended, lines, start, undrawn, wait_for_records

from sa_eval import chunks, environment, keys, lm_tasks, lock, measure, report, resume, runner, scoring
from sa_eval.arms import Arm
from sa_eval.cli import main
from sa_eval.lm import ExactLM
from sa_eval.progress import Progress
from sa_eval.store import RunDirectory

DOCUMENTS = 8  # per arm, in chunks of 2


@pytest.fixture(autouse=True)
def small_chunks_and_no_pictures(monkeypatch):
    """As in the processes of run_helpers."""
    monkeypatch.setattr(chunks, "TOKENS_PER_ROW", 1)
    monkeypatch.setattr(report, "write", undrawn)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    assert ended(start(begin(model, folder / "whole"), folder / "log")) == 0
    return folder / "whole"


@pytest.fixture
def killed(whole, tmp_path):
    """The whole run as if the process had been killed before its last word."""
    out = shutil.copytree(whole, tmp_path / "killed")
    unfinish(out)
    return out


def unfinish(out):
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["finished"]
    (out / "manifest.json").write_text(json.dumps(manifest))


def begin(model, out, *more):
    return ["run", "--model", model, "--out", str(out), *FLAGS, *more]


def contents(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "run.lock"
    }


def kill_until_done(model, out, log, seed, kills):
    """SIGKILL sessions at random points, most of them while records are written, then let one end."""
    draw, arguments = random.Random(seed), begin(model, out)
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


def test_killed_at_random_points_and_resumed_a_run_is_the_uninterrupted_one(model, whole, tmp_path):
    kill_until_done(model, tmp_path / "run", tmp_path / "log", seed=0, kills=3)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_often_a_run_is_the_uninterrupted_one(model, whole, tmp_path, seed):
    kill_until_done(model, tmp_path / "run", tmp_path / "log", seed, kills=12)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_interrupted_a_run_reports_what_is_finished_and_resume_ends_it(model, whole, tmp_path, number, status):
    out = tmp_path / "run"
    process = start(begin(model, out), tmp_path / "log", drawn=True)
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


def test_a_full_disk_stops_the_run_with_one_message_and_loses_nothing(model, tmp_path):
    more = ("--batch-size", "1", "--modes", "swa,sa,moba", "--seeds", "0,1")
    whole, out, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert ended(start(begin(model, whole, *more), log)) == 0
    largest = (whole / "arm_runs.jsonl").stat().st_size * 3 // 4
    assert largest > (whole / "documents.jsonl").stat().st_size  # so that it is scoring that is stopped
    log.unlink()
    assert ended(start(begin(model, out, *more), log, largest_file=largest)) == 2
    shown, finished = log.read_text(), by_place(out)
    assert "cannot write" in shown and "make room" in shown and "sa-eval resume" in shown and "Traceback" not in shown
    assert 0 < len(finished) < 5 * DOCUMENTS and not any("error" in row for row in finished.values())
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
    assert found == wanted and {**again, "output": 0} == {**before, "output": 0}
    assert again["output"][0] == pytest.approx(before["output"][0], abs=1e-3)


def test_a_damaged_line_is_refused_by_file_and_number_never_skipped(killed, capsys):
    file = killed / "records" / "swa-w24.seed0.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*rows[:4], rows[4][:40] + b"\0\xff\n", *rows[5:]]))
    before = contents(killed)
    assert main(["resume", str(killed)]) == 2
    shown = capsys.readouterr().err
    assert "swa-w24.seed0.jsonl, line 5 is damaged" in shown and "sed -i 5d" in shown
    assert contents(killed) == before


# --- what may not be put together ------------------------------------------------------------------------------------


def change_weights(model, monkeypatch, out):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1e-6
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def change_config(model, monkeypatch, out):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))


def change_versions(model, monkeypatch, out):
    versions = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: {**versions, "torch": "1.0"})


def change_code(model, monkeypatch, out):
    monkeypatch.setattr(keys, "code_hash", lambda: "another")


def change_settings(model, monkeypatch, out):
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("batch_size: 2", "batch_size: 3"))


def change_documents(model, monkeypatch, out):
    honest = lm_tasks.document_hash
    monkeypatch.setattr(lm_tasks, "document_hash", lambda requests, target: honest(requests, f"{target} "))


def change_a_record(model, monkeypatch, out):
    file = out / "records" / "full.seed0.jsonl"
    first, rest = file.read_text().split("\n", 1)
    file.write_text(json.dumps({**json.loads(first), "key": "another"}) + "\n" + rest)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change_weights, "model weights: "),
        (change_config, "model files: "),
        (change_versions, "versions torch: "),
        (change_code, "code: "),
        (change_settings, "setting batch_size: 2 then, 3 now"),
        (change_documents, "4 of 4 documents of cloze@192"),
        (change_a_record, "document 0 of majority_topic@192 under full, seed 0"),
    ],
)
def test_what_differs_is_named_refused_and_left_as_it_is(model, killed, monkeypatch, capsys, change, name):
    folder = Path(model)
    saved = {file: file.read_bytes() for file in folder.iterdir()}
    change(folder, monkeypatch, killed)
    before = contents(killed)
    try:
        assert main(["resume", str(killed)]) == 2
    finally:
        for file, content in saved.items():
            file.write_bytes(content)
    shown = capsys.readouterr().err
    assert name in shown and "cannot be continued" in shown and "--out <new directory>" in shown
    assert contents(killed) == before


def test_a_key_stands_for_everything_that_decides_a_score():
    parts = {"model": {"weights": "a"}, "code": "b", "versions": {"torch": "2"}, "dtype": "float32", "device": "cpu"}
    arm = Arm("sa-w24", "sa", "sa", 24, seeds=(0, 1), options={"decode": "full"})
    others = [keys.Keys({**parts, name: "other"}).of(arm, 0, "cloze@192", "hash") for name in parts]
    made = keys.Keys(parts)
    others += [
        made.of(arm, 1, "cloze@192", "hash"),
        made.of(arm, 0, "cloze@256", "hash"),
        made.of(arm, 0, "cloze@192", "other"),
        made.of(Arm("sa-w24", "sa", "sa", 25, seeds=(0, 1), options={"decode": "full"}), 0, "cloze@192", "hash"),
        made.of(Arm("sa-w24", "sa", "sa", 24, seeds=(0, 1), options={"decode": "sparse"}), 0, "cloze@192", "hash"),
        made.of(Arm("sa-w24", "sa", "sa", 24, seeds=(0, 1), kernel="reference"), 0, "cloze@192", "hash"),
    ]
    same = made.of(Arm("renamed", "sa", "sa", 24, seeds=(0,), options={"decode": "full"}), 0, "cloze@192", "hash")
    assert same == made.of(arm, 0, "cloze@192", "hash")
    assert len({same, *others}) == 1 + len(others)


# --- two processes ---------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_at_once_and_a_killed_one_leaves_no_lock(model, whole, tmp_path, capsys):
    out = tmp_path / "run"
    process = start(begin(model, out), tmp_path / "log")
    assert wait_for_records(process, out, 1)
    assert main(["resume", str(out)]) == 2
    assert f"is in use by process {process.pid} on " in capsys.readouterr().err
    process.kill()
    process.join()
    with lock.hold(out / "run.lock"):
        pass
    assert main(["run", "--model", model, "--out", str(out)]) == 2
    assert f"sa-eval resume {out}" in capsys.readouterr().err


# --- failures --------------------------------------------------------------------------------------------------------


def failing(monkeypatch, error, when):
    """Scoring raises `error` whenever `when(lm, requests)`."""
    honest = ExactLM.loglikelihood

    def loglikelihood(self, requests, **options):
        if when(self, requests):
            raise error
        return honest(self, requests, **options)

    monkeypatch.setattr(ExactLM, "loglikelihood", loglikelihood)


def patched(lm):
    import sa_patch

    return sa_patch.is_patched(lm.model)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["cuda", "cpu"],
)
def test_when_memory_runs_out_smaller_batches_are_tried_and_told(model, whole, tmp_path, monkeypatch, capsys, error):
    failing(monkeypatch, error, lambda lm, requests: patched(lm) and lm.batch_size > 1)
    out = tmp_path / "run"
    assert main(begin(model, out, "--num-samples", "2")) == 0
    notes = {row["arm"]: row["notes"] for row in RunDirectory(out).log("arm_runs")}
    assert notes["full"] == [] and "cloze@192: out of memory, so batches of 1" in notes["swa-w24"]
    found, wanted = by_place(out), by_place(whole)
    assert len(found) == 12 and all(row["score"] == wanted[place]["score"] for place, row in found.items())


def test_an_arm_without_memory_counts_as_wrong_and_resume_tries_it_again(model, whole, tmp_path, monkeypatch, capsys):
    honest = Arm.apply
    running = []
    monkeypatch.setattr(Arm, "apply", lambda self, *given: running.append(self.name) or honest(self, *given))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    failing(monkeypatch, error, lambda lm, requests: running[-1] == "swa-w24")
    out = tmp_path / "run"
    assert main(begin(model, out, "--num-samples", "2")) == 1
    results, found = json.loads((out / "results.json").read_text()), by_place(out)
    failed = {place for place, row in found.items() if "error" in row}
    assert failed == {place for place in found if place[0] == "swa-w24"} and len(failed) == 4
    assert all(found[place]["score"] == 0 and "OutOfMemoryError" in found[place]["error"] for place in failed)
    assert {(row["arm"], row["task"]) for row in results["failures"]} == {
        ("swa-w24", "majority_topic@192"),
        ("swa-w24", "cloze@192"),
    }
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "TOKENS_PER_ROW", 1)
    assert main(["resume", str(out)]) == 0
    wanted = by_place(whole)
    assert by_place(out) == {place: wanted[place] for place in found}
    assert json.loads((out / "results.json").read_text())["failures"] == []
    assert lines(out)["full.seed0.jsonl"] == lines(out)["sa-w24.seed0.jsonl"] == 4
    assert lines(out)["swa-w24.seed0.jsonl"] == 8  # what failed stays written


def test_only_the_document_that_fails_counts_as_wrong(model, whole, tmp_path, monkeypatch, capsys):
    def bad(lm, requests):
        return patched(lm) and any(request.doc_id == 3 and "cloze" in request.task_name for request in requests)

    failing(monkeypatch, ValueError("a bad document"), bad)
    assert main(begin(model, tmp_path / "run")) == 1
    found, wanted = by_place(tmp_path / "run"), by_place(whole)
    failed = {place for place, row in found.items() if "error" in row}
    assert failed == {(arm, 0, "cloze@192", 3) for arm in ("swa-w24", "sa-w24")}
    assert all(found[place]["score"] == wanted[place]["score"] for place in found if place not in failed)
    (row, other) = RunDirectory(tmp_path / "run").log("failures")
    assert row["documents"] == other["documents"] == [3] and "a bad document" in row["traceback"]


def test_a_task_that_could_not_be_fetched_is_tried_again(model, whole, tmp_path, monkeypatch, capsys):
    honest = lm_tasks.prepare_offline

    def prepare(name, *given):
        if name == "cloze":
            raise ConnectionError("no network")
        return honest(name, *given)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(lm_tasks, "prepare_offline", prepare)
        assert main(begin(model, out)) == 1
    directory = RunDirectory(out)
    assert [(row["task"], row["error"]) for row in directory.log("failures")] == [
        ("cloze@192", "ConnectionError: no network")
    ]
    assert main(["resume", str(out)]) == 0
    assert by_place(out) == by_place(whole) and directory.log("failures") == []


def test_what_is_recorded_stays_when_its_data_cannot_be_had_any_more(whole, killed, monkeypatch, capsys):
    def prepare(*given):
        raise ConnectionError("no network")

    monkeypatch.setattr(lm_tasks, "prepare_offline", prepare)
    assert main(["resume", str(killed)]) == 2
    assert "no task could be prepared" in capsys.readouterr().err
    assert by_place(killed) == by_place(whole)
    tasks = [task["name"] for task in RunDirectory(killed).read_json("manifest.json")["tasks"]]
    assert tasks == ["majority_topic", "cloze"]


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
    monkeypatch.setattr(measure.selftest, "check", None)  # it holds from before
    assert main(["resume", str(killed)]) == 0
    assert {name: (killed / f"{name}.jsonl").read_bytes() for name in logs} == logs
    assert bars[-1] == ("evaluation", 3 * DOCUMENTS, 2 * DOCUMENTS + 6)


def test_latency_is_measured_again_only_for_lengths_that_lack_an_arm(tmp_path, monkeypatch):
    asked = []

    def measure_prefill(model, arms, prompts, **given):
        asked.append((list(prompts), [arm.name for arm in arms]))
        return [{"arm": arm.name, "length": length, "prefill_ms": 1.0} for arm in arms for length in prompts]

    monkeypatch.setattr("sa_eval.speed.measure_prefill", measure_prefill)
    monkeypatch.setattr(measure, "prompt_row", lambda lm, request: [1, 2])
    task = SimpleNamespace(instances=[None])
    tasks = [SimpleNamespace(length=length, task=task) for length in (64, 128, 128)]
    arms, directory = [Arm("full", "full", "full", None), Arm("swa-w8", "swa", "swa", 8)], RunDirectory(tmp_path)
    directory.append("speed", {"arm": "full", "length": 128, "prefill_ms": 9.0})
    directory.append("speed", *({"arm": arm.name, "length": 64, "prefill_ms": 9.0} for arm in arms))
    for _ in range(2):
        measure.latency(SimpleNamespace(model=None), arms, tasks, directory, Progress(enabled=False), None)
    assert asked == [([128], ["full", "swa-w8"])]
    times = {(row["arm"], row["length"]): row["prefill_ms"] for row in directory.log("speed")}
    assert times == {("full", 64): 9.0, ("swa-w8", 64): 9.0, ("full", 128): 1.0, ("swa-w8", 128): 1.0}


def test_a_whole_run_has_nothing_to_resume(model, whole, monkeypatch, capsys):
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


def test_errors_of_memory_are_known():
    assert scoring.out_of_memory(MemoryError()) and scoring.out_of_memory(torch.OutOfMemoryError("out"))
    assert not scoring.out_of_memory(RuntimeError("shapes cannot be multiplied"))
