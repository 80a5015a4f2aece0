"""Filling: sentences without meaning for any question, and laying evidence among them to an exact length."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .base import CountTokens, Request, TooShort
from .words import ADJECTIVES, PEOPLE, PREPOSITIONS, SPOTS, THINGS, TIMES, VERBS

_BRIEF = ("So it was.", "Indeed.", "Yes.")  # for the last few tokens
_LEAST = 0.95


def filler(rng: random.Random) -> str:
    """One random sentence of the haystack."""
    person, verb, thing = rng.choice(PEOPLE), rng.choice(VERBS), rng.choice(THINGS)
    kind = rng.randrange(3)
    if kind == 0:
        return f"The {rng.choice(ADJECTIVES)} {person} {verb} the {thing} {rng.choice(TIMES)}."
    if kind == 1:
        return f"The {person} {verb} the {thing} {rng.choice(PREPOSITIONS)} the {rng.choice(SPOTS)}."
    return f"Then the {person} {verb} the {rng.choice(ADJECTIVES)} {thing}."


def tokens(count: CountTokens, text: str) -> int:
    """Tokens of a piece in the middle of a text: without what the tokenizer puts before every text."""
    return count(text) - count("")


def affordable(request: Request, example: str, share: float, least: int, most: int) -> int:
    """How many pieces like `example` fill about this share of the budget."""
    return max(least, min(most, int(share * request.budget / tokens(request.count, " " + example))))


def fill(request: Request, head: str, evidence: Sequence[str], tail: str, reserve: int) -> str:
    """A context of head, evidence in the given order and filler between, so that with the tail it fills the budget.

    `reserve` tokens of the budget are left for the continuation.
    """
    rng, count = request.rng, request.count
    limit = request.budget - reserve
    fixed = count(head + tail) + sum(tokens(count, " " + piece) for piece in evidence)
    if fixed > limit:
        raise TooShort(fixed + reserve)
    sentences = _sentences(rng, count, limit - fixed)
    while True:
        text = " ".join([head, *_mix(rng, evidence, sentences)])
        spare = limit - count(text + tail)
        if spare < 0:  # pieces cost more together than alone
            if not sentences:
                raise TooShort(request.budget - spare)
            sentences.pop()
        elif limit - spare < _LEAST * limit:
            more = _sentences(rng, count, spare)
            if not more:
                raise TooShort(request.budget + 1)
            sentences += more
        else:
            return text


def most_that_fit(request: Request, render: Callable[[int], str], limit: int, least: int, most: int) -> int:
    """About the largest number of items, of `least` to `most`, whose rendering stays within the limit: exact counts,
    found by interpolation, close enough once less than a hundredth is left."""
    used = request.count(render(least))
    if used > limit:
        raise TooShort(request.budget + 1)
    low, high, slope = least, most + 1, used / least
    while high - low > 1 and limit - used > limit // 100:
        middle = min(high - 1, max(low + 1, low + int((limit - used) / slope)))
        found = request.count(render(middle))
        slope = max(abs(found - used) / abs(middle - low), 1e-3)
        if found <= limit:
            low, used = middle, found
        else:
            high = middle
    return low


def _sentences(rng: random.Random, count: CountTokens, room: int) -> list[str]:
    """Filler of at most `room` tokens: sentences while they fit, then brief ones."""
    sentences, misses = [], 0
    while misses < 3:
        sentence = filler(rng) if misses < 2 else rng.choice(_BRIEF)
        cost = tokens(count, " " + sentence)
        if cost <= room:
            sentences.append(sentence)
            room -= cost
        else:
            misses += 1
    for brief in _BRIEF:
        if tokens(count, " " + brief) <= room:
            sentences.append(brief)
            room -= tokens(count, " " + brief)
    return sentences


def _mix(rng: random.Random, evidence: Sequence[str], sentences: list[str]) -> list[str]:
    """Evidence at random slots of the filler, its own order kept."""
    slots = sorted(rng.randint(0, len(sentences)) for _ in evidence)
    mixed, start = [], 0
    for slot, piece in zip(slots, evidence, strict=True):
        mixed += [*sentences[start:slot], piece]
        start = slot
    return mixed + sentences[start:]
