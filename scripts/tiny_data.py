"""Owns training rows: scenes of the train split with many questions each, and random sequences to be copied."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from sa_eval.tasks import TASKS
from sa_eval.tasks.base import Request, Scene, TooShort
from tiny_tokenizer import END, build_tokenizer, word_ids
from transformers import PreTrainedTokenizerFast

COPY = "copy"
_SINGLE = ("needle_single", "frequent_words", "majority_topic")  # tasks with one question a scene


@dataclass(frozen=True)
class Batch:
    """Rows of one length, and the places to be predicted: `ids[row, column]` from everything before it."""

    ids: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    weight: torch.Tensor
    question: torch.Tensor  # number of the question a place belongs to, -1 where it does not count for accuracy
    either: torch.Tensor  # a second id that is right as well, or the id itself
    tasks: list[str]  # by question


@dataclass(frozen=True)
class Recipe:
    """What a batch is drawn from; equal recipes give equal batches."""

    seed: int
    step: int
    length: int
    rows: int
    copy_share: float
    weights: tuple[tuple[str, float], ...]
    split: str = "train"
    most_questions: int = 32


class Maker:
    """Makes batches in a process of its own; tokenization is remembered piece by piece."""

    def __init__(self, folder: str) -> None:
        saved = Path(folder, "tokenizer.json").exists()  # a resumed run keeps its ids
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if saved else build_tokenizer()
        self.words = word_ids(self.tokenizer)
        self.end = self.tokenizer.convert_tokens_to_ids(END)
        self._counts: dict[str, int] = {}
        self._pieces: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """Tokens of a text; sentences recur, so the answer is remembered."""
        found = self._counts.get(text)
        if found is None:
            found = len(self.encode(text))
            if len(text) < 200 and len(self._counts) < 400_000:
                self._counts[text] = found
        return found

    def batch(self, recipe: Recipe) -> Batch:
        rng = random.Random(f"{recipe.seed}|{recipe.step}|{recipe.length}|{recipe.split}")
        names, weights = zip(*recipe.weights, strict=True)
        rows, places, tasks = [], [], []
        for row in range(recipe.rows):
            name = COPY if rng.random() < recipe.copy_share else rng.choices(names, weights)[0]
            ids, found = self._row(rng, name, recipe)
            share = len(found) ** -0.5  # rows with many answers count more, but not in proportion
            for column, question, either in found:
                number = -1
                if question >= 0:
                    if not places or places[-1][5] != (row, question):
                        tasks.append(name)
                    number = len(tasks) - 1
                places.append((row, column, share, number, either, (row, question)))
            rows.append(ids)
        row, column, share, number, either, _ = zip(*places, strict=True)
        return Batch(
            torch.tensor(rows),
            torch.tensor(row),
            torch.tensor(column),
            torch.tensor(share),
            torch.tensor(number),
            torch.tensor(either),
            tasks,
        )

    def _row(self, rng: random.Random, name: str, recipe: Recipe):
        """(ids, [(column, question, id that is right as well)]) of one row."""
        length = recipe.length
        if name == COPY:
            return self._copy(rng, length)
        share = rng.uniform(0.85, 1.0) if name in _SINGLE else rng.uniform(0.45, 0.95)
        for budget in (int(share * (length - 2)), length - 2):
            try:
                made = TASKS[name].scene(Request(rng, self.count, budget, recipe.split))
                return self._questions(rng, name, made, recipe)
            except TooShort:
                continue
        return self._copy(rng, length)

    def _questions(self, rng: random.Random, name: str, made: Scene, recipe: Recipe):
        ids, places = self.encode(made.context), []
        questions = list(made.questions)
        rng.shuffle(questions)
        for number, question in enumerate(questions[: recipe.most_questions]):
            target, swapped = question.target, False
            if name == "needle_multivalue" and rng.random() < 0.3:  # after the second value the first is right
                target, swapped = " {1} and {0}".format(*question.answers), True
            tail, answer = self.encode(question.tail), self.encode(target)
            if len(ids) + len(tail) + len(answer) + 1 > recipe.length:
                break
            ids += tail
            other = answer[-1] if name == "needle_multivalue" else answer[0]
            for place, token in enumerate(answer):
                if not (swapped and place == 0):
                    places.append((len(ids), number, other if place == 0 else token))
                ids.append(token)
            places.append((len(ids), -1, self.end))
            ids.append(self.end)
        if not places:
            raise TooShort(recipe.length)
        return ids + [self.end] * (recipe.length - len(ids)), places

    def _copy(self, rng: random.Random, length: int):
        """Random words, then a stretch of them again: what induction heads are made of."""
        half = rng.randint(length // 3, length // 2)
        first = [rng.choice(self.words) for _ in range(length - half)]
        start = rng.randint(0, len(first) - half) if len(first) > half else 0
        stretch = first[start : start + half]
        ids = (first + stretch)[:length]
        places = [(column, -1, ids[column]) for column in range(len(first) + 1, length)]
        return ids, places


def start(folder: str) -> None:
    """Readies the worker process."""
    global _maker
    torch.set_num_threads(1)
    _maker = Maker(folder)


def make_batch(recipe: Recipe) -> Batch:
    """What the worker process is asked for."""
    return _maker.batch(recipe)


_maker: Maker
