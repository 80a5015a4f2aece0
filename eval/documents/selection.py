"""The documents step of a run: which tasks were asked for, each built once; those that fail are reported.

Imports lm-eval, which takes seconds, only where tasks are built or looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sa_eval.documents import ruler
from sa_eval.progress import Progress
from sa_eval.records.types import task_key
from sa_eval.settings.config import Settings, SettingsError
from sa_eval.tasks import OFFLINE, TASKS

Build = Callable[[], list[Any]]


def split_names(settings: Settings) -> tuple[list[str], list[str]]:
    """The offline tasks and the lm-eval tasks that were asked for, in order and without repeats."""
    offline: list[str] = []
    other: list[str] = []
    for name in settings.tasks:
        for found in TASKS if name == OFFLINE else [name]:
            group = offline if found in TASKS else other
            if found not in group:
                group.append(found)
    return offline, other


def check_tasks(settings: Settings) -> None:
    """Refuse unknown task names, and generated ones without a number, before anything is loaded or written."""
    offline, other = split_names(settings)
    if offline and settings.num_samples == "all":
        raise SettingsError(f"num_samples 'all' has no end for {offline[0]}, which is generated: give a number")
    if other:
        from sa_eval.documents import harness

        harness.check_names(other)


def check_lengths(settings: Settings, limit: int | None) -> None:
    """Refuse lengths beyond the model's positions before documents of that length are made."""
    offline, other = split_names(settings)
    longest = max(settings.lengths)
    if limit is not None and longest > limit and (offline or any(map(ruler.is_asked, other))):
        raise SettingsError(
            f"length {longest} is longer than the model's {limit} positions: nothing is truncated here, ask for "
            "shorter lengths"
        )


def all_tasks(settings: Settings, lm: Any, progress: Progress, failed: Callable[[str, Exception], None]) -> list[Any]:
    """Every task that can be built, each with its documents; the others are handed to `failed` and left out."""
    tasks: list[Any] = []
    wanted = [*_offline(settings, lm), *_lm_eval(settings, lm)]
    with progress.bar(len(wanted), "documents", unit="task") as bar:
        for label, build in wanted:
            bar.describe(f"documents · {label}", now=True)
            try:
                with progress.quiet():
                    tasks += _unlike(build(), tasks)
            except Exception as error:
                failed(label, error)
            bar.advance(1)
    return tasks


def _unlike(built: list[Any], before: list[Any]) -> list[Any]:
    """The new tasks; records are told apart by the task's name, so it cannot be there twice."""
    taken = {task.key for task in before}
    for task in built:
        if task.key in taken:
            raise ValueError(f"another task is called {task.key} already: rename one of them")
    return built


def _offline(settings: Settings, lm: Any) -> list[tuple[str, Build]]:
    from sa_eval.documents import offline

    def build(name: str, length: int) -> Build:
        return lambda: [offline.prepare_offline(name, length, settings, lm)]

    names, _ = split_names(settings)
    return [(task_key(name, length), build(name, length)) for length in settings.lengths for name in names]


def _lm_eval(settings: Settings, lm: Any) -> list[tuple[str, Build]]:
    _, names = split_names(settings)
    if not names:
        return []
    from sa_eval.documents import harness

    def build(wanted: harness.Wanted) -> Build:
        return lambda: harness.prepare(wanted, settings, lm)

    return [(wanted.label, build(wanted)) for wanted in harness.wanted(names, settings)]
