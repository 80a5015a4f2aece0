"""The offline suite as lm-eval tasks: documents of one length, generated from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from sa_eval.documents.prepared import PreparedTask, build_requests
from sa_eval.lm.stock import Instance, Task
from sa_eval.records.types import task_key
from sa_eval.settings.config import Settings, SettingsError
from sa_eval.tasks import TASKS, document


class Doc(TypedDict):
    """A document as lm-eval holds it; `gold` numbers the right choice."""

    prompt: str
    answers: list[str]
    choices: list[str]
    gold: int
    depth: float | None


class OfflineLmTask(Task):
    """A generator of the offline suite as an lm-eval task: `num_samples` documents of one length."""

    VERSION = 1

    def __init__(self, offline_task: Any, length: int, documents: Sequence[Any]) -> None:
        self.offline_task = offline_task
        self.OUTPUT_TYPE = "generate_until" if offline_task.output == "generate" else "multiple_choice"
        self._documents: list[Doc] = [
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
                "task": task_key(offline_task.name, length),
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

    def test_docs(self) -> list[Doc]:
        return self._documents

    def doc_to_text(self, doc: Doc) -> str:
        return doc["prompt"]

    def doc_to_target(self, doc: Doc) -> str:
        return doc["choices"][doc["gold"]] if doc["choices"] else ", ".join(doc["answers"])

    def fewshot_context(self, doc: Doc, num_fewshot: int = 0, **kwargs: Any) -> str:
        return doc["prompt"]

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        metadata = kwargs["metadata"]
        if self.OUTPUT_TYPE == "generate_until":
            arguments = {"until": ["\n"], "max_gen_toks": self.offline_task.max_new_tokens, "do_sample": False}
            return [Instance("generate_until", doc, (ctx, arguments), 0, metadata)]
        return [
            Instance("loglikelihood", doc, (ctx, choice), idx, metadata) for idx, choice in enumerate(doc["choices"])
        ]

    def process_results(self, doc: Doc, results: list[Any]) -> dict[str, float]:
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


def prepare_offline(name: str, length: int, settings: Settings, lm: Any) -> PreparedTask:
    """Generate the documents of one offline task at one length and build their requests."""
    if not isinstance(settings.num_samples, int):
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
