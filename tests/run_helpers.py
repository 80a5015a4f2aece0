"""How tests run sa-eval in processes of their own, which can be killed: a server that has imported everything forks
them in milliseconds. Also what two runs must have in common.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

from sa_eval.page import report
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import Budget, Check, Prompt
from sa_eval.run import chunks

CHOICES = ("--tasks", "majority_topic,cloze", "--lengths", "192", "--window", "24", "--modes", "swa,sa", "--seeds", "0")
FLAGS = (*CHOICES, "--num-samples", "4", "--device", "cpu", "--batch-size", "2", "--no-speed", "--threads", "1")
PATIENCE_SECONDS = 60
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "sa_eval.run.runner",
        "sa_eval.page.report",
        "sa_eval.documents.offline",
        "sa_eval.documents.harness",
        "sa_eval.commands.resume",
        "sa_eval.run.selftest",
        "sa_eval.run.scoring",
        "sa_patch",
        "lm_eval.evaluator",
        "torch.distributed.tensor",
        "transformers.quantizers.auto",
        "transformers.modeling_utils",
        "transformers.generation.utils",
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


def begin(model, out, *more):
    """The arguments that start a run."""
    return ["run", "--model", str(model), "--out", str(out), *FLAGS, *more]


def unfinish(out):
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["finished"]
    (out / "manifest.json").write_text(json.dumps(manifest))


def start(arguments, log: Path, *, largest_file: int | None = None, environment=(), drawn: bool = False):
    """`sa-eval <arguments>` in its own process; what it prints goes to `log`. Its report is only `drawn` on demand."""
    process = _context.Process(target=_work, args=(list(arguments), str(log), largest_file, dict(environment), drawn))
    process.start()
    return process


def ended(process) -> int:
    """The exit status of a process that must end by itself."""
    process.join(PATIENCE_SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError("the process did not end")
    return process.exitcode


def undrawn(directory) -> None:
    """In place of report.write, which takes longer than these runs."""
    directory.write_text("report.html", "")


def _work(arguments, log, largest_file, environment, drawn):
    os.environ.update(environment)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    import warnings

    from sa_eval.cli import main

    warnings.simplefilter("ignore")
    if not drawn:
        report.write = undrawn
    chunks.TOKENS_PER_ROW = 1  # a batch is a chunk: many points to be killed at
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    sys.exit(main(arguments))


def wait_for_records(process, out: Path, count: int) -> bool:
    """Until `count` records are there; False when the process ended before."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        if sum(lines(out).values()) >= count:
            return True
        if not process.is_alive():
            return False
        time.sleep(0.002)
    raise AssertionError(f"{count} records did not come")


def lines(out: Path) -> dict[str, int]:
    """Record lines by file, whatever they say."""
    return {file.name: file.read_bytes().count(b"\n") for file in (out / "records").glob("*.jsonl")}


def by_place(out: Path):
    return {row.place: row for row in RunDirectory(out).records()}


def assert_same_run(out: Path, wanted: Path) -> None:
    """Record by record the same, each written once, and nothing else is left."""
    found = by_place(out)
    assert found == by_place(wanted)
    assert sum(lines(out).values()) == len(found)
    directory = RunDirectory(out)
    assert directory.manifest().finished and directory.failures() == []
    for kind in (Budget, Check, Prompt):
        assert directory.written(kind) == RunDirectory(wanted).written(kind)


def contents(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "run.lock"
    }
