"""Laws of working from files alone: reports are recomputed, runs merge only where they belong, pairs are documents."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from planted import summarised
from planted_runs import KEYS, PLANTED, change, change_records, keep_records, planted_run

from sa_eval.cli import main
from sa_eval.errors import UserError
from sa_eval.records.opening import open_run
from sa_eval.records.types import Failure
from sa_eval.results import merge, summary

PASSES = (("full", 0), ("swa-w64", 0), ("sa-w64", 0), ("sa-w64", 1))


@pytest.fixture
def run(tmp_path):
    """Makes run directories by name."""
    return lambda name, *arguments, **settings: planted_run(tmp_path / name, *arguments, **settings)


def path(directory):
    return str(directory.path)


def compared(tmp_path, *arguments):
    file = tmp_path / "difference.json"
    assert main(["compare", *arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


# --- report ----------------------------------------------------------------------------------------------------------


def test_a_report_is_recomputed_from_files_and_is_the_same(run, capsys):
    directory = run("one")
    summary.summarise(directory)
    before = {name: (directory.path / name).read_bytes() for name in ("results.json", "summary.csv")}
    for name in before:
        (directory.path / name).unlink()
    assert main(["report", path(directory)]) == 0
    assert {name: (directory.path / name).read_bytes() for name in before} == before
    assert "With window 64, sa costs" in (directory.path / "report.html").read_text()
    assert "With window 64, sa costs" in capsys.readouterr().out


def test_files_need_no_torch(run):
    """A laptop without a GPU stack opens the records of a cluster."""
    one, two = run("one"), run("two", modes="sa", window=128)
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'lm_eval', 'sa_patch'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from sa_eval.cli import main\n"
        f"assert main(['report', {path(one)!r}]) == 0\n"
        f"assert main(['compare', {path(one)!r}, {path(two)!r}]) == 0\n"
        "from sa_eval.results import merge\n"
        "from sa_eval.records import opening\n"
        f"runs = [opening.open_run(path) for path in ({path(one)!r}, {path(two)!r})]\n"
        f"merge.merge(runs, {path(one) + '-merged'!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("manifest", "said"),
    [(None, "holds no run"), ("{", "damaged"), ("[]", "should be an object"), ("{}", "has no 'started'")],
)
def test_what_is_no_run_is_said(tmp_path, capsys, manifest, said):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    assert said in refused(capsys, "report", str(tmp_path))


def test_records_of_other_documents_are_refused_in_one_line(run, capsys):
    directory = run("one")
    row = next(iter(directory.records()))
    directory.append_records([replace(row, hash="x")])
    assert "saw another document" in refused(capsys, "report", path(directory))


def merged_results(tmp_path, *directories):
    merged = merge.merge([open_run(path(directory)) for directory in directories], str(tmp_path / "merged"))
    return summarised(merged)


# --- merge -----------------------------------------------------------------------------------------------------------


def test_merged_arms_give_the_numbers_of_one_run(run, tmp_path):
    """The same records, spread over two runs that each brought full, or in one."""
    whole = run("whole", window="64,128")
    halves = [run(f"half{window}", window=window) for window in (64, 128)]
    for half in halves:
        for file in (half.path / "records").glob("*.jsonl"):
            file.write_bytes((whole.path / "records" / file.name).read_bytes())
    merged = merged_results(tmp_path, *halves)
    wanted = summarised(whole)

    def rows(results, name):
        return sorted(map(json.dumps, results[name]))

    assert rows(merged, "cells") == rows(wanted, "cells")
    assert rows(merged, "comparisons") == rows(wanted, "comparisons")
    assert merged["tests"] == wanted["tests"] and merged["unfinished"] == []
    assert rows(merged, "budgets") == rows(wanted, "budgets") and len(merged["speed"]) == 5
    assert {run["directory"] for run in merged["merged"]["runs"]} == {"half64", "half128"}
    assert all(gate["status"] == "passed" for gate in merged["gates"])


def test_seeds_spread_over_runs_are_put_together(run, tmp_path):
    one, two = run("one", seeds="0,1"), run("two", seeds="2", modes="sa", draw=5)
    copy_full(one, two)
    results = merged_results(tmp_path, one, two)
    assert next(arm["seeds"] for arm in results["arms"] if arm["name"] == "sa-w64") == [0, 1, 2]
    assert {row["seed"] for row in results["answered"] if row["arm"] == "sa-w64" and row["answered"] == 120} == {
        0,
        1,
        2,
    }


def copy_full(source, target):
    name = "records/full.seed0.jsonl"
    (target.path / name).write_bytes((source.path / name).read_bytes())


def keyed(**changes):
    return {"keys": {**KEYS, **changes}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (keyed(code="d"), "code: c and d"),
        (keyed(versions={"torch": "3"}), "versions torch: 2 and 3"),
        (keyed(model={"weights": "v"}), "model weights: w and v"),
        (keyed(dtype="bfloat16"), "dtype: float32 and bfloat16"),
        ({"lengths": "1024"}, "task cloze@1024 is in one of them only"),
        ({"documents": 41}, "the documents of cloze@512"),
    ],
)
def test_runs_that_differ_in_what_decides_scores_are_not_merged(run, tmp_path, capsys, settings, said):
    one, two = run("one"), run("two", **{"modes": "sa", "window": 128, **settings})
    error = refused(capsys, "report", path(one), path(two), "--out", str(tmp_path / "merged"))
    assert said in error and not (tmp_path / "merged").exists()


def test_records_without_keys_are_not_merged(run, tmp_path, capsys):
    one, two = run("one"), run("two", window=128)
    change(two, keys=None)
    error = refused(capsys, "report", path(one), path(two), "--out", str(tmp_path / "merged"))
    assert "have no keys" in error and "two" in error


def test_an_arm_made_twice_under_other_conditions_is_refused(run, tmp_path, capsys):
    one, two = run("one"), run("two")
    change_records(two, "sa-w64", lambda row: replace(row, key="another"), seed=1)
    error = refused(capsys, "report", path(one), path(two), "--out", str(tmp_path / "merged"))
    assert "holds sa-w64 (seed 1) again" in error and not (tmp_path / "merged").exists()


def test_two_arms_of_one_name_are_refused(run, tmp_path, capsys):
    one, two = run("one"), run("two")
    arms = two.manifest().arms
    change(two, arms=[replace(arm, options={**arm.options, "sinks": 4}) for arm in arms])
    error = refused(capsys, "report", path(one), path(two), "--out", str(tmp_path / "merged"))
    assert "another arm called full" in error and "sinks" in error


def test_unequal_scores_under_one_key_are_told(run, tmp_path):
    one, two = run("one"), run("two", draw=1)
    results = merged_results(tmp_path, one, two)
    gate = next(gate for gate in results["gates"] if gate["gate"] == "merged runs")
    assert gate["status"] == "warning" and any("document(s) of full scored otherwise" in text for text in gate["where"])
    assert results["cells"] == summarised(one)["cells"]


def test_a_document_that_failed_in_one_run_counts_from_the_other(run, tmp_path):
    one, two = run("one"), run("two")
    broken = next(row for row in one.records() if row.arm == "full")
    keep_records(one, "full", lambda row: row.index != broken.index or row.task != broken.task)
    one.append_records([replace(broken, score=0.0, error="RuntimeError: no")])
    one.append(Failure("full", 0, broken.task, "RuntimeError: no", documents=[broken.index]))
    assert summarised(one)["answered"][0]["failed"] == 1
    results = merged_results(tmp_path, one, two)
    assert results["answered"][0]["failed"] == 0 and results["failures"] == []


def test_other_machines_are_told_and_their_latencies_left_out(run, tmp_path):
    one, two = run("one"), run("two", window=128)
    copy_full(one, two)
    change(two, hardware={"cpu": "another cpu", "threads": 8}, versions={"torch": "2", "numpy": "2"})
    results = merged_results(tmp_path, one, two)
    gate = next(gate for gate in results["gates"] if gate["gate"] == "merged runs")
    assert gate["where"] == ["two: hardware cpu: a cpu and another cpu", "two: versions numpy: 1 and 2"]
    assert {row["arm"] for row in results["speed"]} == {"full", "swa-w64", "sa-w64"}
    assert {row["arm"] for row in results["budgets"]} == {"full", "swa-w64", "sa-w64", "swa-w128", "sa-w128"}


def test_out_is_for_several_runs_and_never_overwrites(run, tmp_path, capsys):
    one, two = run("one"), run("two", window=128)
    copy_full(one, two)
    assert "name it with --out" in refused(capsys, "report", path(one), path(two))
    assert "merging several" in refused(capsys, "report", path(one), "--out", str(tmp_path / "x"))
    assert "already holds" in refused(capsys, "report", path(one), path(two), "--out", path(one))
    merged = str(tmp_path / "merged")
    assert main(["report", path(one), path(two), "--out", merged]) == 0
    assert f"report:  {merged}" in capsys.readouterr().out


# --- compare ---------------------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_records_and_cells(run, tmp_path):
    """An arm against full, in two runs, is what one run's cells say of them."""
    directory = run("one")
    cells = {row["name"]: row for row in summarised(directory)["cells"] if row["arm"] == "sa-w64"}
    found = compared(tmp_path, path(directory), path(directory), "--arm-a", "full", "--arm-b", "sa-w64")
    assert [row["name"] for row in found["rows"]] == ["overall", "needle_single", "majority_topic", "cloze"]
    for row in found["rows"]:
        wanted = cells[row["name"]]
        for name in ("difference", "difference_low", "p_value", "test", "lost", "won", "documents"):
            assert row[name] == wanted[name]
        assert row["accuracy_b"] == wanted["accuracy"]
    assert found["tests"] == 4


