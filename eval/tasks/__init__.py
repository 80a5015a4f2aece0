"""The offline suite: nine tasks in four families, made from a seed, with no download and for any tokenizer."""

from __future__ import annotations

import hashlib
import random

from . import aggregation, retrieval, tracing
from .base import CountTokens, Document, OfflineTask, Question, Request, Scene, TooShort
from .cloze import cloze

__all__ = ["OFFLINE", "TASKS", "Document", "OfflineTask", "Question", "Scene", "document", "scene"]

_ALL = (
    OfflineTask("needle_single", "retrieval", "generate", retrieval.SHORT_ANSWER, retrieval.needle_single),
    OfflineTask("needle_multikey", "retrieval", "generate", retrieval.SHORT_ANSWER, retrieval.needle_multikey),
    OfflineTask("needle_multivalue", "retrieval", "generate", retrieval.TWO_ANSWERS, retrieval.needle_multivalue),
    OfflineTask("needle_multiquery", "retrieval", "generate", retrieval.THREE_ANSWERS, retrieval.needle_multiquery),
    OfflineTask("kv_retrieval", "retrieval", "generate", retrieval.SHORT_ANSWER, retrieval.kv_retrieval),
    OfflineTask("frequent_words", "aggregation", "generate", aggregation.LIST_ANSWER, aggregation.frequent_words),
    OfflineTask("majority_topic", "aggregation", "choice", 1, aggregation.majority_topic),
    OfflineTask("variable_tracking", "tracing", "generate", tracing.CHAIN_ANSWER, tracing.variable_tracking),
    OfflineTask("cloze", "cloze", "cloze", 1, cloze),
)
TASKS: dict[str, OfflineTask] = {task.name: task for task in _ALL}
OFFLINE = "offline"  # stands for all of them under --tasks
_LONGEST_SEARCH = 1 << 16


def document(task: str, count_tokens: CountTokens, length: int, seed: int, index: int, split: str = "eval") -> Document:
    """Document `index` of a task at a length; the same arguments give the same document, whatever else ran."""
    return scene(task, count_tokens, length, seed, index, split).document()


def scene(task: str, count_tokens: CountTokens, length: int, seed: int, index: int, split: str = "eval") -> Scene:
    """The scene a document is cut from: the same context, with every question there is about it."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the offline suite has {', '.join(TASKS)}")
    try:
        return _scene(task, count_tokens, length, seed, index, split)
    except TooShort:
        least = _smallest(task, count_tokens, length, seed, index, split)
        found = f"{task} does not fit into {length} tokens with this tokenizer"
        raise ValueError(f"{found}; the smallest workable length is {least}") from None


def _scene(task: str, count_tokens: CountTokens, length: int, seed: int, index: int, split: str) -> Scene:
    name = f"{task}|{length}|{seed}|{index}|{split}"
    rng = random.Random(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"))
    return TASKS[task].scene(Request(rng, count_tokens, length, split))


def _smallest(task: str, count_tokens: CountTokens, length: int, seed: int, index: int, split: str) -> int:
    for longer in range(length + 1, _LONGEST_SEARCH):
        try:
            _scene(task, count_tokens, longer, seed, index, split)
        except TooShort:
            continue
        return longer
    raise ValueError(f"{task} fits into no length up to {_LONGEST_SEARCH} with this tokenizer")
