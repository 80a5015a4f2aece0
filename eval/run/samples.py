"""The per-document rows: what lm-eval's samples become, what a failed document leaves instead, what was asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sa_eval.documents.prepared import requests_by_document
from sa_eval.documents.score import score_of
from sa_eval.records.types import Prompt, Record
from sa_eval.run.chunks import Chunk

Sample = dict[str, Any]  # a row of lm-eval's own log
HEAD_CHARACTERS, TAIL_CHARACTERS = 240, 480


def scored(chunk: Chunk, samples: list[Sample], cut: Mapping[tuple[str, int], bool]) -> list[Record]:
    """Per-document records; the first filter's metrics give the score, other filters' are kept beside them.

    Args:
        cut: (task, document) -> whether the limit of new tokens cut an answer, of those that were generated.
    """
    by_document: dict[int, list[Sample]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    task = chunk.task
    rows, better = [], task.task.higher_is_better()
    for index, (first, *others) in sorted(by_document.items()):
        metrics = _numbers(first, "")
        metric, score = score_of(metrics, task.score_metric, better)
        for other in others:
            metrics.update(_numbers(other, f",{other['filter']}"))
        rows.append(
            _record(
                chunk,
                index,
                score=score,
                metric=metric,
                metrics={name: value for name, value in metrics.items() if value != -1 and math.isfinite(value)},
                output=_output(first),
                expected=str(first["target"]),
                cut=cut.get((task.key, index)),
            )
        )
    return rows


def failed(chunk: Chunk, indices: Iterable[int], error: str) -> list[Record]:
    """A failed document counts as wrong and says why; it is never dropped."""
    return [_record(chunk, index, score=0.0, error=error) for index in indices]


def _record(chunk: Chunk, index: int, **answer: Any) -> Record:
    task = chunk.task
    return Record(
        arm=chunk.arm.name,
        seed=chunk.seed,
        task=task.key,
        name=task.name,
        length=task.length,
        index=index,
        hash=task.hashes[index],
        depth=task.depths[index],
        prompt_tokens=task.prompt_tokens[index],
        **answer,
    )


def prompts(task: Any) -> list[Prompt]:
    """What every document asks, once per run: both ends of its longest prompt, and the answer that is expected."""
    rows = []
    for index, asked in enumerate(requests_by_document(task.task)):
        prompt = max((str(request.args[0]) for request in asked), key=len)
        rows.append(
            Prompt(
                task=task.key,
                index=index,
                hash=task.hashes[index],
                prompt_tokens=task.prompt_tokens[index],
                depth=task.depths[index],
                expected=str(task.task.doc_to_target(asked[0].doc)),
                head=prompt[:HEAD_CHARACTERS],
                tail=prompt[-TAIL_CHARACTERS:],
            )
        )
    return rows


def _numbers(sample: Sample, suffix: str) -> dict[str, float]:
    return {
        name + suffix: float(sample[name]) for name in sample["metrics"] if isinstance(sample.get(name), (int, float))
    }


def _output(sample: Sample) -> Any:
    """The generated text, or the log-likelihood of every choice."""
    answers = [response[0] for response in sample["resps"]]
    if len(answers) == 1:
        return answers[0]
    return [round(answer[0], 4) if isinstance(answer, tuple) else answer for answer in answers]
