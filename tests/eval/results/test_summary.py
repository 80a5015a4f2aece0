"""Laws of results.json: numbers are the records', pairs stay pairs in unfinished runs, words follow the tests."""

import csv
import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from planted import summarised
from planted_runs import PLANTED, change, change_records, keep_records, planted_run

from sa_eval.records.types import ArmRow
from sa_eval.results import answer, cells, significance, summary, table, types
from sa_eval.results.types import Comparison, Difference

ALIKE = {label: dict.fromkeys(PLANTED["full"], 0.8) for label in PLANTED}


def cell_of(results, arm, name="overall", length=512):
    return next(row for row in results["cells"] if (row["arm"], row["name"], row["length"]) == (arm, name, length))


def scores_of(directory, arm, task):
    """[documents], seeds averaged, straight from the lines."""
    found = {}
    for record in directory.records():
        if (record.arm, record.task) == (arm, task):
            found.setdefault(record.index, []).append(0.0 if record.error else record.score)
    return {index: float(np.mean(values)) for index, values in found.items()}


def paired(directory, arm, task):
    base, own = scores_of(directory, "full", task), scores_of(directory, arm, task)
    return np.array([own[index] - base[index] for index in sorted(own.keys() & base.keys())])


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    directory = planted_run(tmp_path_factory.mktemp("planted") / "run", lengths="512,1024")
    return directory, summarised(directory)


def test_every_cell_has_its_test(planted):
    directory, results = planted
    for row in results["cells"]:
        if row["arm"] == "full":
            assert (row["test"], row["p_value"], row["significant"]) == ("none", None, False)
        else:
            assert row["test"] == ("exact McNemar" if row["arm"] == "swa-w64" else "paired bootstrap")
            assert row["p_value"] <= row["p_adjusted"] <= 1 and row["significant"] == (row["p_adjusted"] < 0.05)
            assert 0 < row["detectable"] < 1
    found = paired(directory, "swa-w64", "majority_topic@512")
    row = cell_of(results, "swa-w64", "majority_topic")
    assert (row["won"], row["lost"]) == ((found > 0).sum(), (found < 0).sum())
    assert row["p_value"] == significance.mcnemar(row["lost"], row["won"]) and row["significant"]


def test_holm_counts_every_test_once(planted):
    """Two arms; at two lengths and pooled: overall and three tasks, whose families are the same tests."""
    _, results = planted
    assert results["tests"] == {"cells": 2 * 3 * 4, "comparisons": 4}
    distinct = {
        (row["arm"], row["length"], row["name"] if row["scope"] != "family" else None): row["p_value"]
        for row in results["cells"]
        if row["arm"] != "full" and row["scope"] != "family"
    }
    wanted = dict(zip(distinct, significance.holm(list(distinct.values())), strict=True))
    for row in results["cells"]:
        if (row["arm"], row["length"], row["name"]) in wanted:
            assert row["p_adjusted"] == wanted[row["arm"], row["length"], row["name"]]


def test_a_comparison_is_the_same_seen_from_both_sides(planted):
    _, results = planted
    rows = {(row["arm"], row["base"], row["name"]): row for row in results["comparisons"]}
    for (first, second, name), row in rows.items():
        other = rows[second, first, name]
        assert row["difference"] == -other["difference"] and row["difference_low"] == -other["difference_high"]
        assert (row["won"], row["lost"]) == (other["lost"], other["won"])
        assert all(row[key] == other[key] for key in ("p_value", "p_adjusted", "test", "detectable"))


def test_arms_at_different_budgets_are_not_compared(tmp_path):
    results = summarised(planted_run(tmp_path / "run", window="32,64", dense_tail="0,16"))
    arms = {arm["name"]: arm for arm in results["arms"]}
    pairs = {(row["arm"], row["base"]) for row in results["comparisons"]}
    assert len(pairs) == 8
    assert all(arms[one][key] == arms[two][key] for one, two in pairs for key in ("window", "dense_tail"))
    dense = ArmRow("a", "a", "sa", 64, 0, seeds=[0], kernel="auto", options={"dense_layers": [0]})
    assert not cells.same_budget(dense, replace(dense, options={}))
    assert cells.same_budget(dense, replace(dense, options={"dense_layers": [0], "sinks": 4}))


def test_noise_gives_no_claim(tmp_path):
    results = summarised(planted_run(tmp_path / "run", ALIKE))
    assert not any(row["significant"] for row in [*results["cells"], *results["comparisons"]])
    first = results["answer"][0]
    assert "costs" not in first and "beats" not in first and "loses" not in first
    row = cell_of(results, "sa-w64")
    assert f"a cost of {answer.points(row['detectable'], sign=False)} points could be seen" in first


