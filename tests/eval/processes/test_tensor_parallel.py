"""Laws of tensor parallelism in sa-eval: processes that hold one model together leave the run that one would."""

import socket

import pytest
from eval_helpers import save_tiny_model
from run_helpers import FLAGS, by_place, ended, lines, start, wait_for_records

from sa_eval.processes import tensor_parallel
from sa_eval.processes.ranks import Ranks
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import Budget
from sa_eval.settings.config import SettingsError, settings_from


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def launch(arguments, folder, world=2):
    """Gloo processes without a launcher that would watch over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    return [
        start(arguments, folder / f"log{rank}", environment={**names, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def statuses(processes):
    return [ended(process) for process in processes]


def assert_same_scores(out, wanted):
    found, expected = by_place(out), by_place(wanted)
    assert found.keys() == expected.keys() and sum(lines(out).values()) == len(found)
    for place, row in found.items():
        same = expected[place]
        assert (row.hash, row.key, row.score) == (same.hash, same.key, same.score)
        if isinstance(row.output, list):
            assert row.output == pytest.approx(same.output, abs=2e-4)
        else:
            assert row.output == same.output


def test_two_processes_with_half_a_model_each_leave_the_run_of_one(model, tmp_path):
    assert ended(start(["run", "--model", model, "--out", str(tmp_path / "whole"), *FLAGS], tmp_path / "log")) == 0
    out = tmp_path / "together"
    processes = launch(["run", "--model", model, "--out", str(out), "--tp", *FLAGS], tmp_path)
    assert statuses(processes) == [0, 0], (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()
    assert_same_scores(out, tmp_path / "whole")
    directory = RunDirectory(out)
    assert directory.failures() == [] and directory.manifest().finished
    assert directory.written(Budget) == RunDirectory(tmp_path / "whole").written(Budget)
    assert not list(out.glob("**/*.rank1*")) and "report:" not in (tmp_path / "log1").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_stops_the_run_and_resume_completes_it(model, tmp_path, victim):
    out = tmp_path / "run"
    processes = launch(["run", "--model", model, "--out", str(out), "--tp", *FLAGS], tmp_path)
    assert wait_for_records(processes[0], out, 5)
    processes[victim].kill()
    assert ended(processes[1 - victim]) == 1
    finished = by_place(out)
    assert 5 <= len(finished) < 24 and not [row for row in finished.values() if row.error]
    if victim:
        assert "process 1 of 2" in (tmp_path / "log0").read_text() and (out / "report.html").exists()
    assert statuses(launch(["resume", str(out)], tmp_path)) == [0, 0]
    assert len(by_place(out)) == sum(lines(out).values()) == 24
    assert finished.items() <= by_place(out).items()


@pytest.mark.parametrize(
    ("settings", "world", "message"),
    [
        ({"tp": True}, 1, r"started alone: torchrun --nproc-per-node 2"),
        ({"tp": True, "device_map": "auto"}, 2, r"tp and device_map both place the model"),
    ],
)
def test_tp_without_others_or_beside_a_device_map_is_refused(settings, world, message):
    with pytest.raises(SettingsError, match=message):
        tensor_parallel.check(settings_from(settings), Ranks(0, world))


def test_heads_that_cannot_be_shared_are_refused(model, tmp_path):
    processes = launch(["run", "--model", model, "--out", str(tmp_path / "run"), "--tp", *FLAGS], tmp_path, world=3)
    assert statuses(processes) == [2, 2, 2]
    assert "has 2 key heads, which 3 processes cannot share evenly" in (tmp_path / "log0").read_text()
