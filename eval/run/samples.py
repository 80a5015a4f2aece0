"""Owns the per-document rows: what lm-eval's samples become, what a failed document leaves instead, what was asked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

HEAD_CHARACTERS, TAIL_CHARACTERS = 240, 480


def scored(task: Any, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per-document records; the first filter's metrics give the score, other filters' are kept beside them."""
    from sa_eval.documents.harness import score_of

    by_document: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    rows, better = [], task.task.higher_is_better()
    for index, (first, *others) in sorted(by_document.items()):
        metrics = _numbers(first, "")
        metric, score = score_of(metrics, task.score_metric, better)
        for other in others:
            metrics.update(_numbers(other, f",{other['filter']}"))
        rows.append(
            {
                "index": index,
                "hash": task.hashes[index],
                "score": score,
                "metric": metric,
                "metrics": {name: value for name, value in metrics.items() if value != -1 and math.isfinite(value)},
                "output": _output(first),
                "expected": str(first["target"]),
                "depth": task.depths[index],
                "prompt_tokens": task.prompt_tokens[index],
            }
        )
    return rows


def failed(task: Any, indices: Iterable[int], error: str) -> list[dict[str, Any]]:
    """A failed document counts as wrong and says why; it is never dropped."""
    return [
        {
            "index": index,
            "hash": task.hashes[index],
            "score": 0.0,
            "metric": None,
            "metrics": {},
            "output": None,
            "expected": None,
            "depth": task.depths[index],
            "prompt_tokens": task.prompt_tokens[index],
            "error": error,
        }
        for index in indices
    ]


def documents(task: Any) -> list[dict[str, Any]]:
    """What every document asks, once per run: both ends of its longest prompt, and the answer that is expected."""
    from sa_eval.documents.prepared import requests_by_document

    rows = []
    for index, asked in enumerate(requests_by_document(task.task)):
        prompt = max((str(request.args[0]) for request in asked), key=len)
        rows.append(
            {
                "task": task.key,
                "index": index,
                "hash": task.hashes[index],
                "prompt_tokens": task.prompt_tokens[index],
                "depth": task.depths[index],
                "expected": str(task.task.doc_to_target(asked[0].doc)),
                "head": prompt[:HEAD_CHARACTERS],
                "tail": prompt[-TAIL_CHARACTERS:],
            }
        )
    return rows


def _numbers(sample: dict[str, Any], suffix: str) -> dict[str, float]:
    return {
        name + suffix: float(sample[name]) for name in sample["metrics"] if isinstance(sample.get(name), (int, float))
    }


def _output(sample: dict[str, Any]) -> Any:
    """The generated text, or the log-likelihood of every choice."""
    answers = [response[0] for response in sample["resps"]]
    if len(answers) == 1:
        return answers[0]
    return [round(answer[0], 4) if isinstance(answer, tuple) else answer for answer in answers]
