"""Laws of a run: one set of documents for all arms, failures recorded and survived, the model left as it was."""

import copy
import json

import pytest
import torch
from eval_helpers import tiny_model, tiny_tokenizer
from planted import summarised

import sa_patch
from sa_eval.lm.exact import ExactLM
from sa_eval.loading import models, sources
from sa_eval.progress import Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import task_key
from sa_eval.results.scores import HashMismatch
from sa_eval.run import runner
from sa_eval.settings.arms import Arm, arms_from
from sa_eval.settings.config import SettingsError, settings_from

SMALL = {
    "modes": "swa,sa,moba",
    "window": 32,
    "lengths": "320,400",
    "tasks": "needle_single,majority_topic,cloze",
    "num_samples": 3,
    "speed": False,
}


def run(path, model=None, **changes):
    settings = settings_from({**SMALL, **changes, "out": str(path)})
    model = model or tiny_model()
    source = sources.Source("tiny", "tiny", local=False)
    loaded = models.Loaded(model, tiny_tokenizer(), source, models.identity(source, model))
    directory = RunDirectory.create(settings.out, "tiny")
    runner.run_loaded(settings, loaded, arms_from(settings), directory, Progress(enabled=False))
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = run(tmp_path_factory.mktemp("runs") / "run", speed=True)
    return directory, summarised(directory)


def by_arm(directory):
    found = {}
    for record in directory.records():
        found.setdefault((record.arm, record.seed), []).append(record)
    return found


def test_every_arm_scores_the_same_documents(finished):
    directory, results = finished
    hashes = {
        arm: sorted((record.task, record.index, record.hash) for record in records)
        for arm, records in by_arm(directory).items()
    }
    listed = sorted(
        (task_key(task["name"], task["length"]), index, value)
        for task in results["tasks"]
        for index, value in enumerate(task["hashes"])
    )
    assert len(hashes) == 5  # full, swa, sa twice, moba
    assert all(found == listed for found in hashes.values())
    assert len({value for _, _, value in listed}) == len(listed) == 18


def test_prompts_fill_their_length_and_never_exceed_it(finished):
    directory, _ = finished
    for record in directory.records():
        assert 0.9 * record.length - 48 <= record.prompt_tokens <= record.length


def test_every_generated_answer_says_whether_the_limit_of_new_tokens_cut_it(finished, monkeypatch, tmp_path):
    directory, results = finished
    generated = {task_key(row["name"], row["length"]) for row in results["tasks"] if row["output"] == "generate_until"}
    said = {record.task: set() for record in directory.records()}
    for record in directory.records():
        said[record.task].add(record.cut)
    assert all((None in found) == (task not in generated) for task, found in said.items())
    assert all(row["ended"] == row["generated"] > 0 for row in results["answered"])

    honest, tokenizer = ExactLM._generate, tiny_tokenizer()
    ends = [token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])] + [tokenizer.eos_token_id]

    def never_ends(lm, ids, real, **options):
        return honest(lm, ids, real, suppress_tokens=ends, **options)

    monkeypatch.setattr(ExactLM, "_generate", never_ends)
    endless = run(tmp_path / "endless", modes="swa", tasks="needle_single,cloze", lengths=320)
    assert {record.cut for record in endless.records() if record.name == "needle_single"} == {True}
    assert {record.cut for record in endless.records() if record.name == "cloze"} == {None}
    assert "cut a share of the answers: full 100%, swa-w32 100%." in " ".join(summarised(endless)["notes"])


def test_every_sparse_arm_ran_sparse_and_full_was_not_patched(finished):
    directory, results = finished
    calls = {row.arm: row.calls for row in directory.arm_runs()}
    assert calls.pop("full") is None
    assert all(layer["sparse_prefill"] > 0 for layers in calls.values() for layer in layers)
    assert next(gate["status"] for gate in results["gates"] if gate["gate"] == "sparse phase") == "passed"


def test_measured_budgets_match_and_are_below_full(finished):
    _, results = finished
    keys = {row["arm"]: row["keys_per_query"] for row in results["budgets"] if row["length"] == 400}
    assert keys["full"] > 150
    assert keys["sa-w32"] == keys["swa-w32"] == pytest.approx(32, rel=0.1)
    assert keys["moba-w32"] == pytest.approx(keys["swa-w32"], rel=0.1)


def test_latency_is_measured_for_every_arm_and_length(finished):
    _, results = finished
    assert {(row["arm"], row["length"]) for row in results["speed"]} == {
        (arm["name"], length) for arm in results["arms"] for length in (320, 400)
    }
    assert all(row["prefill_ms"] > 0 for row in results["speed"])
    assert all(row["speedup"] == 1 for row in results["speed"] if row["arm"] == "full")


def test_results_say_where_they_come_from(finished):
    _, results = finished
    assert {"torch", "transformers", "lm_eval", "sa_patch", "python"} <= set(results["versions"])
    assert results["hardware"]["cpu"] and results["settings"]["window"] == [32] and results["model"]["name"] == "tiny"


def test_the_same_settings_give_the_same_records(finished, tmp_path):
    directory, _ = finished
    again = run(tmp_path / "again")
    assert by_arm(again) == by_arm(directory)


