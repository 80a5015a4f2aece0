"""`sa-eval speed` from its settings to its folder: the model once, then length by length.

What is measured is on disk before the next length begins, and `resume` measures only the lengths that are missing. A
length is measured for all arms in turns, so that a drifting machine hits all of them alike, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from sa_eval import environment, estimate, machine
from sa_eval.loading import model_files, models
from sa_eval.messages import one_line
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.records import continued, lock, result_folder
from sa_eval.records.directory import RunDirectory
from sa_eval.records.keys import code_hash
from sa_eval.records.types import Facts, plain
from sa_eval.settings.arm import Arm, check_kernels
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import SettingsError
from sa_eval.speed import by_kernel, clock, measured_model
from sa_eval.speed.beside_full import beside_full, read
from sa_eval.speed.by_kernel import Candidate
from sa_eval.speed.floor import Floor
from sa_eval.speed.settings import SpeedSettings, speed_settings
from sa_eval.speed.types import Missing, Row, SpeedResult, TimedArm

KIND = "speed"
RANDOM_WEIGHTS = "random weights: speed does not depend on them, except where content chooses the keys (moba's blocks)"
PROTOCOL = (
    "per turn and arm: patch, one untimed call (prompt and one new token), one timed call, restore; arms in turns; "
    "greedy generate of the model itself; no patching inside the clock; memory in a call of its own on a CPU"
)


def run(asked: SpeedSettings, progress: Progress) -> tuple[RunDirectory, SpeedResult, int]:
    """Measure everything into a new folder: the folder, what speed.json in it holds, and the exit status.

    Raises:
        SettingsError: for a model, an arm or a folder that cannot be used, before anything is measured.
    """
    result_folder.check_out(asked.of.out)
    with model_files.code_kept_out(asked.of):
        arms, subject = _prepared(asked, progress)
        result = head(asked, subject, arms)
        directory = result_folder.create(KIND, asked.of.out, subject.identity["name"])
        with lock.hold(directory.lock):
            return directory, result, _fill(directory, asked, subject, arms, result, progress)


def resume(path: str, progress: Progress) -> tuple[RunDirectory, SpeedResult, int]:
    """Measure the lengths that are missing, or in which an arm failed, in the folder; nothing else.

    Raises:
        SettingsError: model, code, versions, arms or machine are not the recorded ones; nothing is overwritten.
    """
    earlier = read(path)
    directory = RunDirectory(Path(path))
    failed = {failure.length for failure in earlier.failures}
    kept = [row for row in earlier.rows if row.length not in failed]
    if earlier.finished and not failed and {row.length for row in kept} == set(earlier.lengths):
        progress.say(f"{path}: every length is measured, nothing is left to do")
        return directory, earlier, 0
    asked = _asked(earlier.settings)
    with lock.hold(directory.lock), model_files.code_kept_out(asked.of):
        arms, subject = _prepared(asked, progress)
        result = head(asked, subject, arms)
        continued.check_continued(path, _fixed(earlier), _fixed(result))
        result.started, result.settings, result.rows = earlier.started, earlier.settings, kept
        progress.say(f"{len({row.length for row in kept})} of {len(result.lengths)} lengths are measured already")
        return directory, result, _fill(directory, asked, subject, arms, result, progress)


def _asked(recorded: Mapping[str, Any]) -> SpeedSettings:
    given = {name: value for name, value in recorded.items() if value is not None and name != "out"}
    if given.get("shape") is not None:
        given.pop("model")
    return speed_settings(given)


def _fixed(result: SpeedResult) -> Facts:
    """What has to be the same when a result is continued: the machine, too, whose times they are."""
    arms = {arm.name: plain(arm) for arm in result.arms}
    return {**continued.computing(result), "arm": arms, "hardware": result.hardware}


def _prepared(asked: SpeedSettings, progress: Progress) -> tuple[list[Arm | Floor], measured_model.Subject]:
    arms = arms_from(asked.of)
    for arm in arms:
        arm.check()
    with progress.step(f"{'making' if asked.random_weights else 'loading'} {asked.name}"):
        subject = measured_model.prepare(asked)
    if asked.cpu_time and subject.model.device.type != "cpu":
        raise SettingsError(f"cpu_time says nothing about {subject.model.device}: leave it out")
    check_kernels(arms, subject.model)
    return [*arms, Floor()], subject


def head(asked: SpeedSettings, subject: measured_model.Subject, arms: Sequence[Arm | Floor]) -> SpeedResult:
    """What the rows belong to."""
    return SpeedResult(
        schema=result_folder.VERSION,
        started=environment.now(),
        settings=asked.to_dict(),
        protocol=PROTOCOL,
        clock="CPU time of the process" if asked.cpu_time else "wall time",
        model=subject.identity,
        versions=environment.versions(),
        hardware=machine.hardware(subject.model.device),
        code=code_hash(),
        arms=[arm.row() if isinstance(arm, Floor) else TimedArm(**arm.to_dict()) for arm in arms],
        notes=[f"{RANDOM_WEIGHTS}."] if asked.random_weights else [],
    )


def seconds(asked: SpeedSettings, subject: measured_model.Subject, arms: int, lengths: Sequence[int]) -> float:
    """About how long these lengths take: in every turn the prompt is read twice, and once more for the memory."""
    shape, rows = estimate.shape_of(subject.model, "auto"), asked.of.batch_size or 1
    reads, turns = 2 * asked.repeats + 1, arms * asked.repeats
    tokens = rows * (arms * reads * sum(lengths) + turns * asked.new_tokens * len(lengths))
    calls = len(lengths) * (arms * reads + turns * asked.new_tokens)
    return estimate.call_seconds(shape, tokens, calls, str(models.input_device(subject.model)))


def _fill(
    directory: RunDirectory,
    asked: SpeedSettings,
    subject: measured_model.Subject,
    arms: Sequence[Arm | Floor],
    result: SpeedResult,
    progress: Progress,
) -> int:
    """Measure the lengths that `result` lacks; the file is there before the first one. Returns the exit status."""
    result_folder.write_result(directory, KIND, result)
    done = {row.length for row in result.rows}
    left = [length for length in asked.of.lengths if length not in done]
    timed = by_kernel.with_candidates(arms, subject.model) if asked.kernels == "all" else arms
    about = estimate.duration(seconds(asked, subject, len(timed), left))
    progress.say(f"result: {directory.path}; about {about} on this machine, {estimate.ROUGH}")
    try:
        _measure(asked, subject, timed, left, result, directory, progress)
    except KeyboardInterrupt as stop:
        result.interrupted = True
        result_folder.write_result(directory, KIND, result)
        progress.say(f"interrupted: finished lengths are kept; `sa-eval resume {directory.path}` continues")
        return interrupts.status(stop)
    result.finished = environment.now()
    result_folder.write_result(directory, KIND, result)
    return 1 if result.failures else 0


def _measure(
    asked: SpeedSettings,
    subject: measured_model.Subject,
    timed: Sequence[Arm | Floor | Candidate],
    left: Sequence[int],
    result: SpeedResult,
    directory: RunDirectory,
    progress: Progress,
) -> None:
    per_length, lengths = len(timed) * asked.repeats, asked.of.lengths
    done = (len(lengths) - len(left)) * per_length
    with progress.bar(len(lengths) * per_length, KIND, unit="turn", done=done) as bar, progress.quiet():
        for length in left:
            rows = _at_length(asked, subject, timed, length, result, progress, bar)
            result.rows = sorted([*result.rows, *rows], key=lambda row: lengths.index(row.tokens))
            result_folder.write_result(directory, KIND, result)


def _at_length(
    asked: SpeedSettings,
    subject: measured_model.Subject,
    timed: Sequence[Arm | Floor | Candidate],
    length: int,
    result: SpeedResult,
    progress: Progress,
    bar: Any,
) -> list[Row]:
    """The rows of a length, with what each kernel took where that is timed; arms that fail are told in the result."""
    turns, not_run = count(), dict[str, str]()

    def advance(name: str) -> None:
        bar.describe(f"{length:,} tokens · {name}")
        bar.advance(1)
        next(turns)

    def failed(arm: Any, error: Exception) -> None:
        if isinstance(arm, Candidate):
            not_run[arm.name] = one_line(error)
            return
        result.failures.append(Missing(arm.name, length, one_line(error)))
        progress.say(f"failed: {arm.name} at {length:,}: {one_line(error)}")

    found = clock.measure_prefill(
        subject.model,
        timed,
        {length: subject.prompt[:length]},
        repeats=asked.repeats,
        new_tokens=asked.new_tokens,
        batch_size=asked.of.batch_size or 1,
        clock=time.process_time if asked.cpu_time else time.perf_counter,
        progress=advance,
        refused=failed,
        needless=by_kernel.runs_already,
    )
    bar.advance(len(timed) * asked.repeats - next(turns))  # what failed arms left out
    arms = [arm for arm in timed if not isinstance(arm, Candidate)]
    rows = [row for row in found if row.arm in {arm.name for arm in arms}]
    times = by_kernel.kernel_times(arms, subject.model, found, not_run) if asked.kernels == "all" else {}
    return beside_full(rows, times)
