"""The suite's data types: a document as the harness reads it, and the scene it is cut from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

CountTokens = Callable[[str], int]


class TooShort(ValueError):
    """The length cannot hold this document; `needed` is a length that may."""

    def __init__(self, needed: int):
        super().__init__(f"needs at least {needed} tokens")
        self.needed = needed


@dataclass(frozen=True)
class Document:
    """One scored prompt. Which of the fields after `prompt` are set depends on the task's output."""

    prompt: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    gold: int = -1
    depth: float | None = None


@dataclass(frozen=True)
class Question:
    """One question about a scene's context. `target` is the ideal continuation of `tail`, with its leading space."""

    tail: str
    target: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    gold: int = -1
    evidence: str = ""


@dataclass(frozen=True)
class Scene:
    """A context with questions about it. A document asks the first one; training may ask all of them."""

    context: str
    questions: tuple[Question, ...]

    def document(self) -> Document:
        question = self.questions[0]
        depth = None
        if question.evidence:
            depth = self.context.index(question.evidence) / max(1, len(self.context) - len(question.evidence))
        return Document(self.context + question.tail, question.answers, question.choices, question.gold, depth)


@dataclass(frozen=True)
class Request:
    """What a scene is made from. `budget` covers the prompt and its continuation, in tokens."""

    rng: random.Random
    count: CountTokens
    budget: int
    split: str = "eval"


@dataclass(frozen=True)
class OfflineTask:
    """One task of the suite; `output` is "generate", "choice" or "cloze"."""

    name: str
    family: str
    output: str
    max_new_tokens: int
    scene: Callable[[Request], Scene]

    def build(self, rng: random.Random, count_tokens: CountTokens, budget: int, split: str = "eval") -> Document:
        """One document whose prompt and continuation together take at most `budget` tokens."""
        return self.scene(Request(rng, count_tokens, budget, split)).document()
