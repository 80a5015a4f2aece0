"""Laws of `sa-eval speed --kernels all`: every kernel that can run here in the same turns, best and worst beside each
arm; without it nothing but what runs is timed."""

import csv
import json

import pytest
from eval_helpers import save_tiny_model

from sa_eval.cli import main
from sa_eval.records.types import Speed
from sa_eval.speed import clock, time_table
from sa_eval.speed.beside_full import beside_full, read
from sa_eval.speed.types import KernelTime
from sa_patch.kernels import KERNELS
from sa_patch.kernels.sdpa import Sdpa

FLAGS = (
    *("--modes", "random-keys", "--window", "32", "--kernel", "torch"),
    *("--lengths", "96", "--repeats", "2", "--new-tokens", "0"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def measured(model, tmp_path, capsys):
    """What `sa-eval speed` with these flags prints, and the folder that it leaves."""

    def make(*flags):
        out = tmp_path / "out"
        assert main(["speed", "--model", model, "--device", "cpu", *FLAGS, *flags, "--out", str(out)]) == 0
        return capsys.readouterr().out, out

    return make


def cells(shown, arm):
    """Of the first block: {head of a column: what stands there for the arm}, columns set apart by two spaces."""
    lines = shown.split("96 tokens\n")[1].splitlines()
    head = [part.strip() for part in lines[0].split("  ") if part.strip()]
    found = next(line for line in lines if line.startswith(arm))
    return dict(zip(["", *head], [part.strip() for part in found.split("  ") if part.strip()], strict=True))


def test_every_kernel_that_can_run_here_is_timed_and_the_others_say_why_they_cannot(measured):
    shown, out = measured("--kernels", "all", "--lengths", "96,128")
    rows = {(row.arm, row.length): row for row in read(str(out)).rows}
    assert [(arm, length) for arm, length in rows] == [
        (arm, length) for length in (96, 128) for arm in ("full", "random-keys-w32", "none")
    ]
    for length in (96, 128):
        assert rows["full", length].by_kernel == rows["none", length].by_kernel == []
        found = {one.kernel: one for one in rows["random-keys-w32", length].by_kernel}
        assert set(found) == {*KERNELS} - {"reference"}  # which is no choice of `auto`
        for name in ("torch", "sdpa"):
            assert len(found[name].repeats_ms) == 2 and found[name].prefill_ms > 0 and found[name].error is None
        assert "it needs a GPU" in found["flash"].error and found["flash"].prefill_ms is None
        assert "no code for Scattered" in found["flex"].error
        assert found["torch"].repeats_ms == rows["random-keys-w32", length].repeats_ms  # the arm's own, timed once
    best, worst = rows["random-keys-w32", 96].best_kernel, rows["random-keys-w32", 96].worst_kernel
    assert {best.kernel, worst.kernel} == {"torch", "sdpa"} and best.prefill_ms <= worst.prefill_ms
    told = cells(shown, "random-keys-w32")
    assert told["kernel"] == "torch"
    assert told["best kernel, ms"] == f"{best.kernel} {best.prefill_ms:,.1f}"
    assert told["worst kernel, ms"] == f"{worst.kernel} {worst.prefill_ms:,.1f}"
    (line, _) = (row for row in csv.DictReader((out / "speed.csv").read_text().splitlines()) if row["best_kernel"])
    assert (line["best_kernel"], line["worst_kernel"]) == (best.kernel, worst.kernel)
    page = (out / "report.html").read_text()
    told = (f"{word} {one.kernel} {one.prefill_ms:,.1f}\u00a0ms" for word, one in (("best", best), ("worst", worst)))
    assert all(text in page for text in told) and "it needs a GPU" in page


def test_without_it_only_what_runs_is_timed_and_the_table_says_how_to_see_the_others(measured, monkeypatch):
    calls, whole = [], clock.generate

    def counted(*arguments):
        calls.append(1)
        return whole(*arguments)

    monkeypatch.setattr(clock, "generate", counted)
    shown, out = measured()
    assert len(calls) == 3 * (2 * 2 + 1)  # arms x (warm-up and timed call per repeat, one for memory)
    assert (
        "best kernel" not in shown and "--kernels all" in shown and cells(shown, "random-keys-w32")["kernel"] == "torch"
    )
    assert all(row["by_kernel"] == [] for row in json.loads((out / "speed.json").read_text())["rows"])


def test_a_kernel_that_fails_is_told_beside_its_arm_and_is_no_failure_of_it(measured, monkeypatch):
    def short_of_memory(*arguments):
        raise MemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(Sdpa, "__call__", short_of_memory)
    _, out = measured("--kernels", "all")  # the arm itself runs torch
    result = read(str(out))
    assert result.failures == []
    row = result.at(96)["random-keys-w32"]
    assert {one.kernel: one.error for one in row.by_kernel}["sdpa"] == "MemoryError: tried to allocate 3 GiB"
    assert row.best_kernel.kernel == row.worst_kernel.kernel == "torch"


def test_a_kernel_that_is_faster_than_the_one_that_ran_is_named_where_their_repeats_lie_apart():
    def row(times):
        kernels = [KernelTime("torch", 20.0, [19.0, 20.0, 20.0, 21.0]), KernelTime("flex", times[1], times)]
        ran = Speed("sa-w16", 64, 64, 20.0, [19.0, 20.0, 20.5, 21.0], 0.1, [9.0], kernels=["torch"])
        return beside_full([ran], {"sa-w16": kernels})

    said = "A faster kernel than the one that ran: flex for sa-w16 at 64 (2.00 times as fast as torch)."
    assert said in time_table.notes(row([9.0, 10.0, 10.0, 11.0]))
    assert said not in time_table.notes(row([9.0, 10.0, 10.0, 20.0]))
    assert not any("faster kernel" in note for note in time_table.notes(row([18.0, 10.0, 10.0])))  # too few repeats
