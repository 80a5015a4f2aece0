"""Owns the course of a run: load once, prepare the documents once, then apply, evaluate and restore arm by arm.

A task or an arm that fails is recorded and the others go on. Everything is appended to the run directory as it happens;
tables and reports read those files only (summary.py, report.py).
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sa_eval import environment, model_files, models, prepare, rows
from sa_eval.arms import Arm, arms_from, left_out
from sa_eval.budgets import measured_budget
from sa_eval.config import Settings, SettingsError, to_yaml
from sa_eval.messages import one_line, shown
from sa_eval.progress import Progress
from sa_eval.store import RunDirectory


@dataclass
class Run:
    """What one run shares between its steps."""

    settings: Settings
    loaded: models.Loaded
    lm: Any
    arms: list[Arm]
    tasks: list[Any]
    directory: RunDirectory
    progress: Progress


def run(settings: Settings, progress: Progress) -> RunDirectory:
    """Run everything the settings ask for and leave the records in a new directory."""
    source = models.find(settings.model)
    prepare.check_tasks(settings)
    arms = arms_from(settings)
    for arm in arms:
        arm.check()
    check_out(settings.out)
    with model_files.code_kept_out(settings):
        with progress.step(f"loading {settings.model}"):
            loaded = models.load(source, settings)
        prepare.check_lengths(settings, models.max_tokens(loaded.model))
        with _out_errors(settings.out):
            directory = RunDirectory.create(settings.out, source.name)
        directory.write_text("config.yaml", to_yaml(replace(settings, out=None)))
        progress.say(f"run directory: {directory.path}")
        return run_loaded(settings, loaded, arms, directory, progress)


def check_out(out: str | None) -> None:
    """Refuse a run directory that is used or cannot be made, before minutes are spent on loading."""
    with _out_errors(out):
        RunDirectory.refuse_used(out)
        path = Path(out or "runs").absolute()
        parent = next(place for place in (path, *path.parents) if place.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise NotADirectoryError(f"{parent} is no directory that can be written")


@contextlib.contextmanager
def _out_errors(out: str | None) -> Iterator[None]:
    try:
        yield
    except SettingsError:
        raise
    except (OSError, ValueError) as error:
        raise SettingsError(f"out {shown(out or 'runs')} cannot be made: {one_line(error)}") from error


def run_loaded(
    settings: Settings, loaded: models.Loaded, arms: list[Arm], directory: RunDirectory, progress: Progress
) -> RunDirectory:
    """The run itself, for a model that is already in memory."""
    from sa_eval.lm import ExactLM

    with progress.quiet():
        batch_size = models.pick_batch_size(settings, loaded.model.device)
        lm = ExactLM(loaded.model, loaded.tokenizer, batch_size=batch_size)
    this = Run(settings, loaded, lm, arms, [], directory, progress)
    this.tasks += prepare.all_tasks(
        settings, lm, progress, lambda label, error: record_failure(this, None, label, error)
    )
    manifest = _manifest(this, environment.now())
    directory.write_json("manifest.json", manifest)
    if not this.tasks:
        raise SettingsError(
            f"no task could be prepared; the reasons are in {directory.path / 'failures.jsonl'}: "
            f"{directory.log('failures')[0]['error']}"
        )
    try:
        usable = measure(this)
        evaluate_arms(this, usable)
    except KeyboardInterrupt:
        directory.append("failures", {"arm": None, "task": None, "error": "interrupted by the user"})
        progress.say("interrupted: reporting what is finished")
    directory.write_json("manifest.json", {**manifest, "finished": environment.now()})
    return directory


def _manifest(this: Run, started: str) -> dict[str, Any]:
    """What the records belong to."""
    return {
        "schema": 1,
        "started": started,
        "settings": this.settings.to_dict(),
        "model": this.loaded.identity,
        "versions": environment.versions(),
        "hardware": environment.hardware(this.loaded.model.device),
        "arms": [arm.to_dict() for arm in this.arms],
        "left_out": left_out(this.settings),
        "tasks": [task.to_dict() for task in this.tasks],
    }


def measure(this: Run) -> list[Arm]:
    """Budgets at the prompts' lengths, then latency; returns the arms that can run."""
    by_length: dict[int | None, list[int]] = {}
    for task in this.tasks:
        by_length.setdefault(task.length, []).extend(task.prompt_tokens)
    usable = []
    for arm in this.arms:
        try:
            patch = arm.apply(this.loaded.model, arm.seeds[0])
            try:
                for length, prompt_tokens in by_length.items():
                    this.directory.append(
                        "budgets", {"arm": arm.name, "length": length, **measured_budget(patch, prompt_tokens)}
                    )
                usable.append(arm)
            finally:
                if patch is not None:
                    patch.restore()
        except Exception as error:
            record_failure(this, arm, None, error)
    if this.settings.speed:
        _measure_speed(this, usable)
    return usable


