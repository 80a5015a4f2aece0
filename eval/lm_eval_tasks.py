"""Owns lm-eval's own tasks: finding, loading and seeding them; RULER with one length per task instance.

RULER draws from the global generators, builds 500 documents whatever the limit and loads its tokenizer with
trust_remote_code=True; here it is seeded per (task, length), and gets the tokenizer that is already loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from lm_eval.tasks import TaskManager

from sa_eval.config import Settings
from sa_eval.lm_tasks import PreparedTask, build_requests, offline_names, unknown_task

# RULER's tasks in the offline suite's families (SPEC: variants win in different ones).
RULER_FAMILIES = {"niah": "retrieval", "ruler_vt": "tracing", "ruler_cwe": "aggregation", "ruler_fwe": "aggregation",
                  "ruler_qa": "retrieval"}
SCORE_METRICS = ("acc", "exact_match", "score", "acc_norm", "pass@1", "f1", "em")


def check_names(names: list[str]) -> TaskManager | None:
    """Refuse unknown names before anything is loaded."""
    if not names:
        return None
    manager = TaskManager()
    known = [*manager.all_tasks, *offline_names(), "offline"]
    for name in names:
        if name not in manager.all_tasks:
            raise unknown_task(name, known)
    return manager


def is_ruler(name: str, manager: TaskManager) -> bool:
    entry = manager.task_index.get(name)
    return entry is not None and "/ruler/" in str(entry.yaml_path).replace("\\", "/") and name != "ruler"


def prepare(name: str, length: int | None, settings: Settings, lm: Any) -> list[PreparedTask]:
    """Load one task (or the leaves of a group), seeded, and build its requests."""
    metadata = {} if length is None else {"max_seq_lengths": [length], "tokenizer": f"the loaded one, for {name}@{length}"}
    with seeded(name, length, settings.doc_seed), loaded_tokenizer(lm.tokenizer if length is not None else None):
        loaded = TaskManager(metadata=metadata).load([name])["tasks"]
        prepared = []
        for leaf, task in loaded.items():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            one = PreparedTask(leaf, length, family_of(leaf), task.OUTPUT_TYPE, task,
                               score_metric=None if length is None else str(length))
            prepared.append(build_requests(one, lm, settings))
    return prepared


def family_of(name: str) -> str:
    return next((family for start, family in RULER_FAMILIES.items() if name.startswith(start)), "lm-eval")


@contextlib.contextmanager
def seeded(name: str, length: int | None, doc_seed: int) -> Iterator[None]:
    """The same documents whatever ran before: seed the global generators, and put their states back."""
    digest = hashlib.sha256(f"{name}|{length}|{doc_seed}".encode()).digest()
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(int.from_bytes(digest[:8], "big"))
    np.random.seed(int.from_bytes(digest[:4], "big"))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


@contextlib.contextmanager
def loaded_tokenizer(tokenizer: Any | None) -> Iterator[None]:
    """Whatever tokenizer a task asks transformers for inside, it gets the loaded one and no remote code runs."""
    if tokenizer is None:
        yield
        return
    from transformers import AutoTokenizer

    with mock.patch.object(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: tokenizer):
        yield


def score_of(metrics: dict[str, float], preferred: str | None) -> tuple[str, float]:
    """The one number that counts for a document: the preferred metric, else the usual ones, else the first."""
    for name in (preferred, *SCORE_METRICS, *metrics):
        if name in metrics:
            return name, float(metrics[name])
    raise ValueError("the task gave no number per document (a corpus metric like perplexity?): it cannot be compared by document")
