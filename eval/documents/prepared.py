"""A prepared task: an lm-eval task with its requests, built once and handed to every arm.

So all arms score the same documents by construction; hashes of prompt and answers are kept to prove it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sa_eval.lm.stock import Instance, Task
from sa_eval.records.types import TaskRow, task_key
from sa_eval.settings.config import Settings

SPARSE_PHASE = {
    "generate_until": "prefill sparse, decode as set",
    "multiple_choice": "prefill only",
    "loglikelihood": "prefill only",
    "loglikelihood_rolling": "prefill only",
}


@dataclass
class PreparedTask:
    """One task at one length with its documents; `length` is None where the task brings its own."""

    name: str
    length: int | None
    family: str
    output: str  # lm-eval's request type
    task: Task
    hashes: list[str] = field(default_factory=list)  # by document index
    prompt_tokens: list[int] = field(default_factory=list)  # by document index, longest request of the document
    depths: list[float | None] = field(default_factory=list)
    score_metric: str | None = None  # None: chosen from the first results
    pool: str | None = None  # tasks of one pool count as one: all their documents weigh alike

    @property
    def key(self) -> str:
        return task_key(self.name, self.length)

    @property
    def num_documents(self) -> int:
        return len(self.hashes)

    def row(self) -> TaskRow:
        """The task as the manifest holds it."""
        return TaskRow(
            name=self.name,
            length=self.length,
            family=self.family,
            output=self.output,
            phase=SPARSE_PHASE.get(self.output, "prefill only"),
            num_fewshot=self.task.get_config("num_fewshot") or 0,
            pool=self.pool,
            documents=self.num_documents,
            median_prompt_tokens=int(statistics.median(self.prompt_tokens)),
            hashes=self.hashes,
        )


def build_requests(prepared: PreparedTask, lm: Any, settings: Settings) -> PreparedTask:
    """Build the task's requests, and fill in what is kept of each document."""
    task = prepared.task
    limit = None if settings.num_samples == "all" else settings.num_samples
    task.set_fewshot_seed(settings.doc_seed)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    for requests in requests_by_document(task):
        prepared.hashes.append(document_hash(requests, task.doc_to_target(requests[0].doc)))
        prepared.prompt_tokens.append(max(_row_tokens(lm, request) for request in requests))
    if not prepared.depths:
        prepared.depths = [None] * len(prepared.hashes)
    return prepared


def requests_by_document(task: Any) -> list[list[Instance]]:
    """The requests of every document, by document index."""
    found: dict[int, list[Instance]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    return [found[index] for index in range(len(found))]


def document_hash(requests: Sequence[Instance], target: Any) -> str:
    """sha256 of everything the model reads and is scored on."""
    content = json.dumps(
        [[request.request_type, request.args] for request in requests] + [target],
        sort_keys=True,
        default=str,
        ensure_ascii=False,
    )
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _row_tokens(lm: Any, request: Instance) -> int:
    """Tokens of the prefill this request causes."""
    return len(lm.prompt_row(request))
