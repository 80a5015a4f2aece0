"""Owns the course of `sa-eval speed`: the model once, then length by length; what is measured is on disk at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from sa_eval import environment
from sa_eval.messages import one_line, shown
from sa_eval.progress import Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.settings.arms import Arm, arms_from
from sa_eval.settings.values import SettingsError
from sa_eval.speed import clock, measured_model, outputs
from sa_eval.speed.settings import SpeedSettings

RANDOM_WEIGHTS = "random weights: speed does not depend on them, except where content chooses the keys (moba's blocks)"
PROTOCOL = (
    "per turn and arm: patch, one untimed call (prompt and one new token), one timed call, restore; arms in turns; "
    "greedy generate of the model itself; no patching inside the clock; memory in a call of its own on a CPU"
)


def run(asked: SpeedSettings, progress: Progress) -> tuple[dict[str, Any], RunDirectory]:
    """Measure everything that was asked for; the result is in the directory, too.

    Raises:
        SettingsError: for a model, an arm or a directory that cannot be used, before anything is measured.
    """
    from sa_eval.speed.floor import Floor

    arms: list[Any] = arms_from(asked.of)
    for arm in arms:
        arm.check()
    RunDirectory.refuse_used(asked.of.out)
    with progress.step(f"{'making' if asked.random_weights else 'loading'} {asked.name}"):
        subject = measured_model.prepare(asked)
    if asked.cpu_time and subject.model.device.type != "cpu":
        raise SettingsError(f"cpu_time says nothing about {subject.model.device}: leave it out")
    directory = _directory(asked, subject.identity["name"])
    result = _head(asked, subject, [*arms, Floor()])
    try:
        _measure(asked, subject, [*arms, Floor()], result, directory, progress)
    except KeyboardInterrupt:
        result["notes"].append("Interrupted: some rows are missing.")
        result["interrupted"] = True
    result["finished"] = environment.now()
    _save(result, directory, progress)
    return result, directory


def _directory(asked: SpeedSettings, name: str) -> RunDirectory:
    path = Path(asked.of.out or f"speed/{time.strftime('%Y%m%d-%H%M%S')}-{name}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"out {shown(str(path))} cannot be made: {one_line(error)}") from error
    return RunDirectory(path)


def _head(asked: SpeedSettings, subject: measured_model.Subject, arms: list[Any]) -> dict[str, Any]:
    """What the rows belong to."""
    return {
        "schema": 1,
        "started": environment.now(),
        "settings": asked.to_dict(),
        "protocol": PROTOCOL,
        "clock": "CPU time of the process" if asked.cpu_time else "wall time",
        "model": subject.identity,
        "versions": environment.versions(),
        "hardware": environment.hardware(subject.model.device),
        "arms": [arm.to_dict() for arm in arms],
        "rows": [],
        "failures": [],
        "notes": [f"{RANDOM_WEIGHTS}."] if asked.random_weights else [],
        "interrupted": False,
    }


def _measure(
    asked: SpeedSettings,
    subject: measured_model.Subject,
    arms: list[Any],
    result: dict[str, Any],
    directory: RunDirectory,
    progress: Progress,
) -> None:
    total = len(asked.of.lengths) * len(arms) * asked.repeats
    with progress.bar(total, "speed", unit="turn") as bar, progress.quiet():
        for length in asked.of.lengths:
            turns = count()

            def told(name: str, length: int = length, turns: Iterator[int] = turns) -> None:
                bar.describe(f"{length:,} tokens · {name}")
                bar.advance(1)
                next(turns)

            def failed(arm: Arm, error: Exception, length: int = length) -> None:
                result["failures"].append({"arm": arm.name, "length": length, "error": one_line(error)})
                progress.say(f"failed: {arm.name} at {length:,}: {one_line(error)}")

            result["rows"] += clock.measure_prefill(
                subject.model,
                arms,
                {length: subject.prompt[:length]},
                repeats=asked.repeats,
                new_tokens=asked.new_tokens,
                batch_size=asked.of.batch_size or 1,
                clock=time.process_time if asked.cpu_time else time.perf_counter,
                progress=told,
                refused=failed,
            )
            bar.advance(len(arms) * asked.repeats - next(turns))  # what failed arms left out
            result["rows"] = outputs.ratios(result["rows"])
            directory.write_json("speed.json", result)


def _save(result: dict[str, Any], directory: RunDirectory, progress: Progress) -> None:
    if result["rows"]:
        try:
            with progress.quiet():
                outputs.plot(result, directory.path)
        except ImportError:
            result["notes"].append("No picture: matplotlib is not installed (pip install matplotlib).")
    directory.write_json("speed.json", result)
    directory.write_text("speed.csv", outputs.to_csv(result))
