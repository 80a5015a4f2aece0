"""Some documents of a prepared task, in the shape of a task that lm-eval's `evaluate` takes.

lm-eval's own `samples=` processes all documents again at every call. A subset holds the requests that were built once:
it answers building, iterating and aggregating itself and leaves everything else to the task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sa_eval.lm.stock import Instance


class TaskSubset:
    """What `evaluate` needs of a task, for these documents only; they keep their numbers, `key` names the task."""

    def __init__(self, task: Any, key: str, documents: Sequence[Sequence[Instance]]) -> None:
        self._task, self._key = task, key
        self._documents = documents
        self._instances: list[Instance] = []
        self.eval_docs = [requests[0].doc for requests in documents]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    @property
    def instances(self) -> list[Instance]:
        return self._instances

    @property
    def num_answers(self) -> int:
        """Answers the model has to give."""
        return sum(request.repeats or 1 for requests in self._documents for request in requests)

    def build_all_requests(self, **options: Any) -> None:
        """The requests, unanswered: another arm's answers must not be there."""
        self._instances = [
            replace(request, metadata=(self._key, request.doc_id, request.repeats), resps=[], filtered_resps={})
            for requests in self._documents
            for request in requests
        ]

    def doc_iterator(self, **options: Any) -> Iterator[tuple[int | None, Any]]:
        return ((requests[0].doc_id, requests[0].doc) for requests in self._documents)

    def apply_filters(self) -> Any:
        return type(self._task).apply_filters(self)

    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        """Of nothing: scores are kept by document, and a corpus metric of some of them may not even exist."""
        return defaultdict(lambda: lambda items: float("nan"))