def test_the_first_sentence_says_what_sa_costs_and_loses_first(planted):
    _, results = planted
    row = cell_of(results, "sa-w64", length="all")
    words = [
        answer.points(value, sign=False)
        for value in (-row["difference"], -row["corrected_high"], -row["corrected_low"])
    ]
    first = results["answer"][0]
    assert first.startswith(
        f"With window 64, sa costs {words[0]} points (corrected 95\u00a0% interval {words[1]} to {words[2]}): "
    )
    assert first.index("On retrieval and cloze it loses to swa") < first.index("on aggregation it beats swa")


def test_a_verdict_and_the_interval_beside_it_agree(planted):
    """The interval of one difference may leave out 0 where Holm's correction finds nothing; the one shown does not."""
    _, results = planted
    rows = [row for row in [*results["cells"], *results["comparisons"]] if row["p_value"] is not None]
    assert len(rows) > 40 and all(row["enough"] for row in rows)
    for row in rows:
        assert row["significant"] == (not row["corrected_low"] <= 0 <= row["corrected_high"])
        assert (row["p_value"] < 0.05) == (not row["difference_low"] <= 0 <= row["difference_high"])
        assert row["corrected_high"] - row["corrected_low"] > 0.01


def test_what_cannot_be_told_apart_is_said_with_an_interval_around_zero():
    found = difference(corrected_low=-0.19, corrected_high=0.004, p_value=0.0033, p_adjusted=0.059)
    row = Comparison("sa-w64", "swa-w64", "overall", "overall", found)
    said = answer._against_rivals([row], {"swa-w64": "swa"})
    assert said == "cannot be told apart from swa (\u221219.0 to +0.4 points)"


def difference(**changes):
    about = {"value": -0.1, "low": -0.18, "high": -0.051, "interval": "", "p_value": 0.5, "p_adjusted": 1.0, "test": ""}
    about |= {"significant": False, "detectable": 0.2, "won": 1, "lost": 9, "corrected_low": -1, "corrected_high": 1}
    return Difference(**{**about, **changes})


def test_an_end_close_to_zero_keeps_its_side():
    assert answer.span(-0.2, -0.0003) == "\u221220.0 to \u22120.03 points".removesuffix(" points")
    assert answer.span(0.0003, 0.2) == "+0.03 to +20.0" and answer.span(-0.2, 0.0) == "\u221220.0 to +0.0"


def test_of_four_documents_nothing_is_said_but_that(tmp_path):
    """Even where all four were lost."""
    lost = {"full": dict.fromkeys(PLANTED["full"], 1.0), "swa": dict.fromkeys(PLANTED["full"], 1.0)}
    lost["sa"] = dict.fromkeys(PLANTED["full"], 0.0)
    directory = planted_run(tmp_path / "run", lost, documents=4, families={"cloze": "cloze"})
    results = summarised(directory)
    first, text = results["answer"][0], table.render(summary.read(directory))
    assert first.startswith("4 documents: too few to say anything; 2 tests take at least 7 (--num-samples). ")
    assert first.endswith("With window 64, sa scores 0.0\u00a0% against full attention's 100.0\u00a0%.")
    assert not any(verb in first for verb in ("costs", "told apart", "loses", "beats", "to +"))
    rows = [row for row in [*results["cells"], *results["comparisons"]] if row["p_value"] is not None]
    assert rows and not any(row["enough"] or row["significant"] for row in rows)
    line = next(line for line in text.splitlines() if line.startswith("sa-w64"))
    assert "too few" in line and "[" not in line.split("too few")[0].split("\u2212100.0")[1]
    assert "Too few documents to detect any difference to full: with 2 tests, 7 are the least." in text


def test_with_enough_documents_the_same_loss_is_a_verdict(tmp_path):
    lost = {"full": dict.fromkeys(PLANTED["full"], 1.0), "swa": dict.fromkeys(PLANTED["full"], 1.0)}
    lost["sa"] = dict.fromkeys(PLANTED["full"], 0.0)
    first = summarised(planted_run(tmp_path / "run", lost, documents=7, families={"cloze": "cloze"}))["answer"][0]
    assert first.startswith("With window 64, sa costs 100.0 points") and "loses to swa by 100.0 points" in first


def test_results_are_read_as_they_were_written(planted):
    directory, written = planted
    assert types.plain(summary.read(directory)) == written


