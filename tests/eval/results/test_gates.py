"""Laws of the gates: each one sees what it is for, says where, stays quiet otherwise, and none is ever left out."""

from dataclasses import replace

import pytest
from planted import summarised
from planted_runs import PLANTED, change, change_records, keep_records, planted_run, set_budget

from sa_eval.records.types import Check, Failure
from sa_eval.results import gates, summary, table

NAMES = {
    *("sparse above full", "truncation", "empty answers", "density near 1", "full below floor", "budget unmatched"),
    *("failed documents", "batch invariance", "seeds missing", "arms unfinished", "sparse phase", "merged runs"),
    *("same documents", "answers cut"),
}


@pytest.fixture
def directory(tmp_path):
    return planted_run(tmp_path / "run")


def gate(directory, name):
    return next(row for row in summarised(directory)["gates"] if row["gate"] == name)


def warns(directory, name, *where, status="warning"):
    found = gate(directory, name)
    assert (found["status"], found["where"]) == (status, list(where)), found
    shown = table.render(summary.summarise(directory)).replace("\n    ", " ")
    assert found["text"].split(":")[0] in shown and all(place in shown for place in where[:4])


def edit(directory, arm, change_row, seed=0):
    change_records(directory, arm, lambda row: replace(row, **change_row(row)), seed)


def test_a_sound_run_passes_every_gate_and_lists_them_all(directory):
    results = summarised(directory)
    assert {row["gate"] for row in results["gates"]} == NAMES
    assert {row["status"] for row in results["gates"]} == {"passed"}
    assert all(row["text"] and row["where"] == [] for row in results["gates"])
    assert "14 of 14 gates passed" in table.render(summary.read(directory))


def test_a_sparse_arm_significantly_above_full_is_suspicious(tmp_path):
    better = {**PLANTED, "full": dict.fromkeys(PLANTED["full"], 0.6), "sa": dict.fromkeys(PLANTED["full"], 1.0)}
    found = gate(planted_run(tmp_path / "run", better), "sparse above full")
    assert found["status"] == "warning" and any(place.startswith("sa-w64 at 512 (+") for place in found["where"])
    assert not any(place.startswith("swa-w64 at") for place in found["where"])
    slightly = {**PLANTED, "full": dict.fromkeys(PLANTED["full"], 0.9), "sa": dict.fromkeys(PLANTED["full"], 0.93)}
    assert gate(planted_run(tmp_path / "other", slightly), "sparse above full")["status"] == "passed"


def test_full_attention_that_fails_itself_is_said(tmp_path):
    weak = {label: {**shares, "cloze": 0.1} for label, shares in PLANTED.items()}
    found = gate(planted_run(tmp_path / "run", weak), "full below floor")
    assert len(found["where"]) == 1 and found["where"][0].startswith("full on cloze at 512 (")


def test_an_arm_that_is_full_attention_in_disguise_is_named_with_its_length(directory):
    set_budget(directory, "sa-w64", keys_per_query=250.0, density=0.97)
    warns(directory, "density near 1", "sa-w64 at 512 (0.97)")
    assert gate(directory, "budget unmatched")["status"] == "passed"  # that it is dense says it all


def test_measured_budgets_are_held_against_swa(directory):
    set_budget(directory, "sa-w64", keys_per_query=60.0 * 1.04)
    assert gate(directory, "budget unmatched")["status"] == "passed"
    set_budget(directory, "sa-w64", keys_per_query=60.0 * 1.2, off_target=0.0)
    warns(directory, "budget unmatched", "sa-w64 at 512 (+20% keys per query)")


def test_without_swa_budgets_are_held_against_the_window(tmp_path):
    directory = planted_run(tmp_path / "run", modes="sa")
    set_budget(directory, "sa-w64", off_target=-0.3)
    warns(directory, "budget unmatched", "sa-w64 at 512 (-30% keys per query)")


def test_failures_are_failed_gates(directory):
    edit(directory, "sa-w64", lambda row: {"error": "RuntimeError: no"} if row.index < 2 else {}, seed=1)
    directory.append(Failure(None, None, "kv_retrieval@512", "OSError: no network"))
    directory.append(Failure("sa-w64", None, None, "RuntimeError: no"))
    where = ("sa-w64 seed 1: 6 of 120", "run · kv_retrieval@512", "sa-w64 · everything")
    warns(directory, "failed documents", *where, status="failed")


def test_an_interrupted_run_says_what_is_there(directory):
    keep_records(directory, "swa-w64", lambda row: row.index < 30)
    keep_records(directory, "sa-w64", lambda row: row.index < 3)
    keep_records(directory, "sa-w64", lambda row: False, seed=1)
    directory.append(Failure(None, None, None, "interrupted by the user"))
    found = gate(directory, "arms unfinished")
    assert found["text"].startswith("Interrupted: not finished")
    assert found["where"] == [
        "swa-w64 seed 0: 90 of 120 answers",
        "sa-w64 seed 0: 9 of 120 answers, left out",
        "sa-w64 seed 1: 0 of 120 answers, left out",
    ]
    assert gate(directory, "failed documents")["status"] == "passed"
    assert gate(directory, "seeds missing")["where"] == ["sa-w64 seed 1"]


