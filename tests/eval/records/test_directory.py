"""Laws of a run directory's files: one write per append, torn ends cut, damage told, the right row wins."""

import errno
import json
import os
from dataclasses import dataclass, replace

import pytest

from sa_eval.records import jsonl, lock
from sa_eval.records.directory import RunDirectory
from sa_eval.records.jsonl import StorageError
from sa_eval.records.types import VERSION, ArmRun, Budget, Failure, Manifest, Record, SessionRow


@dataclass(frozen=True)
class Row:
    number: int
    text: str


ROWS = [Row(number, "wörter\u2028 und Rest") for number in range(3)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "records").mkdir()
    return RunDirectory(tmp_path)


def record(index, score, **more):
    return Record("sa-w0.5", 0, "cloze@192", index, "h", score, **more)


def manifest(sessions):
    rows = [SessionRow("2026-01-01T00:00:00Z", processes=1, hardware={})] * sessions
    return Manifest("2026-01-01T00:00:00Z", {}, {}, {}, {}, arms=[], tasks=[], schema=VERSION, sessions=rows)


def test_rows_come_back_as_they_were_whatever_characters_they_hold(file):
    jsonl.append(file, ROWS[:1])
    jsonl.append(file, ROWS[1:])
    assert list(jsonl.read(file, Row)) == ROWS


def test_half_a_surrogate_pair_is_no_text_and_no_damage(file):
    """Python writes it, strict readers of JSON refuse it."""
    jsonl.append(file, [Row(0, "half \ud83d of one"), Row(1, "whole \U0001f600")])
    assert list(jsonl.read(file, Row)) == [Row(0, "half ? of one"), Row(1, "whole \U0001f600")]


def test_an_append_is_one_write_and_on_the_disk(file, monkeypatch):
    seen, write, fsync = [], os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *given: seen.append("write") or write(*given))
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append("sync") or fsync(handle))
    jsonl.append(file, ROWS)
    assert seen[:2] == ["write", "sync"] and "write" not in seen[2:]


@pytest.mark.parametrize("torn", [b'{"number": 3, "te', b'{"number": 3, "text": "\xc3', b"\0" * 70000, b"{}"])
def test_a_torn_end_is_no_row_and_is_cut_off_by_the_next_append(file, torn):
    jsonl.append(file, ROWS[:2])
    with file.open("ab") as stream:
        stream.write(torn)
    assert list(jsonl.read(file, Row)) == ROWS[:2]
    jsonl.append(file, ROWS[2:])
    assert list(jsonl.read(file, Row)) == ROWS


def test_a_file_that_is_only_a_torn_line_starts_anew(file):
    file.write_bytes(b'{"number"')
    jsonl.append(file, ROWS)
    assert list(jsonl.read(file, Row)) == ROWS


@pytest.mark.parametrize(
    "damage", [b"{'a'}\n", b"\0\0\n", b"[1]\n", b"\xff\n", b"\n", b"{}\n", b'{"number": "1", "text": ""}\n']
)
def test_damage_is_told_by_file_and_line(file, damage):
    good = b'{"number": 1, "text": "", "of a later version": 0}\n'
    file.write_bytes(good + damage + good)
    with pytest.raises(StorageError, match=r"rows.jsonl, line 2 is damaged.*sed -i 2d"):
        list(jsonl.read(file, Row))


