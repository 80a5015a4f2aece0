"""Training rows: scenes of the train split with many questions each, and random sequences to be copied."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_tokenizer import END, build_tokenizer, word_ids
from transformers import PreTrainedTokenizerFast

from sa_eval.tasks import TASKS
from sa_eval.tasks.base import Question, Request, Scene, TooShort

COPY = "copy"
_SINGLE = ("needle_single", "frequent_words", "majority_topic")  # tasks with one question a scene

_ANY_ORDER = ("needle_multivalue", "frequent_words")


@dataclass(frozen=True)
class Batch:
    """Rows of one length, and the places to be predicted: `ids[row, column]` from everything before it."""

    ids: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    weight: torch.Tensor
    question: torch.Tensor  # number of the question a place belongs to, -1 where it does not count for accuracy
    fine: torch.Tensor  # [place, 3]: the id itself, and those that would do as well; repeated to fill up
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
            for column, question, fine in found:
                number = -1
                if question >= 0:
                    if not places or places[-1][5] != (row, question):
                        tasks.append(name)
                    number = len(tasks) - 1
                places.append((row, column, share, number, fine, (row, question)))
            rows.append(ids)
        row, column, share, number, fine, _ = zip(*places, strict=True)
        return Batch(
            torch.tensor(rows),
            torch.tensor(row),
            torch.tensor(column),
            torch.tensor(share),
            torch.tensor(number),
            torch.tensor(fine),
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
            tail, answer, fine = self.encode(question.tail), *self._answer(rng, name, question)
            if len(ids) + len(tail) + len(answer) + 1 > recipe.length:
                break
            ids += tail
            for token, right in zip(answer, fine, strict=True):
                places.append((len(ids), number, right))
                ids.append(token)
            places.append((len(ids), -1, (self.end,) * 3))
            ids.append(self.end)
        if not places:
            raise TooShort(recipe.length)
        return ids + [self.end] * (recipe.length - len(ids)), places

    def _answer(self, rng: random.Random, name: str, question: Question):
        """(ids of the answer, the ids that are right at each place). Where order does not matter, every answer not
        given yet is right, and sometimes another order is shown, so that none is needed."""
        target, words = question.target, list(question.answers)
        if name not in _ANY_ORDER:
            return self.encode(target), [(token,) * 3 for token in self.encode(target)]
        if rng.random() < 0.4:
            rng.shuffle(words)
            joined = ", ".join(words[:-1]) + f" and {words[-1]}"
            target = f" {joined}"
        open_ = [self.encode(f" {word}")[0] for word in words]
        ids, fine = self.encode(target), []
        for token in ids:
            left = list(open_) if token in open_ else [token]
            fine.append((token, left[0], left[-1]) if len(left) < 3 else tuple(left))
            if token in open_:
                open_.remove(token)
        return ids, fine

    def _copy(self, rng: random.Random, length: int):
        """Random words, then a stretch of them again: what induction heads are made of."""
        half = rng.randint(length // 3, length // 2)
        first = [rng.choice(self.words) for _ in range(length - half)]
        start = rng.randint(0, len(first) - half) if len(first) > half else 0
        stretch = first[start : start + half]
        ids = (first + stretch)[:length]
        places = [(column, -1, (ids[column],) * 3) for column in range(len(first) + 1, length)]
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
