"""Owns lm-eval's own tasks: finding them by name, loading them, and choosing the number that scores a document."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from sa_eval import ruler
from sa_eval.config import Settings
from sa_eval.lm_tasks import PreparedTask, build_requests, offline_names, unknown_task

SCORE_METRICS = ("acc", "exact_match", "score", "acc_norm", "pass@1", "f1", "em")


@cache
def task_manager() -> TaskManager:
    """lm-eval's index of thousands of YAML files: seconds to build, so once."""
    return TaskManager()


def check_names(names: list[str]) -> None:
    """Refuse unknown names before anything is loaded."""
    for name in names:
        if name in ruler.OFFLINE or (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
            continue
        if name not in task_manager().all_tasks:
            raise unknown_task(name, [*task_manager().all_tasks, *offline_names(), "offline"])


def lengths_of(name: str, settings: Settings) -> tuple[int | None, ...]:
    """RULER's tasks are built for a length; all others bring their own."""
    return settings.lengths if ruler.is_ruler(name) else (None,)


def prepare(name: str, length: int | None, settings: Settings, lm: Any) -> list[PreparedTask]:
    """Load one task (or the leaves of a group) and build its requests."""
    if length is None:
        loaded = task_manager().load([name])["tasks"]
    else:
        loaded = {name: ruler.load(name, length, settings, lm.tokenizer)}
    return [_prepared(leaf, task, length, settings, lm) for leaf, task in loaded.items()]


def _prepared(name: str, task: Any, length: int | None, settings: Settings, lm: Any) -> PreparedTask:
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    prepared = PreparedTask(
        name,
        length,
        "lm-eval" if length is None else ruler.family(name),
        task.OUTPUT_TYPE,
        task,
        score_metric=None if length is None else str(length),
    )
    return build_requests(prepared, lm, settings)


def score_of(metrics: dict[str, float], preferred: str | None) -> tuple[str, float]:
    """The one number that counts for a document: the preferred metric, else the usual ones, else the first."""
    for name in (preferred, *SCORE_METRICS, *metrics):
        if name in metrics:
            return name, float(metrics[name])
    raise ValueError(
        "the task gives no number per document (a corpus metric like perplexity?), so it cannot be compared "
        "document by document"
    )
