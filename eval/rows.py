"""Owns the per-document record: what lm-eval's samples become, and what a failed task leaves instead."""

from __future__ import annotations

from typing import Any


def scored(task: Any, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per-document records; the first filter's metrics give the score, other filters' are kept beside them."""
    from sa_eval.lm_eval_tasks import score_of

    by_document: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    rows = []
    for index, doc_id in enumerate(sorted(by_document)):
        first, *others = by_document[doc_id]
        metrics = _numbers(first, "")
        metric, score = score_of(metrics, task.score_metric)
        for other in others:
            metrics.update(_numbers(other, f",{other['filter']}"))
        rows.append(
            {
                "index": index,
                "hash": task.hashes[index],
                "score": score,
                "metric": metric,
                "metrics": {name: value for name, value in metrics.items() if value != -1},
                "output": _output(first),
                "expected": str(first["target"]),
                "depth": task.depths[index],
                "prompt_tokens": task.prompt_tokens[index],
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


def failed(task: Any, error: Exception) -> list[dict[str, Any]]:
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
            "error": f"{type(error).__name__}: {error}",
        }
        for index in range(task.num_documents)
    ]
