"""The documents on which arms differ: which of them the page shows, and the file that holds them all.

Prompts and answers come from outside. Here they are text and stay text: the template escapes them.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sa_eval.page.visible import visible
from sa_eval.records.types import FULL, Json, Prompt, Record
from sa_eval.results.types import Results

MOST = 200  # documents on the page
MOST_CHARACTERS = 600_000  # of prompts and answers on the page
FIRST = 10  # documents before the fold
LONGEST_ANSWER = 240
TAIL = 480  # characters of a prompt's end in documents.jsonl: a shorter one is the whole prompt
COLUMNS = ("task", "index", "prompt_tokens", "depth", "arm", "score", "full_score", "expected", "answers")


@dataclass(frozen=True)
class Answer:
    """What one arm made of a document: its score (mean over seeds) and each seed's own words, shortened."""

    arm: str
    score: float
    said: tuple[tuple[str, str], ...]  # (seed or nothing, text)

    @property
    def verdict(self) -> str:
        return "right" if self.score == 1 else "wrong" if self.score == 0 else f"{self.score:.2f}"


@dataclass(frozen=True)
class Document:
    """A document on which at least two arms differ."""

    task: str
    index: int
    prompt_tokens: int
    depth: float | None
    expected: str
    head: str
    tail: str
    answers: tuple[Answer, ...]

    @property
    def wanted(self) -> str:
        """What was expected, shortened for the page."""
        return _short(self.expected)

    @property
    def whole(self) -> bool:
        """Whether `tail` is the whole prompt."""
        return len(self.tail) < TAIL

    @property
    def scores(self) -> str:
        return json.dumps({answer.arm: round(answer.score, 4) for answer in self.answers})

    @property
    def size(self) -> int:
        said = sum(len(text) for answer in self.answers for _, text in answer.said)
        return said + len(self.head) + len(self.tail)

    def against_full(self, sign: int) -> list[str]:
        """Arms that did better (1) or worse (-1) than full attention here."""
        full = next((answer.score for answer in self.answers if answer.arm == FULL), None)
        if full is None:
            return []
        return [answer.arm for answer in self.answers if sign * (answer.score - full) > 0]


@dataclass(frozen=True)
class Shown:
    """What the page shows of the documents that differ."""

    documents: tuple[Document, ...]
    total: int
    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    first = FIRST
    kind = "documents"


def differing(results: Results, records: Iterable[Record], rows: Iterable[Prompt]) -> list[Document]:
    """Every document on which two arms that answered it with all their seeds have different scores."""
    prompts = {(row.task, row.index): row for row in rows}
    arms = {arm.name: set(arm.seeds) for arm in results.arms}
    found: dict[tuple[str, int], dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        found[record.task, record.index][record.arm][record.seed] = record
    documents = []
    for key, by_arm in found.items():
        answers = tuple(_answer(arm, by_arm[arm]) for arm, seeds in arms.items() if seeds == set(by_arm[arm]))
        if len({answer.score for answer in answers}) > 1:
            asked = prompts[key]
            about = (asked.prompt_tokens, asked.depth, asked.expected, asked.head, asked.tail)
            documents.append(Document(*key, *about, answers))
    return documents


def shown(documents: list[Document]) -> Shown:
    """A share for the page: every arm's wins and losses by task in turn, until the page is full."""
    queues: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for position, document in enumerate(documents):
        for sign in (1, -1):
            for arm in document.against_full(sign):
                queues[document.task, arm, sign > 0].append(position)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
    chosen: dict[int, None] = dict.fromkeys(position for position in turns if position is not None)
    chosen.update(dict.fromkeys(range(len(documents))))  # those where only two variants differ come last
    kept, size = [], 0
    for position in chosen:
        size += documents[position].size
        if len(kept) == MOST or (kept and size > MOST_CHARACTERS):
            break
        kept.append(position)
    page = tuple(documents[position] for position in sorted(kept))
    arms = dict.fromkeys(answer.arm for document in documents for answer in document.answers)
    return Shown(page, len(documents), tuple(arms), tuple(dict.fromkeys(document.task for document in page)))


def to_csv(documents: list[Document], records: Iterable[Record]) -> str:
    """All of them, whole answers: one line per document and arm.

    Answers and expectations are JSON, so nothing is lost and no spreadsheet takes one for a formula.
    """
    said: dict[tuple[str, int, str], dict[int, Json]] = defaultdict(dict)
    for record in records:
        said[record.task, record.index, record.arm][record.seed] = record.output
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_lines(documents, said))
    return stream.getvalue()


def _lines(
    documents: list[Document], said: dict[tuple[str, int, str], dict[int, Json]]
) -> Iterator[tuple[object, ...]]:
    for document in documents:
        full = next((answer.score for answer in document.answers if answer.arm == FULL), None)
        for answer in document.answers:
            outputs = said[document.task, document.index, answer.arm]
            about = (visible(document.task), document.index, document.prompt_tokens, document.depth)
            texts = (json.dumps(document.expected), json.dumps([outputs[seed] for seed in sorted(outputs)]))
            yield (*about, answer.arm, answer.score, full, *texts)


def _answer(arm: str, by_seed: dict[int, Record]) -> Answer:
    scores = [record.score for record in by_seed.values()]
    texts: dict[str, list[str]] = defaultdict(list)
    for seed in sorted(by_seed):
        texts[_said(by_seed[seed])].append(str(seed))
    several = len(by_seed) > 1
    said = tuple((f"seed {', '.join(seeds)}" if several else "", text) for text, seeds in texts.items())
    return Answer(arm, sum(scores) / len(scores), said)


def _said(record: Record) -> str:
    if record.error is not None:
        return f"failed: {record.error}"
    output = record.output
    if isinstance(output, list):
        numbers = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in output)
        output = f"log-likelihoods {numbers}"
    return _short(str(output)) + (" \u2026 (cut at the limit of new tokens)" if record.cut else "")


def _short(text: str) -> str:
    more = len(text) - LONGEST_ANSWER
    return text if more <= 0 else f"{text[:LONGEST_ANSWER]} \u2026 ({more:,} more characters in the CSV)"