def test_a_single_seed_is_luck_of_unknown_size(tmp_path):
    warns(planted_run(tmp_path / "run", seeds="3"), "seeds missing", "sa-w64: only seed 3")


def test_empty_answers_are_held_against_fulls(directory):
    def empty(row):
        return {"output": " \n"} if row.index % 4 == 0 else {}

    edit(directory, "swa-w64", empty)
    warns(directory, "empty answers", "swa-w64: 25% empty (full: 0%)")
    edit(directory, "full", empty)
    warns(directory, "empty answers", "full: 25% empty")
    edit(directory, "swa-w64", lambda row: {"output": "."})
    edit(directory, "full", lambda row: {"output": [-1.0, -2.0]})
    assert gate(directory, "empty answers")["status"] == "passed"


def test_arms_whose_answers_are_cut_at_the_limit_unlike_often_are_named(directory):
    def cut_one_in(share):
        return lambda row: {"cut": row.index % share == 0}

    edit(directory, "swa-w64", cut_one_in(4))
    warns(directory, "answers cut", "swa-w64: 25% cut (full: 0%)")
    edit(directory, "full", cut_one_in(4))
    for seed in (0, 1):
        edit(directory, "sa-w64", cut_one_in(4), seed)
    found = summarised(directory)
    assert gate(directory, "answers cut")["status"] == "passed"
    shares = "The limit of new tokens cut a share of the answers: full 25%, swa-w64 25%, sa-w64 25%."
    assert shares in found["notes"] and shares in table.render(summary.read(directory)).replace("\n    ", " ")
    assert [(row["ended"], row["cut"]) for row in found["answered"]] == [(120, 30)] * 4
    edit(directory, "sa-w64", cut_one_in(2), seed=1)  # by arm, all seeds together
    warns(directory, "answers cut", "sa-w64: 38% cut (full: 25%)")
    edit(directory, "full", cut_one_in(1))
    warns(directory, "answers cut", "full: 100% cut (swa-w64: 25%)", "sa-w64: 38% cut (swa-w64: 25%)")


def test_nothing_is_said_of_cut_answers_where_none_is(directory):
    assert not any("new tokens cut" in note for note in summarised(directory)["notes"])
    for arm in ("full", "swa-w64"):
        edit(directory, arm, lambda row: {"output": [-1.0, -2.0], "cut": None})
    for seed in (0, 1):
        edit(directory, "sa-w64", lambda row: {"error": "no answer", "cut": True}, seed)
    assert not any("new tokens cut" in note for note in summarised(directory)["notes"])


def test_files_that_do_not_say_what_ended_an_answer_are_not_taken_for_uncut(directory):
    edit(directory, "swa-w64", lambda row: {"cut": None})
    warns(directory, "answers cut", "swa-w64")
    assert "Not recorded" in gate(directory, "answers cut")["text"]


def test_truncation_and_prompts_beyond_their_length_are_said(directory):
    edit(directory, "sa-w64", lambda row: {"prompt_tokens": 513 if row.index == 0 else 512})
    directory.append(Failure("swa-w64", None, "cloze@512", "TruncationError: too long"))
    warns(directory, "truncation", "swa-w64 · cloze@512", "sa-w64 seed 0: 3 prompts")


def test_an_arm_that_never_ran_sparse_fails(directory):
    rows = directory.arm_runs()
    (directory.path / "arm_runs.jsonl").unlink()
    directory.append(*(replace(row, calls=[{"sparse_prefill": 0}, {"sparse_prefill": 0}]) for row in rows))
    where = ("swa-w64 seed 0", "sa-w64 seed 0", "sa-w64 seed 1")
    warns(directory, "sparse phase", *where, status="failed")
    for arm in ("swa-w64", "sa-w64"):  # windows that cover the prompt run dense as they should
        set_budget(directory, arm, density=1.0)
    assert gate(directory, "sparse phase")["status"] == "passed"
    assert gate(directory, "density near 1")["status"] == "warning"


def test_calls_of_any_layout_are_counted():
    assert gates.sparse_calls([{"sparse_prefill": 1}, {"sparse_prefill": 2}]) == 3
    assert gates.sparse_calls([{}]) is None and gates.sparse_calls(None) is None


def test_batch_invariance_is_taken_from_the_checks(directory):
    directory.append(Check("batch invariance", "sa-w64", "failed", "differ by 5.7 nats"))
    warns(directory, "batch invariance", "sa-w64: differ by 5.7 nats", status="failed")
    (directory.path / "checks.jsonl").unlink()
    assert gate(directory, "batch invariance")["status"] == "warning"
    settings = directory.manifest().settings
    change(directory, settings={**settings, "batch_size": 1})
    assert gate(directory, "batch invariance")["status"] == "passed"


def test_the_worst_gates_come_first(directory):
    directory.append(Failure(None, None, "x", "OSError: no"))
    set_budget(directory, "sa-w64", density=0.97)
    statuses = [row["status"] for row in summarised(directory)["gates"]]
    assert statuses == ["failed", "warning", *["passed"] * 12]
