"""The units of work: which documents run together, what is still missing, and who does what.

A chunk is consecutive documents of one task under one arm and seed. Where chunks begin and end depends on the task's
documents and the batch size alone, so the batches a document is in are the same in any number of processes and in any
session. Imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

TOKENS_PER_ROW = 4096  # a killed process loses about this much work per row of a batch
MOST_BATCHES = 32


@dataclass(frozen=True)
class Chunk:
    """Documents `indices` of a prepared task under one arm and seed."""

    arm: Any
    seed: int
    task: Any
    indices: tuple[int, ...]
    batch_size: int


def documents_per_chunk(tokens: int, batch_size: int) -> int:
    """Whole batches: one where prompts are long, more where they are short and need company of their own length."""
    batches = TOKENS_PER_ROW // max(1, tokens)
    return batch_size * max(1, min(MOST_BATCHES, batches))


def chunks_of(arms: Iterable[Any], tasks: Iterable[Any], batch_size: Callable[[int], int]) -> list[Chunk]:
    """Every chunk of a run, arm by arm and seed by seed.

    Args:
        batch_size: documents per forward pass, where prompts have about so many tokens.
    """
    tasks = list(tasks)
    found = []
    for arm in arms:
        for seed in arm.seeds:
            for task in tasks:
                tokens = int(statistics.median(task.prompt_tokens))
                rows = batch_size(tokens)
                step = documents_per_chunk(tokens, rows)
                for start in range(0, task.num_documents, step):
                    indices = tuple(range(start, min(start + step, task.num_documents)))
                    found.append(Chunk(arm, seed, task, indices, rows))
    return found


def missing(chunks: Iterable[Chunk], done: Collection[tuple[str, int, str, int]]) -> list[Chunk]:
    """What is left of the chunks when documents `done` (arm, seed, task, index) are never done again."""
    found = []
    for chunk in chunks:
        about = (chunk.arm.name, chunk.seed, chunk.task.key)
        left = tuple(index for index in chunk.indices if (*about, index) not in done)
        if left:
            found.append(replace(chunk, indices=left))
    return found
