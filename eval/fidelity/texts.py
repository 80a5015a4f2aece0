"""The texts: reading the user's files, writing the bundled ones, and cutting both into passages of tokens.

A passage is what a model reads in one go. Nothing is cut off silently: every text says how many of its tokens are used.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_eval.fidelity.types import TextRow
from sa_eval.lm import special_tokens
from sa_eval.messages import one_line, shown
from sa_eval.settings.values import SettingsError
from sa_eval.tasks import TASKS
from sa_eval.tasks.base import Request, TooShort

LEAST_TOKENS = 32  # a passage has at least so many: fewer say nothing about long contexts
MOST_BYTES = 64 * 2**20
MOST_QUESTIONS = 32  # a document, as in the training of the bundled models
SINGLE = ("frequent_words", "majority_topic", "needle_single")  # tasks with one question about a text
CONTEXT_SHARE = 0.75  # of the length, where questions about everything in the text follow


@dataclass(frozen=True)
class Text:
    """A text as it was given."""

    name: str
    content: str
    sha256: str


@dataclass(frozen=True)
class Passage:
    """Tokens that a model reads in one go. `answers` marks the tokens that answer a question, in bundled texts."""

    text: str
    index: int
    ids: tuple[int, ...]
    answers: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Cut:
    """The passages of one length, and what of every text they use."""

    length: int
    passages: tuple[Passage, ...]
    texts: tuple[TextRow, ...]


def read(paths: Sequence[str]) -> list[Text]:
    """The user's files.

    Raises:
        SettingsError: for a file that is missing, no UTF-8 text, empty, huge, or there twice.
    """
    texts: list[Text] = []
    for path in paths:
        text = Text(Path(path).name, *_content(path))
        twin = next((other.name for other in texts if other.sha256 == text.sha256), None)
        if twin is not None:
            raise SettingsError(f"text {shown(path)} is the same as {twin}: twice the same text is no more evidence")
        texts.append(text)
    return texts


def _content(path: str) -> tuple[str, str]:
    try:
        with Path(path).expanduser().open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SettingsError(f"text {shown(path)} cannot be read: {reason}") from error
    if len(content) > MOST_BYTES:
        raise SettingsError(f"text {shown(path)} is larger than {MOST_BYTES // 2**20} MiB: give a part of it")
    if b"\0" in content:
        raise SettingsError(f"text {shown(path)} is binary, not text: give plain text in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"text {shown(path)} is no UTF-8 at byte {error.start:,}: convert it, or give plain text"
        ) from error
    if not text.strip():
        raise SettingsError(f"text {shown(path)} is empty")
    return text, hashlib.sha256(content).hexdigest()


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def opening(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text (a begin-of-text token); every passage starts with it."""
    return special_tokens.around(tokenizer)[0]


def cut(texts: Sequence[Text], tokenizer: Any, length: int, most: int | None) -> Cut:
    """The files in passages of exactly `length` tokens, spread over each text; a shorter text is one passage.

    Args:
        most: passages of a text at most; None takes them all.

    Raises:
        SettingsError: for a text of fewer than LEAST_TOKENS tokens.
    """
    head = opening(tokenizer)
    size = length - len(head)
    passages: list[Passage] = []
    rows = []
    for text in texts:
        ids = encode(tokenizer, text.content)
        if len(ids) < LEAST_TOKENS:
            raise SettingsError(
                f"text {shown(text.name)} has only {len(ids)} tokens: at least {LEAST_TOKENS} are needed"
            )
        whole = max(1, len(ids) // size)
        taken = whole if most is None else min(most, whole)
        starts = [(turn * whole // taken) * size for turn in range(taken)]
        pieces = [ids[start : start + size] for start in starts]
        passages += [Passage(text.name, index, (*head, *piece)) for index, piece in enumerate(pieces)]
        rows.append(_row(length, text.name, text.sha256, len(ids), [len(piece) for piece in pieces]))
    return Cut(length, tuple(passages), tuple(rows))


def bundled(tokenizer: Any, length: int, count: int, seed: int, end: Sequence[int] = ()) -> tuple[Cut, list[str]]:
    """Documents of the offline suite, `count` per task: a context, then questions about it, each with its answer.

    The same tokenizer, length and seed give the same documents.

    Args:
        end: what follows every answer; the bundled models were trained with an end-of-text token there.

    Returns:
        the passages, and the tasks that do not fit into the length.
    """
    passages: list[Passage] = []
    rows, misfits = [], []
    for task in TASKS:
        made = [_document(task, tokenizer, length, f"{task}|{length}|{seed}|{index}", end) for index in range(count)]
        if None in made:
            misfits.append(task)
            continue
        found = [Passage(task, index, *parts) for index, parts in enumerate(made) if parts is not None]
        digest = hashlib.sha256("\n".join(tokenizer.decode(passage.ids) for passage in found).encode()).hexdigest()
        used = [len(passage.ids) for passage in found]
        passages += found
        rows.append(_row(length, task, digest, sum(used), used))
    if not passages:
        raise SettingsError(
            f"no document of the bundled texts fits into {length} tokens with this tokenizer: ask for a longer length, "
            "or give --text"
        )
    return Cut(length, tuple(passages), tuple(rows)), misfits


def _document(
    task: str, tokenizer: Any, length: int, seed: str, end: Sequence[int]
) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """Ids and answer marks of one document; None when the task does not fit."""
    head = opening(tokenizer)
    room = length - len(head) - len(end)

    def count(text: str) -> int:
        return len(encode(tokenizer, text))

    for budget in dict.fromkeys((room if task in SINGLE else int(CONTEXT_SHARE * room), room)):
        rng = random.Random(seed)
        try:
            made = TASKS[task].scene(Request(rng, count, budget))
        except TooShort:
            continue
        questions = rng.sample(made.questions, len(made.questions))
        found = _with_questions([*head, *encode(tokenizer, made.context)], questions, length, tokenizer, end)
        if found is not None:
            return found
    return None


def _with_questions(
    ids: list[int], questions: Sequence[Any], length: int, tokenizer: Any, end: Sequence[int]
) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """Append as many questions as fit, each with its answer; None when not even one does."""
    answers = [False] * len(ids)
    for question in questions[:MOST_QUESTIONS]:
        tail, target = encode(tokenizer, question.tail), [*encode(tokenizer, question.target), *end]
        if len(ids) + len(tail) + len(target) > length:
            break
        ids = [*ids, *tail, *target]
        answers += [False] * len(tail) + [True] * len(target)
    return (tuple(ids), tuple(answers)) if any(answers) else None


def _row(length: int, name: str, sha256: str, tokens: int, used: Sequence[int]) -> TextRow:
    return TextRow(
        length=length,
        name=name,
        sha256=sha256,
        tokens=tokens,
        passages=len(used),
        tokens_used=sum(used),
        tokens_left=tokens - sum(used),
    )
