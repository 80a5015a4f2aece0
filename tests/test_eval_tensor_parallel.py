"""Laws of tensor parallelism in sa-eval: processes that hold one model together leave the run that one would."""

import socket

import pytest
from eval_helpers import save_tiny_model
from run_helpers import FLAGS, by_place, ended, lines, start

from sa_eval import tensor_parallel
from sa_eval.config import SettingsError, settings_from
from sa_eval.ranks import Ranks
from sa_eval.store import RunDirectory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def launch(arguments, folder, world=2):
    """Gloo processes without a launcher; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    processes = [
        start(arguments, folder / f"log{rank}", environment={**names, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    return [ended(process) for process in processes]


def assert_same_scores(out, wanted):
    found, expected = by_place(out), by_place(wanted)
    assert found.keys() == expected.keys() and sum(lines(out).values()) == len(found)
    for place, row in found.items():
        assert (row["hash"], row["key"], row["score"]) == tuple(
            expected[place][name] for name in ("hash", "key", "score")
        )
        if isinstance(row["output"], list):
            assert row["output"] == pytest.approx(expected[place]["output"], abs=2e-4)
        else:
            assert row["output"] == expected[place]["output"]


def test_two_processes_with_half_a_model_each_leave_the_run_of_one(model, tmp_path):
    assert ended(start(["run", "--model", model, "--out", str(tmp_path / "whole"), *FLAGS], tmp_path / "log")) == 0
    out = tmp_path / "together"
    statuses = launch(["run", "--model", model, "--out", str(out), "--tp", *FLAGS], tmp_path)
    assert statuses == [0, 0], (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()
    assert_same_scores(out, tmp_path / "whole")
    directory = RunDirectory(out)
    assert directory.log("failures") == [] and directory.read_json("manifest.json")["finished"]
    assert directory.raw_log("budgets") == RunDirectory(tmp_path / "whole").raw_log("budgets")
    assert not list(out.glob("**/*.rank1*")) and "report:" not in (tmp_path / "log1").read_text()
    # As if it had been interrupted after half of the records: both take up what is left.
    directory.write_json("manifest.json", {**directory.read_json("manifest.json"), "finished": None})
    for file in (out / "records").iterdir():
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join(rows[: len(rows) // 2]))
    assert launch(["resume", str(out)], tmp_path) == [0, 0]
    assert_same_scores(out, tmp_path / "whole")


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
    assert (
        launch(["run", "--model", model, "--out", str(tmp_path / "run"), "--tp", *FLAGS], tmp_path, world=3) == [2] * 3
    )
    assert "has 2 key heads, which 3 processes cannot share evenly" in (tmp_path / "log0").read_text()