def test_results_of_version_one_are_read(planted):
    """It had one interval, the time over full's, and how many tests there were."""
    directory, results = planted
    new = {"corrected_low", "corrected_high", "enough", "paired", "speedup"}
    old = {**results, "schema": 1}
    del old["levels"]
    for name in ("cells", "comparisons", "speed"):
        old[name] = [{key: value for key, value in row.items() if key not in new} for row in results[name]]
    for row in old["cells"]:
        if row["arm"] == "full":
            assert "difference" not in row
    for row in old["speed"]:
        row["prefill_ratio"] = row["prefill_ms"] / 10.0
    found = types.read(json.dumps(old))
    assert found.speed == summary.read(directory).speed and found.tests == summary.read(directory).tests
    for row, wanted in zip(found.cells, results["cells"], strict=True):
        if row.versus_full is not None:
            kept = row.versus_full
            ends = (kept.corrected_low, kept.corrected_high)
            assert kept.value == wanted["difference"] and ends == (wanted["difference_low"], wanted["difference_high"])
    assert "vs full" in table.render(found)


def test_tables_fit_a_terminal_of_sixty_columns(planted, monkeypatch):
    directory, results = planted
    monkeypatch.setenv("COLUMNS", "60")
    text = table.render(summary.read(directory))
    assert max(map(len, text.splitlines())) <= 60
    for cell in results["cells"]:
        if cell["scope"] == "overall" and cell["length"] != "all":
            assert f"{100 * cell['accuracy']:.1f} [" in text
    for head in ("retriev", "overall", "vs full", "keys/q", "density", "ms", "x full"):
        assert head in text


def test_failed_documents_count_as_wrong(tmp_path):
    directory = planted_run(tmp_path / "run", {**PLANTED, "full": dict.fromkeys(PLANTED["full"], 1.0)})
    before = cell_of(summarised(directory), "full", "needle_single")["accuracy"]
    failure = {"error": "RuntimeError: no", "score": 1.0}

    def fail(row):
        return replace(row, **failure) if row.task == "needle_single@512" and row.index < 10 else row

    change_records(directory, "full", fail)
    results = summarised(directory)
    assert before == 1 and cell_of(results, "full", "needle_single")["accuracy"] == 0.75
    assert results["answered"][0]["failed"] == 10 and results["unfinished"] == []


def test_an_unfinished_arm_is_compared_on_the_documents_that_both_answered(tmp_path):
    directory = planted_run(tmp_path / "run")
    keep_records(directory, "swa-w64", lambda row: row.index < 25)
    results = summarised(directory)
    row = cell_of(results, "swa-w64", "cloze")
    found = paired(directory, "swa-w64", "cloze@512")
    assert len(found) == 25 == row["documents"]
    assert row["difference"] == pytest.approx(found.mean())
    assert row["accuracy"] == pytest.approx(np.mean(list(scores_of(directory, "swa-w64", "cloze@512").values())))
    assert cell_of(results, "sa-w64", "cloze")["documents"] == 40
    assert cell_of(results, "full", "cloze")["documents"] == 40
    assert results["unfinished"] == ["swa-w64"]
    other = next(row for row in results["comparisons"] if row["arm"] == "sa-w64" and row["name"] == "cloze")
    assert other["won"] + other["lost"] <= 25


def test_a_task_less_than_half_done_is_left_out_and_so_is_what_pools_it(tmp_path):
    directory = planted_run(tmp_path / "run")
    keep_records(directory, "swa-w64", lambda row: row.task != "cloze@512" or row.index < 19)
    results = summarised(directory)
    assert {row["name"] for row in results["cells"] if row["arm"] == "swa-w64"} == {
        *("retrieval", "aggregation", "needle_single", "majority_topic")
    }
    assert "swa-w64" not in table.render(summary.read(directory)).split("Length 512")[1].split("Detectable")[0]


def test_an_unfinished_full_arm_restricts_the_others_to_its_documents(tmp_path):
    directory = planted_run(tmp_path / "run")
    keep_records(directory, "full", lambda row: row.index % 4 != 0)
    results = summarised(directory)
    row = cell_of(results, "sa-w64")
    assert row["documents"] == cell_of(results, "full")["documents"] == 90
    wanted = [
        paired(directory, "sa-w64", f"{name}@512").mean() for name in ("needle_single", "majority_topic", "cloze")
    ]
    assert row["difference"] == pytest.approx(np.mean(wanted))


def test_a_seed_that_is_not_half_through_is_left_out(tmp_path):
    directory = planted_run(tmp_path / "run", seeds="0,1,2")
    keep_records(directory, "sa-w64", lambda row: row.index < 10, seed=2)
    row = cell_of(summarised(directory), "sa-w64")
    found = [record.score for record in directory.records() if record.arm == "sa-w64" and record.seed < 2]
    assert row["documents"] == 120 and row["accuracy"] == pytest.approx(np.mean(found))


