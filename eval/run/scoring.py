"""Scoring a chunk: lm-eval asks and scores, memory that runs out makes batches smaller, failures stay with their
documents. Writes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from sa_eval.documents.prepared import requests_by_document
from sa_eval.documents.subset import TaskSubset
from sa_eval.records.types import Record
from sa_eval.run import samples
from sa_eval.run.chunks import Chunk
from sa_eval.run.trouble import DocumentsFailed, Trouble, trouble_of


@dataclass
class Scored:
    """What came of a chunk."""

    records: list[Record] = field(default_factory=list)
    failures: list[DocumentsFailed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Scorer:
    """Asks one model.

    Args:
        unsafe_code: tasks that run the code a model writes may do so.
    """

    def __init__(self, lm: Any, bar: Any, *, unsafe_code: bool = False) -> None:
        self._lm, self._bar, self._unsafe_code = lm, bar, unsafe_code
        self._requests: dict[str, list[list[Any]]] = {}  # by task

    def score(self, chunk: Chunk) -> Scored:
        """Records of all documents of the chunk; those of documents that failed hold the error and score 0.

        A chunk that fails is asked again document by document, so that only those that fail themselves count as wrong.
        """
        found = Scored()
        trouble = self._tried(chunk, chunk.indices, found)
        if trouble is None:
            return found
        by_error: dict[str, DocumentsFailed] = {}
        for index in chunk.indices:
            if len(chunk.indices) > 1:
                trouble = self._tried(chunk, [index], found)
            if trouble is not None:
                found.records += samples.failed(chunk, [index], trouble.message)
                self._bar.advance(1)
                by_error.setdefault(trouble.message, DocumentsFailed(trouble, [])).documents.append(index)
        found.failures += by_error.values()
        return found

    def _tried(self, chunk: Chunk, indices: Sequence[int], found: Scored) -> Trouble | None:
        """Records of these documents into `found`, or why there are none (as text: an error's frames hold tensors)."""
        try:
            found.records += self._with_less_memory(chunk, indices, found)
            return None
        except Exception as error:
            trouble, memory = trouble_of(error), out_of_memory(error)
        if memory:
            _free_memory()
        return trouble

    def _with_less_memory(self, chunk: Chunk, indices: Sequence[int], found: Scored) -> list[Record]:
        """Half the batch, and half of that, while memory runs out."""
        batch_size = chunk.batch_size
        while True:
            try:
                with self._lm.batches_of(batch_size):
                    return self._asked(chunk, indices)
            except Exception as error:
                if batch_size == 1 or not out_of_memory(error):
                    raise
            _free_memory()  # outside the handler: the error's frames hold tensors
            batch_size //= 2
            found.notes.append(f"{chunk.task.key}: out of memory, so batches of {batch_size}")

    def _asked(self, chunk: Chunk, indices: Sequence[int]) -> list[Record]:
        from lm_eval.evaluator import evaluate

        task = chunk.task
        requests = self._requests.get(task.key) or requests_by_document(task.task)
        self._requests[task.key] = requests
        subset = TaskSubset(task.task, task.key, [requests[index] for index in indices])
        _seed(task, indices[0])
        self._lm.cut_answers.clear()
        with self._counted(subset.num_answers, len(indices)):
            asked: Any = {task.key: subset}  # a part of a task, which lm-eval's types do not know
            result: Any = evaluate(
                lm=self._lm,
                task_dict=asked,
                bootstrap_iters=0,
                log_samples=True,
                confirm_run_unsafe_code=self._unsafe_code,
            )
        return samples.scored(chunk, result["samples"][task.key], self._lm.cut_answers)

    @contextlib.contextmanager
    def _counted(self, answers: int, documents: int) -> Iterator[None]:
        """Move the bar by documents while answers come in; an attempt that fails takes its steps back."""
        shown = answered = 0

        def advance(count: int) -> None:
            nonlocal shown, answered
            answered += count
            now = min(documents, answered * documents // answers)
            self._bar.advance(now - shown)
            shown = now

        self._lm.on_progress(advance)
        try:
            yield
            self._bar.advance(documents - shown)
        except BaseException:
            self._bar.advance(-shown)
            raise
        finally:
            self._lm.on_progress(None)


def out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help."""
    known = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _seed(task: Any, index: int) -> None:
    """Tasks that sample draw the same numbers for a document under every arm, in every process and session."""
    digest = hashlib.sha256(f"{task.key}|{task.hashes[index]}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
