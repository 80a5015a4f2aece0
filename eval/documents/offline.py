"""Owns the documents of a run: our offline tasks and any lm-eval task, as lm-eval Task objects built exactly once.

One task instance per (task, length). Requests are built once and handed to every arm, so all arms score the same
documents by construction; hashes of prompt and answers are kept to prove it.
"""

# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false
# lm-eval's classes declare too little for a checker.

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from sa_eval.documents.requests import requests_by_document
from sa_eval.settings.config import Settings, SettingsError, nearest

OFFLINE = "offline"
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
        return self.name if self.length is None else f"{self.name}@{self.length}"

    @property
    def num_documents(self) -> int:
        return len(self.hashes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "length": self.length,
            "family": self.family,
            "output": self.output,
            "phase": SPARSE_PHASE.get(self.output, "prefill only"),
            "num_fewshot": self.task.get_config("num_fewshot") or 0,
            "pool": self.pool,
            "documents": self.num_documents,
            "median_prompt_tokens": int(statistics.median(self.prompt_tokens)),
            "hashes": self.hashes,
        }


class OfflineLmTask(Task):
    """A generator of the offline suite as an lm-eval task: `num_samples` documents of one length."""

    VERSION = 1

    def __init__(self, offline_task: Any, length: int, documents: Sequence[Any]) -> None:
        self.offline_task = offline_task
        self.OUTPUT_TYPE = "generate_until" if offline_task.output == "generate" else "multiple_choice"
        self._documents = [
            {
                "prompt": document.prompt,
                "answers": list(document.answers),
                "choices": list(document.choices),
                "gold": document.gold,
                "depth": document.depth,
            }
            for document in documents
        ]
        super().__init__(
            config={
                "task": f"{offline_task.name}@{length}",
                "num_fewshot": 0,
                "repeats": 1,
                "output_type": self.OUTPUT_TYPE,
                "metadata": {"version": self.VERSION},
            }
        )

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to fetch: the documents are generated."""

    def has_training_docs(self) -> bool:
        return False

    has_validation_docs = has_training_docs

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        return self._documents

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return doc["prompt"]

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return doc["choices"][doc["gold"]] if doc["choices"] else ", ".join(doc["answers"])

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int = 0, **kwargs: Any) -> str:
        return doc["prompt"]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        metadata = kwargs["metadata"]
        if self.OUTPUT_TYPE == "generate_until":
            arguments = {"until": ["\n"], "max_gen_toks": self.offline_task.max_new_tokens, "do_sample": False}
            return [Instance("generate_until", doc, (ctx, arguments), 0, metadata)]
        return [
            Instance("loglikelihood", doc, (ctx, choice), idx, metadata) for idx, choice in enumerate(doc["choices"])
        ]

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        if self.offline_task.output == "generate":
            text = results[0].lower()
            return {"score": sum(answer.lower() in text for answer in doc["answers"]) / len(doc["answers"])}
        if self.offline_task.output == "cloze":
            return {"score": float(results[0][1])}
        likelihoods = [likelihood for likelihood, _ in results]
        return {"score": float(likelihoods.index(max(likelihoods)) == doc["gold"])}

    def aggregation(self) -> dict[str, Callable]:
        return {"score": lambda items: sum(items) / len(items)}

    def higher_is_better(self) -> dict[str, bool]:
        return {"score": True}


def offline_names() -> list[str]:
    from sa_eval.tasks import TASKS

    return list(TASKS)


def split_names(settings: Settings) -> tuple[list[str], list[str]]:
    """The offline tasks and the lm-eval tasks that were asked for, in order and without repeats."""
    offline, other = [], []
    for name in settings.tasks:
        for found in offline_names() if name == OFFLINE else [name]:
            group = offline if found in offline_names() else other
            if found not in group:
                group.append(found)
    return offline, other


def prepare_offline(name: str, length: int, settings: Settings, lm: Any) -> PreparedTask:
    """Generate the documents of one offline task at one length and build their requests."""
    from sa_eval.tasks import TASKS, document

    if settings.num_samples == "all":
        raise SettingsError(f"num_samples 'all' has no meaning for {name}: its documents are generated; give a number")

    def count_tokens(text: str) -> int:
        return len(lm.tok_encode(text))

    documents = [
        document(name, count_tokens, length, settings.doc_seed, index) for index in range(settings.num_samples)
    ]
    task = OfflineLmTask(TASKS[name], length, documents)
    prepared = PreparedTask(
        name,
        length,
        TASKS[name].family,
        task.OUTPUT_TYPE,
        task,
        depths=[document.depth for document in documents],
        score_metric="score",
    )
    return build_requests(prepared, lm, settings)


def build_requests(prepared: PreparedTask, lm: Any, settings: Settings) -> PreparedTask:
    """Build the requests once; every arm is asked these (task_part.py)."""
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
    if request.request_type == "generate_until":
        return len(lm.encoded_prompt(request))
    if request.request_type == "loglikelihood":
        context, continuation = lm.encoded_pair(request)
        return len(context) + len(continuation) - 1
    return len(lm.tok_encode(request.args[0]))


def unknown_task(name: str, known: Sequence[str]) -> SettingsError:
    return SettingsError(f"task {name!r} is not known: {nearest(name, known)}")