def _measure_speed(this: Run, arms: list[Arm]) -> None:
    from sa_eval import speed

    prompts: dict[Any, list[int]] = {}
    for task in this.tasks:
        prompts.setdefault(task.length, _first_row(this.lm, task))
    with this.progress.bar(len(prompts) * len(arms) * speed.REPEATS, "latency", unit="turn") as bar:

        def advance(name: str) -> None:
            bar.describe(f"latency · {name}")
            bar.advance(1)

        measured = speed.measure_prefill(
            this.loaded.model,
            arms,
            prompts,
            progress=advance,
            refused=lambda arm, error: record_failure(this, arm, "latency", error),
        )
    for row in measured:
        this.directory.append("speed", row)


def _first_row(lm: Any, task: Any) -> list[int]:
    request = task.task.instances[0]
    if request.request_type == "generate_until":
        return list(lm.encoded_prompt(request))
    if request.request_type == "loglikelihood":
        context, continuation = lm.encoded_pair(request)
        return [*context, *continuation[:-1]]
    return lm.tok_encode(request.args[0])


def evaluate_arms(this: Run, arms: list[Arm]) -> None:
    requests = sum(len(task.task.instances) for task in this.tasks)
    total = requests * sum(len(arm.seeds) for arm in arms)
    with this.progress.bar(total, "evaluation", unit="request") as bar, this.progress.quiet():
        this.lm.on_progress(bar.advance)
        try:
            for arm in arms:
                for seed in arm.seeds:
                    try:
                        evaluate_arm(this, arm, seed, bar)
                    except Exception as error:
                        record_failure(this, arm, None, error, seed=seed)
        finally:
            this.lm.on_progress(None)


def evaluate_arm(this: Run, arm: Arm, seed: int, bar: Any) -> None:
    """One arm with one seed over every task; the model is as before afterwards, also after an exception."""
    start = time.perf_counter()
    patch = arm.apply(this.loaded.model, seed)
    try:
        for task in this.tasks:
            bar.describe(f"{arm.name}{f' seed {seed}' if len(arm.seeds) > 1 else ''} · {task.key}")
            found = _rows_of(this, arm, seed, task, bar)
            about = {"arm": arm.name, "seed": seed, "task": task.key, "name": task.name, "length": task.length}
            this.directory.append_records(arm.name, seed, ({**about, **row} for row in found))
        seconds = round(time.perf_counter() - start, 3)
        calls = None if patch is None else patch.calls
        describe = "the model's own attention, not patched" if patch is None else patch.describe()
    finally:
        if patch is not None:
            patch.restore()
    about = {"arm": arm.name, "seed": seed, "seconds": seconds, "calls": calls, "describe": describe}
    this.directory.append("arm_runs", about)


def _rows_of(this: Run, arm: Arm, seed: int, task: Any, bar: Any) -> list[dict[str, Any]]:
    """The task's rows, or rows that say why it failed; the bar moves on either way."""
    done = bar.done
    try:
        return evaluate_task(this, task)
    except Exception as error:
        record_failure(this, arm, task.key, error, seed=seed)
        bar.advance(len(task.task.instances) - (bar.done - done))
        return rows.failed(task, error)


def evaluate_task(this: Run, task: Any) -> list[dict[str, Any]]:
    """lm-eval scores one task; one row per document comes back."""
    from lm_eval.evaluator import evaluate

    limit = None if this.settings.num_samples == "all" else this.settings.num_samples
    result = evaluate(
        lm=this.lm,
        task_dict={task.key: task.task},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=this.settings.confirm_unsafe_code,
    )
    return rows.scored(task, result["samples"][task.key])


def record_failure(this: Run, arm: Arm | None, task: str | None, error: Exception, seed: int | None = None) -> None:
    message = f"{type(error).__name__}: {error}"
    this.directory.append(
        "failures",
        {
            "arm": arm.name if arm else None,
            "seed": seed,
            "task": task,
            "error": message,
            "traceback": "".join(traceback.format_exception(error)),
        },
    )
    where = " · ".join(part for part in (arm.name if arm else None, task) if part)
    this.progress.say(f"failed: {where}: {message.splitlines()[0][:300]}")
