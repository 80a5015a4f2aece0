"""The aggregation tasks: answers carried redundantly by words spread over the whole context."""

from __future__ import annotations

import random

from .base import Question, Request, Scene, TooShort
from .haystack import fill, most_that_fit, tokens
from .split import partner
from .words import KEYS, TOPICS

CODES = KEYS[::10]  # the words of the list
LIST_ANSWER = 24  # new tokens: three words and what joins them
_SHARES = (0.28, 0.19, 0.13)  # of the three frequent words: falling about as in Zipf's law
_FEWEST = 24  # words: the third comes three times then, and no other twice
_EVIDENCE = 0.7  # share of the text that speaks about a topic at all


def frequent_words(request: Request) -> Scene:
    """Which three words of a list occur most often."""
    rng = request.rng
    head = "Here is a list of words. Some of them are repeated many times. The list:"
    tail = "\nQuestion: Which three words are the most frequent?\nAnswer: The three most frequent words are"
    top = _frequent(rng, request.split)
    others = rng.sample([word for word in CODES if word not in top], rng.randint(30, 60))
    order = rng.getrandbits(64)

    def context(number: int) -> str:
        return f"{head} {' '.join(_list(random.Random(order), top, others, number))}."

    limit = request.budget - LIST_ANSWER
    number = most_that_fit(request, lambda number: context(number) + tail, limit, _FEWEST, limit)
    first, second, third = top
    return Scene(context(number), (Question(tail, f" {first}, {second} and {third}", tuple(top)),))


def _frequent(rng: random.Random, split: str) -> list[str]:
    """Three words; which comes first and which second is a pair of the split."""
    first, third = rng.sample(CODES, 2)
    used = {first, third}
    return [first, partner(rng, split, first, CODES, used), third]


def _list(rng: random.Random, top: list[str], others: list[str], number: int) -> list[str]:
    """So many words in random order, the three frequent ones clearly ahead of all others."""
    words = [word for word, share in zip(top, _SHARES, strict=True) for _ in range(round(share * number))]
    while len(words) < number:
        words += rng.sample(others, min(len(others), number - len(words)))
    rng.shuffle(words)
    return words


def majority_topic(request: Request) -> Scene:
    """Which of four to eight topics most sentences speak about; topics come in runs of uneven length."""
    rng, count = request.rng, request.count
    head = "This text speaks about several topics."
    first = rng.choice(tuple(TOPICS))
    second = partner(rng, request.split, first, tuple(TOPICS), {first})
    topics = [first, second, *rng.sample([name for name in TOPICS if name not in (first, second)], rng.randint(2, 6))]
    order = rng.sample(topics, len(topics))
    named = ", ".join(order[:-1]) + " or " + order[-1]
    tail = f"\nQuestion: Which topic is the text mostly about: {named}?\nAnswer: The text is mostly about"
    reserve = max(tokens(count, " " + name) for name in TOPICS)
    room = (request.budget - reserve - count(head + tail)) * _EVIDENCE
    number = int(room / tokens(count, " " + _topic_sentence(random.Random(0), first)))
    runs = [
        " ".join(_topic_sentence(rng, topic) for _ in range(length)) for topic, length in _runs(rng, topics, number)
    ]
    choices = tuple(" " + name for name in order)
    gold = order.index(first)
    return Scene(fill(request, head, runs, tail, reserve), (Question(tail, choices[gold], (), choices, gold),))


def _topic_sentence(rng: random.Random, topic: str) -> str:
    one, two = rng.sample(TOPICS[topic], 2)
    return (f"They spoke of the {one} and the {two}.", f"They knew the {one} and the {two}.")[rng.randrange(2)]


def _runs(rng: random.Random, topics: list[str], number: int) -> list[tuple[str, int]]:
    """(topic, sentences) in random order: two fifths to a half on the first topic, at most half as many on another."""
    most = round(number * rng.uniform(0.4, 0.5))
    if most < 2:
        raise TooShort(0)
    sentences = dict.fromkeys(topics, 0)
    sentences[topics[0]] = most
    weights = [1.5, *(rng.uniform(0.2, 1.0) for _ in topics[2:])]  # the second topic is the runner-up, as a rule
    for topic in rng.choices(topics[1:], weights, k=number - most):
        if sentences[topic] >= most // 2:  # full: the least mentioned one takes it
            topic = min(topics[1:], key=sentences.__getitem__)
        if sentences[topic] < max(1, most // 2):
            sentences[topic] += 1
    longest, runs = max(2, number // 10), []
    for topic, left in sentences.items():
        while left:
            length = min(left, rng.randint(1, longest))
            runs.append((topic, length))
            left -= length
    rng.shuffle(runs)
    return runs