def test_documents_do_not_depend_on_what_else_runs(finished, tmp_path):
    directory, _ = finished
    alone = run(tmp_path / "alone", tasks="cloze", lengths=400, modes="swa", num_samples=2)
    wanted = {record.index: record.hash for record in directory.records() if record.task == "cloze@400"}
    for record in alone.records():
        assert record.hash == wanted[record.index]


def test_a_failing_task_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    honest, honest_apply, running = ExactLM.generate_until, Arm.apply, []

    def noted_apply(self, model, seed):
        running.append(self.name)
        return honest_apply(self, model, seed)

    def breaks_in_swa(self, requests, **options):
        if running[-1] == "swa-w32":
            raise RuntimeError("out of luck")
        return honest(self, requests, **options)

    monkeypatch.setattr(Arm, "apply", noted_apply)
    monkeypatch.setattr(ExactLM, "generate_until", breaks_in_swa)
    directory = run(tmp_path / "run", lengths=320)
    results = summarised(directory)
    records = by_arm(directory)
    assert {len(rows) for rows in records.values()} == {9}
    broken = [row for row in records["swa-w32", 0] if row.task == "needle_single@320"]
    assert all(row.score == 0 and "out of luck" in row.error for row in broken) and len(broken) == 3
    assert not any(row.error for row in records["moba-w32", 0])
    assert [(row["arm"], row["task"]) for row in results["failures"]] == [("swa-w32", "needle_single@320")]
    assert "RuntimeError: out of luck" in directory.failures()[0].traceback


def test_a_task_that_cannot_be_built_is_left_out_for_every_arm(tmp_path):
    directory = run(tmp_path / "run", lengths="24,320", modes="swa", tasks="needle_single,cloze")
    results = summarised(directory)
    assert {task_key(task["name"], task["length"]) for task in results["tasks"]} == {"needle_single@320", "cloze@320"}
    assert {row["task"] for row in results["failures"]} == {"needle_single@24", "cloze@24"}
    assert all("smallest workable length" in row["error"] for row in results["failures"])


def test_an_arm_the_model_refuses_does_not_stop_the_others(tmp_path, monkeypatch):
    honest = Arm.apply

    def apply(self, model, seed):
        if self.mode == "moba":
            raise NotImplementedError("this model cannot run moba")
        return honest(self, model, seed)

    monkeypatch.setattr(Arm, "apply", apply)
    results = summarised(run(tmp_path / "run", lengths=320))
    assert results["unfinished"] == ["moba-w32"]
    assert {cell["arm"] for cell in results["cells"]} == {"full", "swa-w32", "sa-w32"}
    assert any(gate["gate"] == "failed documents" and "moba-w32" in str(gate["where"]) for gate in results["gates"])


@torch.inference_mode()
def test_the_model_is_bit_identical_afterwards(tmp_path):
    model = tiny_model()
    ids = torch.arange(2, 60)[None]
    before, config = model(ids).logits, copy.deepcopy(model.config.to_dict())
    run(tmp_path / "run", model, lengths=320)
    assert torch.equal(model(ids).logits, before)
    assert not sa_patch.is_patched(model) and model.config.to_dict() == config


def test_an_interrupt_restores_the_model_and_keeps_what_is_finished(tmp_path, monkeypatch):
    model = tiny_model()
    honest = ExactLM.loglikelihood

    def interrupted(self, requests, **options):
        if sa_patch.is_patched(self.model):
            raise KeyboardInterrupt
        return honest(self, requests, **options)

    monkeypatch.setattr(ExactLM, "loglikelihood", interrupted)
    directory = run(tmp_path / "run", model, lengths=320)
    results = summarised(directory)
    assert not sa_patch.is_patched(model)
    assert {cell["arm"] for cell in results["cells"] if cell["scope"] == "overall"} == {"full"}
    assert not any(cell["name"] == "cloze" and cell["arm"] != "full" for cell in results["cells"])
    assert any("interrupted" in row["error"] for row in results["failures"])


def test_seeds_are_one_row_averaged_per_document(tmp_path):
    directory = run(tmp_path / "run", modes="sa", seeds="0,1,2", lengths=320)
    results = summarised(directory)
    scores = {}
    for record in directory.records():
        if record.arm == "sa-w32":
            scores.setdefault((record.task, record.index), []).append(record.score)
    assert all(len(values) == 3 for values in scores.values())
    cell = next(cell for cell in results["cells"] if cell["arm"] == "sa-w32" and cell["scope"] == "overall")
    assert cell["documents"] == 9
    assert cell["accuracy"] == pytest.approx(sum(sum(values) / 3 for values in scores.values()) / 9)


def test_a_directory_with_a_run_is_refused(finished):
    directory, _ = finished
    with pytest.raises(SettingsError, match="already holds"):
        RunDirectory.create(str(directory.path), "tiny")


def test_records_of_other_documents_are_refused(tmp_path):
    directory = run(tmp_path / "run", lengths=320, modes="swa", tasks="cloze")
    file = directory.path / "records" / "swa-w32.seed0.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["hash"] = "another"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(HashMismatch, match="document 1 of cloze@320"):
        summarised(directory)


def test_a_torn_last_line_is_not_a_record(tmp_path):
    directory = run(tmp_path / "run", lengths=320, modes="swa", tasks="cloze")
    with (directory.path / "records" / "swa-w32.seed0.jsonl").open("a") as stream:
        stream.write('{"arm": "swa-w32", "se')
    assert len(by_arm(directory)["swa-w32", 0]) == 3