def test_documents_are_paired_by_hash_not_by_place(run, tmp_path):
    one, two = run("one"), run("two")
    order = list(range(39, -1, -1))
    tasks = [replace(task, hashes=[task.hashes[index] for index in order]) for task in two.manifest().tasks]
    for arm, seed in PASSES:
        change_records(two, arm, lambda row: replace(row, index=order[row.index]), seed)
    change(two, tasks=tasks)
    found = compared(tmp_path, path(one), path(two))
    assert all(row["difference"] == 0 and row["won"] == row["lost"] == 0 for row in found["rows"])
    assert all(rows == [] for rows in found["documents"].values()) and len(found["rows"]) == 3 * 4


def test_identical_runs_are_one_line(run, capsys):
    one, two = run("one"), run("two")
    assert main(["compare", path(one), path(two)]) == 0
    shown = capsys.readouterr().out
    assert shown == f"{path(two)} is as {path(one)}: 3 arms, 360 answers scored alike; same versions, code, machine.\n"
    change_records(two, "swa-w64", lambda row: replace(row, score=1 - row.score) if row.index == 0 else row)
    assert main(["compare", path(one), path(two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "full: 120 documents, all scored alike" in lines and "sa-w64: 120 documents, all scored alike" in lines
    assert "swa-w64" in lines  # its table follows
    change(two, versions={"torch": "3", "numpy": "1"})
    main(["compare", path(one), path(two)])
    assert "differ in versions torch: 2 and 3" in capsys.readouterr().out


def test_a_comparison_fits_a_terminal_of_sixty_columns(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    one, two = run("one"), run("two", draw=1)
    change(two, versions={"torch": "a long version " * 6, "numpy": "1"})
    assert main(["compare", path(one), path(two)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:3] not in ("A  ", "B  ")]
    assert max(map(len, lines)) <= 60 and any("p Holm" in line for line in lines)


def test_a_verdict_of_a_comparison_and_its_interval_agree(run, tmp_path):
    worse = {**PLANTED, "swa": {**PLANTED["swa"], "retrieval": 0.1}}
    found = compared(tmp_path, path(run("one", documents=60)), path(run("two", worse, documents=60, draw=1)))
    assert {row["significant"] for row in found["rows"]} == {True, False}
    for row in found["rows"]:
        assert row["significant"] == (not row["corrected_low"] <= 0 <= row["corrected_high"])


def test_lost_and_won_documents_are_named(run, tmp_path, capsys):
    one, two = run("one", PLANTED), run("two", PLANTED, draw=1)
    found = compared(tmp_path, path(one), path(two), "--documents", "2")
    shown = capsys.readouterr().out
    for arm in ("full", "swa-w64"):
        rows = found["documents"][f"{arm} / {arm}"]
        overall = next(row for row in found["rows"] if row["arm_a"] == arm and row["name"] == "overall")
        gains = [row["score_b"] - row["score_a"] for row in rows]
        assert gains == sorted(gains)  # the clearest losses first
        assert sum(row["score_b"] < row["score_a"] for row in rows) == overall["lost"]
        assert sum(row["score_b"] > row["score_a"] for row in rows) == overall["won"]
        assert f"lost {rows[0]['task']} #{rows[0]['index']} (1.00 to 0.00) {rows[0]['hash']}" in shown
    assert shown.count("\n  lost ") == shown.count("\n  won ") == 2 * 3


def test_a_planted_change_is_found_and_nothing_else(run, tmp_path, capsys):
    worse = {**PLANTED, "swa": {**PLANTED["swa"], "retrieval": 0.2}}
    found = compared(tmp_path, path(run("one", documents=100)), path(run("two", worse, documents=100)))
    significant = {(row["arm_a"], row["name"]) for row in found["rows"] if row["significant"]}
    assert ("swa-w64", "needle_single") in significant
    assert significant <= {("swa-w64", "needle_single"), ("swa-w64", "overall")}
    line = next(line for line in capsys.readouterr().out.splitlines() if "needle_single" in line and "\u2020" in line)
    assert "<0.0001" in line


def test_versions_models_and_arms_that_differ_are_named(run, tmp_path, capsys):
    one, two = run("one"), run("two", window=128, **keyed(code="d"))
    change(two, model={"name": "other", "parameters": 10, "dtype": "float32"}, versions={"torch": "3", "numpy": "1"})
    found = compared(tmp_path, path(one), path(two), "--arm-a", "sa-w64", "--arm-b", "sa-w128")
    assert found["different"] == ["model name: tiny and other", "versions torch: 2 and 3", "code: c and d"]
    assert found["arms"] == {"sa-w64 / sa-w128": ["window: 64 and 128"]}
    shown = capsys.readouterr().out
    assert "differ in model name: tiny and other" in shown and "window: 64 and 128" in shown


def test_other_documents_are_a_mismatch(run, capsys):
    one, fewer = run("one"), run("fewer", documents=20)
    for pair in ((one, fewer), (fewer, one)):
        error = refused(capsys, "compare", *map(path, pair))
        assert "20 document(s) of cloze@512 are in one of them only" in error
    error = refused(capsys, "compare", path(one), path(run("longer", lengths="512,1024")))
    assert "task cloze@1024 is in" in error and "longer only" in error


def test_arms_that_cannot_be_compared_are_said(run, capsys):
    one, two = run("one", modes="sa"), run("two", modes="swa")
    assert "go together" in refused(capsys, "compare", path(one), path(two), "--arm-a", "sa-w64")
    names = ("compare", path(one), path(two), "--arm-a", "sa-w46", "--arm-b", "swa-w64")
    assert "has no arm 'sa-w46': did you mean 'sa-w64'?" in refused(capsys, *names)
    (two.path / "records" / "full.seed0.jsonl").unlink()
    assert "no arm with answers in common" in refused(capsys, "compare", path(one), path(two))


def test_unfinished_runs_are_compared_on_what_both_answered(run, tmp_path):
    one, two = run("one"), run("two", draw=1)
    keep_records(one, "full", lambda row: row.index < 30)
    keep_records(two, "full", lambda row: row.index >= 5)
    found = compared(tmp_path, path(one), path(two), "--arm-a", "full", "--arm-b", "full")
    overall = next(row for row in found["rows"] if row["name"] == "overall")
    scores = [{(row.task, row.index): row.score for row in side.records() if row.arm == "full"} for side in (one, two)]
    shared = scores[0].keys() & scores[1].keys()
    assert overall["documents"] == len(shared) == 75
    assert overall["difference"] == pytest.approx(sum(scores[1][key] - scores[0][key] for key in shared) / 75)


def test_too_few_documents_in_common_are_no_comparison(run, capsys):
    one, two = run("one"), run("two")
    keep_records(one, "full", lambda row: row.index < 25)
    keep_records(two, "full", lambda row: row.index >= 15)
    names = ("compare", path(one), path(two), "--arm-a", "full", "--arm-b", "full")
    assert "no arm with answers in common" in refused(capsys, *names)


def test_copies_of_a_document_are_paired_in_order(run, tmp_path):
    directories = [run("one"), run("two")]  # the same scores
    for directory in directories:
        tasks = [replace(task, hashes=["same"] * 10) for task in directory.manifest().tasks]
        for arm, seed in PASSES:
            change_records(directory, arm, lambda row: replace(row, hash="same") if row.index < 10 else None, seed)
        change(directory, tasks=tasks)
    found = compared(tmp_path, *map(path, directories))
    assert all(row["difference"] == 0 and row["won"] == 0 for row in found["rows"])


def test_a_file_that_cannot_be_written_is_said(run, tmp_path, capsys):
    directory = run("one")
    error = refused(capsys, "compare", path(directory), path(directory), "--json", str(tmp_path / "no" / "x.json"))
    assert "cannot be written" in error


def test_opening_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: it has no manifest\.json"):
        open_run(str(tmp_path / "nothing"))