def test_a_write_that_fails_half_way_leaves_the_file_as_it_was(file, monkeypatch):
    jsonl.append(file, ROWS[:1])
    before, write = file.read_bytes(), os.write

    def full(handle, data):
        if len(data) > 20:
            return write(handle, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", lambda handle, data: full(handle, data[:40] if len(data) > 40 else data[:0]))
    with pytest.raises(StorageError, match=r"cannot write .*No space left on device.*make room.*sa-eval resume"):
        jsonl.append(file, ROWS)
    monkeypatch.undo()
    assert file.read_bytes() == before
    jsonl.append(file, ROWS[1:])
    assert list(jsonl.read(file, Row)) == ROWS


def test_a_whole_file_is_replaced_or_left_alone(directory, monkeypatch):
    directory.write_json("manifest.json", {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(StorageError, match=r"manifest.json: No space left"):
        directory.write_json("manifest.json", {"a": 2})
    assert json.loads((directory.path / "manifest.json").read_text()) == {"a": 1}
    assert [file.name for file in directory.path.iterdir() if file.is_file()] == ["manifest.json"]


def test_a_score_wins_over_a_failure_and_the_last_score_over_earlier_ones(directory):
    other = RunDirectory(directory.path, rank=1)
    other.append_records([record(0, 0.0, error="boom"), record(1, 0.0, error="first")])
    directory.append_records([record(0, 1.0), record(1, 0.0, error="second"), record(2, 0.0)])
    directory.append_records([record(2, 0.5)])
    assert [(row.index, row.score, row.error) for row in directory.records()] == [
        (0, 1.0, None),
        (1, 0.0, "first"),
        (2, 0.5, None),
    ]
    assert sorted(file.name for file in (directory.path / "records").iterdir()) == [
        "sa-w0.5.seed0.jsonl",
        "sa-w0.5.seed0.rank1.jsonl",
    ]


def test_a_record_without_its_place_is_damaged(directory):
    (directory.path / "records" / "sa-w0.5.seed0.jsonl").write_text('{"arm": "sa-w0.5", "seed": 0}\n')
    with pytest.raises(StorageError, match=r"sa-w0.5.seed0.jsonl, line 1 is damaged \(it has no 'task'\)"):
        list(directory.records())


def test_logs_hold_one_row_per_thing_the_last_one_written(directory):
    directory.append(Budget("full", 64, 32.5, 1.0), Budget("full", 128, 64.5, 1.0))
    directory.append(Budget("full", 64, 30.5, 0.9))
    assert directory.budgets() == [Budget("full", 64, 30.5, 0.9), Budget("full", 128, 64.5, 1.0)]
    assert len(directory.written(Budget)) == 3 and directory.speed() == []


def test_work_of_chunks_sessions_and_processes_is_summed(directory):
    row = ArmRun("sa-w24", 0, 1.5, [{"sparse_prefill": 2}, {"sparse_prefill": 1}], "sa", ["small"])
    directory.append(row)
    RunDirectory(directory.path, rank=2).append(replace(row, describe=None))
    (found,) = directory.arm_runs()
    assert (found.seconds, found.calls) == (3.0, [{"sparse_prefill": 4}, {"sparse_prefill": 2}])
    assert found.describe == "sa\ncalls      sparse_prefill 6 (over all layers)" and found.notes == ["small"]


def test_failures_stand_until_they_are_mended(directory):
    failure = Failure("sa-w0.5", 0, "cloze@192", "boom", session=1)
    directory.append(replace(failure, documents=[0]), replace(failure, documents=[1]))
    directory.append(replace(failure, arm=None, task="gone", error="no network"))
    directory.write_manifest(manifest(sessions=1))
    directory.append_records([record(0, 0.0, error="boom"), record(1, 0.0, error="boom")])
    standing = [(row.error, row.documents) for row in directory.failures()]
    assert standing == [("boom", [0, 1]), ("no network", None)]
    directory.write_manifest(manifest(sessions=2))  # a later session tried everything again
    directory.append_records([record(1, 1.0)])
    assert [(row.error, row.documents) for row in directory.failures()] == [("boom", [0])]
    assert len(directory.written(Failure)) == 3


def test_a_manifest_comes_back_as_it_was(directory):
    written = replace(manifest(sessions=2), finished="2026-01-01T01:00:00Z", keys={"code": "c"})
    directory.write_manifest(written)
    assert directory.manifest() == written


def test_a_run_of_a_later_version_is_refused_whatever_it_holds(directory):
    directory.write_json("manifest.json", {"schema": VERSION + 1})
    with pytest.raises(StorageError, match=rf"of version {VERSION + 1}, this one reads up to version {VERSION}; upgra"):
        directory.manifest()


def test_a_lock_is_held_by_one_and_known_to_others(tmp_path):
    file = tmp_path / "run.lock"
    assert not lock.is_held(file)
    with lock.hold(file):
        assert lock.is_held(file)
        with pytest.raises(StorageError, match=rf"in use by process {os.getpid()} on .* since 20"), lock.hold(file):
            pass
    assert not lock.is_held(file) and json.loads(file.read_text())["pid"] == os.getpid()
