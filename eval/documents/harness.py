"""lm-eval's own tasks: finding them by name, loading them, and choosing the number that scores a document."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from sa_eval.documents import ruler
from sa_eval.documents.prepared import PreparedTask, build_requests
from sa_eval.records.types import task_key
from sa_eval.settings.config import Settings, SettingsError, nearest
from sa_eval.tasks import OFFLINE, TASKS


@cache
def task_manager() -> TaskManager:
    """lm-eval's index of thousands of YAML files: seconds to build, so once."""
    return TaskManager()


@dataclass(frozen=True)
class Wanted:
    """One task to be loaded: its lm-eval name (or file), its length, and the family it is reported in.

    Members of a group whose score lm-eval weighs by size (MMLU's 57 subjects) are pooled: together they count as much
    as any other task.
    """

    name: str
    length: int | None
    family: str
    pool: str | None = None

    @property
    def label(self) -> str:
        return task_key(self.name, self.length)


def check_names(names: list[str]) -> None:
    """Refuse unknown names before anything is loaded."""
    for name in names:
        if ruler.is_asked(name) or _is_file(name):
            continue
        if name not in task_manager().all_tasks:
            known = [*task_manager().all_tasks, *ruler.GROUPS, *TASKS, OFFLINE]
            raise SettingsError(f"task {name!r} is not known: {nearest(name, known)}")


def wanted(names: list[str], settings: Settings) -> list[Wanted]:
    """The leaves of everything asked for, each by itself, so that one whose data cannot be fetched costs no other.

    RULER's tasks are built for every length; all others bring their own. A group that is not RULER's is a family.
    """
    found: dict[tuple[str, int | None], Wanted] = {}
    for name in names:
        leaves = ruler.GROUPS.get(name) or _leaves(name)
        for leaf in leaves:
            for length in settings.lengths if ruler.is_ruler(leaf) else (None,):
                alone = leaf == name or len(leaves) == 1
                family = ruler.family(leaf) if ruler.is_ruler(leaf) else "lm-eval" if alone else name
                pool = name if family == name and _weighs_by_size(name) else None
                found.setdefault((leaf, length), Wanted(leaf, length, family, pool))
    return list(found.values())


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _weighs_by_size(group: str) -> bool:
    """Whether lm-eval's score of a group is the mean over its documents, not over its tasks."""
    rules = (task_manager().task_index[group].cfg or {}).get("aggregate_metric_list") or [{}]
    return bool(rules[0].get("weight_by_size"))


def _leaves(name: str) -> list[str]:
    """The tasks of a group or tag by name; a group whose members carry changes of their own is loaded as a whole."""
    entry = None if ruler.is_ruler(name) else task_manager().task_index.get(name)
    if entry is None or entry.kind not in (Kind.TAG, Kind.GROUP):
        return [name]
    members = sorted(entry.tags) if entry.kind is Kind.TAG else (entry.cfg or {}).get("task")
    known = task_manager().task_index
    if not isinstance(members, list) or any(not isinstance(name, str) or name not in known for name in members):
        return [name]
    return [leaf for member in members for leaf in _leaves(member)]


def prepare(wanted: Wanted, settings: Settings, lm: Any) -> list[PreparedTask]:
    """Load one task (or a group that cannot be taken apart) and build its requests."""
    if wanted.length is not None:
        loaded = {wanted.name: ruler.load(wanted.name, wanted.length, settings, lm.tokenizer)}
    else:
        _confirm_unsafe_code(wanted.name, settings)
        loaded = _load(wanted.name)
    return [_prepared(leaf, task, wanted, settings, lm) for leaf, task in loaded.items()]


def _load(name: str) -> Mapping[str, object]:
    """The tasks of a name.

    Raises:
        ValueError: an empty choice in the first document, whose choices' first letters lm-eval looks at.
    """
    try:
        return task_manager().load([name])["tasks"]
    except IndexError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        choices = frame.f_locals.get("check_choices", ())
        if "" not in choices:
            raise
        raise ValueError(
            f"document 0 of {name}: choice {choices.index('')} ('') has no text, so there is nothing to score: mend "
            "the data or the task's template, or leave the document out"
        ) from error


def _confirm_unsafe_code(name: str, settings: Settings) -> None:
    """Refuse a task that runs what the model writes unless that is wanted; its scorer looks into the environment.

    Raises:
        SettingsError: before the task's own code is imported, which would ask for the same less clearly.
    """
    entry = task_manager().task_index.get(name)
    if settings.confirm_unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    elif entry is not None and (entry.cfg or {}).get("unsafe_code"):
        raise _unconfirmed(name)


def _unconfirmed(name: str) -> SettingsError:
    return SettingsError(
        f"{name} runs programs that the model writes, on this machine: set confirm_unsafe_code (--confirm-unsafe-code) "
        "where that is safe, or leave the task out"
    )


def _prepared(name: str, task: Any, wanted: Wanted, settings: Settings, lm: Any) -> PreparedTask:
    if getattr(task, "UNSAFE_CODE", False) and not settings.confirm_unsafe_code:  # a file's, or a group's member
        raise _unconfirmed(name)
    _refuse_lower_is_better(name, task)
    _set_fewshot(task, settings.num_fewshot)
    metric = None if wanted.length is None else str(wanted.length)
    prepared = PreparedTask(
        name, wanted.length, wanted.family, task.OUTPUT_TYPE, task, score_metric=metric, pool=wanted.pool
    )
    return build_requests(prepared, lm, settings)


def _set_fewshot(task: Any, asked: int | None) -> None:
    """As lm-eval does it: a task that says 0 keeps it (its prompt has no room for examples)."""
    own = task.get_config("num_fewshot")
    if own is None or (asked is not None and own != 0):
        task.set_config("num_fewshot", asked or 0)


def _refuse_lower_is_better(name: str, task: Any) -> None:
    better = task.higher_is_better()
    if better and not any(better.values()):
        raise ValueError(
            f"{name} measures {', '.join(better)}, where less is better: only shares of right answers (0 to 1) are "
            "compared here"
        )