def test_the_spread_between_seeds_stands_apart_from_sampling(tmp_path):
    directory = planted_run(tmp_path / "run", seeds="0,1,2")
    results = summarised(directory)
    row = cell_of(results, "sa-w64")
    by_seed = [
        np.mean([record.score for record in directory.records() if (record.arm, record.seed) == ("sa-w64", seed)])
        for seed in (0, 1, 2)
    ]
    assert row["seed_sd"] == pytest.approx(np.std(by_seed, ddof=1))
    assert 0 < row["sampling_sd"] < 0.05 and row["seeds_vary_more"] is False
    assert cell_of(results, "swa-w64")["seed_sd"] is None
    for seed, good in ((0, 0.95), (1, 0.5), (2, 0.1)):
        few = 40 * good
        change_records(directory, "sa-w64", lambda row, few=few: replace(row, score=float(row.index < few)), seed)
    results = summarised(directory)
    assert cell_of(results, "sa-w64")["seeds_vary_more"] is True
    assert any("Seeds differ by more" in note and "sa-w64" in note for note in results["notes"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"hash": "x"}, "another document 3"), ({"index": 99}, "another document 99"), ({"task": "x@1"}, "does not list")],
)
def test_records_that_do_not_belong_are_refused(tmp_path, wrong, said):
    directory = planted_run(tmp_path / "run")
    row = next(row for row in directory.records() if row.index == 3)
    directory.append_records([replace(row, **wrong)])
    with pytest.raises(summary.HashMismatch, match=said):
        summarised(directory)


def test_the_csv_holds_every_cell_with_its_test(planted):
    directory, results = planted
    rows = list(csv.DictReader(io.StringIO((directory.path / "summary.csv").read_text())))
    assert len(rows) == len(results["cells"])
    for row, cell in zip(rows, results["cells"], strict=True):
        for name in ("p_value", "p_adjusted", "detectable"):
            assert (float(row[name]) if row[name] else None) == cell[name]
        assert row["significant"] == str(cell["significant"])


def test_speed_rows_say_what_was_not_measured(planted):
    _, results = planted
    row = next(row for row in results["speed"] if row["arm"] == "sa-w64")
    assert row["speedup"] == 2.0 and row["peak_gib"] is None and row["decode_tokens_per_s"] is None


def test_without_full_a_latency_has_no_ratio(tmp_path):
    directory = planted_run(tmp_path / "run", documents=2)
    rows = [row for row in directory.speed() if row.arm != "full"]
    (directory.path / "speed.jsonl").unlink()
    directory.append(*rows)
    assert {row["speedup"] for row in summarised(directory)["speed"]} == {None}


def test_published_numbers_of_the_model_stand_beside_ours(tmp_path):
    directory = planted_run(tmp_path / "run")
    settings = directory.manifest().settings
    published = {"source": "a paper", "models": {"someone/tiny": {"64": {"sa": {"average": 66.4}}}}}
    change(directory, settings={**settings, "published": published})
    rows = summarised(directory)["published"]
    assert rows == [{"label": "sa", "window": 64, "name": "average", "value": 0.664, "source": "a paper"}]


def test_the_terminal_marks_what_is_significant_and_puts_gates_before_numbers(planted):
    directory, results = planted
    text = table.render(summary.read(directory))
    block = text.split("Length 512")[1].split("Length 1024")[0]
    for arm in ("swa-w64", "sa-w64"):
        line = next(line for line in block.splitlines() if line.startswith(arm))
        assert ("\u2020" in line) == cell_of(results, arm)["significant"]
    assert text.index("gates passed") < text.index("Length 512")
    found = sorted(cell_of(results, arm)["detectable"] for arm in ("swa-w64", "sa-w64"))
    assert f"{100 * found[0]:.1f} to {100 * found[1]:.1f} points" in block
    noise = summary.results_of(*_noise(planted))
    assert "\u2020" not in table.render(noise).split("Length 512")[1].split("Detectable")[0]


def _noise(planted):
    directory = planted_run(planted[0].path.parent / "noise", ALIKE)
    return directory, directory.manifest()


@pytest.mark.slow
def test_a_run_of_fourteen_thousand_documents_is_summed_up_in_seconds(tmp_path):
    """57 tasks as in MMLU; nine arms took 18 s on a machine with four jobs per core, more than half of it to read."""
    families = {f"subject_{position}": "cloze" for position in range(57)}
    directory = planted_run(tmp_path / "run", documents=246, families=families, window="64,256", seeds="0,1")
    start = time.perf_counter()
    results = summarised(directory)
    assert time.perf_counter() - start < 60
    assert cell_of(results, "sa-w64")["documents"] == 57 * 246
