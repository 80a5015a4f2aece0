"""Laws of a speed result as a folder: it is read, continued, compared and rendered from its file alone."""

import json
import shutil
from pathlib import Path

import pytest
from eval_helpers import save_tiny_model

from sa_eval.cli import main
from sa_eval.records.types import Speed
from sa_eval.speed import clock, time_headline
from sa_eval.speed.beside_full import beside_full, read

VERSION_1 = Path(__file__).parent / "version1"


def test_files_of_version_1_read_with_times_as_fast_above_1_where_it_is_faster():
    rows = {row.arm: row for row in read(str(VERSION_1)).rows}
    assert rows["sa-w128"].times_as_fast == pytest.approx(1 / 1.158401821167767)
    assert rows["none"].times_as_fast == pytest.approx(1 / 0.5628156817593389)


def test_report_and_compare_know_the_folder(tmp_path, capsys):
    shutil.copytree(VERSION_1, tmp_path / "old")
    assert main(["report", str(tmp_path / "old")]) == 0
    assert "too few to tell an arm from full" in (tmp_path / "old" / "report.html").read_text()
    assert main(["compare", str(VERSION_1), str(tmp_path / "old")]) == 0
    assert "identical: 3 of 3 arms and lengths (all)" in capsys.readouterr().out


def test_resume_measures_only_the_lengths_that_are_missing(tmp_path, monkeypatch, capsys):
    whole, out, asked = clock.generate, tmp_path / "out", []

    def generate(model, ids, new_tokens, clock):
        asked.append(ids.shape[1])
        if stop and ids.shape[1] == 128:
            raise KeyboardInterrupt
        return whole(model, ids, new_tokens, clock)

    stop = True
    monkeypatch.setattr(clock, "generate", generate)
    model = save_tiny_model(tmp_path / "tiny")
    flags = ["--model", model, "--modes", "swa", "--window", "16", "--lengths", "64,128", "--repeats", "1"]
    assert main(["speed", *flags, "--new-tokens", "0", "--device", "cpu", "--out", str(out)]) == 130
    before, stop = json.loads((out / "speed.json").read_text()), False
    asked.clear()
    assert main(["resume", str(out)]) == 0
    found = json.loads((out / "speed.json").read_text())
    assert set(asked) == {128} and found["rows"][:3] == before["rows"] and len(found["rows"]) == 6 and found["finished"]


def test_the_headline_says_slower_first_and_nothing_that_the_repeats_cannot_show():
    result = read(str(VERSION_1))

    def row(arm, length, times):
        return Speed(arm, length, length, times[1], times, 0.1, [1.0])

    result.rows = beside_full(
        [
            *(row("full", length, [9.0, 10.0, 10.5, 11.0]) for length in (64, 256)),
            row("sa-w128", 64, [19.0, 20.0, 20.5, 21.0]),
            row("sa-w128", 256, [4.0, 5.0, 5.5, 6.0]),
        ]
    )
    (said,) = time_headline.sentences(result)
    assert said == (
        "At 256 tokens sa-w128 starts 2.00 times as fast as full; at 64 it is slower than full (0.50 times)."
    )
    result.rows = beside_full([row("full", 256, [9.0, 10.0, 11.0, 12.0]), row("sa-w128", 256, [8.0, 8.5, 9.5, 10.0])])
    assert time_headline.sentences(result)[0].endswith("but the repeats of both overlap.")
