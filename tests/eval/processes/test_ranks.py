"""Laws of several processes in one run: together they leave what one would, and none waits for one that died."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from run_helpers import FLAGS, assert_same_run, begin, by_place, ended, lines, start, wait_for_records

from sa_eval.loading import models
from sa_eval.processes import ranks
from sa_eval.processes.ranks import Ranks
from sa_eval.settings.config import SettingsError, settings_from

pytest_plugins = "run_fixtures"
BOUND_SECONDS = 30


def launch(arguments, folder, world=2):
    """Two gloo processes without a launcher that would watch over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [
        start(arguments, folder / f"log{rank}", environment={**names, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def test_two_processes_leave_the_records_of_one(run_model, whole, tmp_path):
    out = tmp_path / "run"
    assert [ended(process) for process in launch(begin(run_model, out), tmp_path)] == [0, 0]
    assert_same_run(out, whole)
    counts = lines(out)
    shares = [sum(count for name, count in counts.items() if (".rank1." in name) is first) for first in (False, True)]
    assert shares == [12, 12] and not (out / "ranks").exists()
    session = json.loads((out / "manifest.json").read_text())["sessions"][0]
    assert session["processes"] == 2
    first, second = ((tmp_path / f"log{rank}").read_text() for rank in range(2))
    assert "share 1 of 2" in first and "report:" in first and "evaluation" not in second and "report:" not in second


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_stops_the_run_in_bounded_time_and_resume_completes_it(run_model, whole, tmp_path, victim):
    out = tmp_path / "run"
    processes = launch(begin(run_model, out), tmp_path)
    assert wait_for_records(processes[0], out, 4)
    processes[victim].kill()
    start_time = time.monotonic()
    assert ended(processes[1 - victim]) not in (0, -signal.SIGKILL)
    assert time.monotonic() - start_time < BOUND_SECONDS
    shown = (tmp_path / f"log{1 - victim}").read_text()
    if victim:
        assert (
            "process 1 of 2" in shown and "ended before its share was done" in shown and (out / "report.html").exists()
        )
    finished = by_place(out)
    assert 4 <= len(finished) < 24
    assert ended(start(["resume", str(out)], tmp_path / "log")) == 0
    assert finished.items() <= by_place(out).items()
    assert_same_run(out, whole)


def test_a_run_of_one_process_is_completed_by_two(run_model, whole, tmp_path):
    out = tmp_path / "run"
    process = start(begin(run_model, out), tmp_path / "log")
    assert wait_for_records(process, out, 4)
    process.kill()
    process.join()
    assert [ended(process) for process in launch(["resume", str(out)], tmp_path)] == [0, 0]
    assert_same_run(out, whole)


def test_what_the_first_process_refuses_ends_all(run_model, whole, tmp_path):
    codes = [ended(process) for process in launch(["run", "--model", run_model, "--out", str(whole), *FLAGS], tmp_path)]
    assert codes[0] == 2 and codes[1] != 0
    assert "already holds" in (tmp_path / "log0").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launchers_start_it(run_model, whole, tmp_path, launcher):
    out = tmp_path / "run"
    how = {
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
    }[launcher]
    command = [sys.executable, "-m", *how, "-m", "sa_eval", *begin(run_model, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29871"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, wanted = by_place(out), by_place(whole)
    assert {place: row.score for place, row in found.items()} == {place: row.score for place, row in wanted.items()}
    assert any(".rank1." in name for name in lines(out))


def test_shares_are_all_of_it_and_nothing_twice():
    items = list(range(11))
    shares = [Ranks(rank, 4).share(items) for rank in range(4)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_numbered_device_is_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match=r"'cuda:1' is one device.*--device cuda"):
        ranks.find("cuda:1")


def test_alone_nothing_is_announced_or_waited_for(tmp_path):
    from sa_eval.records.directory import RunDirectory

    crew = ranks.Crew(Ranks(), RunDirectory(tmp_path), 1)
    with crew.at_work():
        crew.announce("prepared")
        assert crew.wait_for("prepared") == {}
        crew.check()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_weights_have_the_dtype_of_a_single_process(device):
    """accelerate numbers the CPU."""
    assert models.pick_dtype(settings_from({}), device) == "float32"
