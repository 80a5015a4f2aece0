"""The retrieval tasks: numbers hidden under keys, in filler or among many other keys."""

from __future__ import annotations

from .base import Question, Request, Scene
from .haystack import affordable, fill, most_that_fit
from .split import key_values, partner
from .words import NUMBERS

_HEAD = "Some magic numbers are hidden in this text. Remember them."
SHORT_ANSWER, TWO_ANSWERS, THREE_ANSWERS = 8, 16, 48  # new tokens; enough where every digit is a token of its own
_MOST_NEEDLES = 240
_MOST_DOUBLE = 44
_ROUND = NUMBERS[::10]  # a tiny model tells two summed values apart where there are not too many to choose from
_TWO = "One of the magic numbers for {} is {}."


def _needle(key: str, value: str) -> str:
    return f"The magic number for {key} is {value}."


def _ask(key: str, value: str) -> Question:
    tail = f"\nQuestion: What is the magic number for {key}?\nAnswer: The magic number for {key} is"
    return Question(tail, f" {value}", (value,), evidence=_needle(key, value))


def _needles(request: Request, number: int) -> Scene:
    pairs = key_values(request.rng, request.split, number)
    questions = [_ask(key, value) for key, value in pairs]
    evidence = [_needle(key, value) for key, value in pairs]
    request.rng.shuffle(evidence)
    return Scene(fill(request, _HEAD, evidence, questions[0].tail, SHORT_ANSWER), tuple(questions))


def needle_single(request: Request) -> Scene:
    return _needles(request, 1)


def needle_multikey(request: Request) -> Scene:
    """A third of the text states numbers for other keys."""
    return _needles(request, affordable(request, _needle("harbor", "471"), 1 / 3, 2, _MOST_NEEDLES))


def needle_multivalue(request: Request) -> Scene:
    """Two round numbers under every key; the target names them in the order of the text, and either order scores."""
    rng = request.rng
    number = affordable(request, _TWO.format("harbor", "471"), 1 / 4, 4, _MOST_DOUBLE) // 2
    pairs = key_values(rng, request.split, number, _ROUND)
    stated, used = [], {value for _, value in pairs}
    for key, first in pairs:
        stated += [(key, first), (key, partner(rng, request.split, key, _ROUND, used))]
    asked = list(dict.fromkeys(key for key, _ in stated))
    rng.shuffle(stated)
    questions = [_ask_two(key, [value for other, value in stated if other == key]) for key in asked]
    evidence = [_TWO.format(*pair) for pair in stated]
    return Scene(fill(request, _HEAD, evidence, questions[0].tail, TWO_ANSWERS), tuple(questions))


def _ask_two(key: str, values: list[str]) -> Question:
    tail = f"\nQuestion: What are the two magic numbers for {key}?\nAnswer: The two magic numbers for {key} are"
    return Question(tail, f" {values[0]} and {values[1]}", tuple(values), evidence=_TWO.format(key, values[0]))


def needle_multiquery(request: Request) -> Scene:
    """Three keys asked at once; the answer restates each before its number."""
    number = affordable(request, _needle("harbor", "471"), 1 / 5, 3, _MOST_NEEDLES)
    pairs = key_values(request.rng, request.split, number)
    questions = [_ask_three(pairs[start : start + 3]) for start in range(0, number - 2, 3)]
    evidence = [_needle(key, value) for key, value in pairs]
    request.rng.shuffle(evidence)
    return Scene(fill(request, _HEAD, evidence, questions[0].tail, THREE_ANSWERS), tuple(questions))


def _ask_three(pairs: list[tuple[str, str]]) -> Question:
    (one, first), (two, second), (three, third) = pairs
    tail = (
        f"\nQuestion: What are the magic numbers for {one}, {two} and {three}?\nAnswer: The magic number for {one} is"
    )
    target = f" {first}, that for {two} is {second} and that for {three} is {third}"
    return Question(tail, target, (first, second, third), evidence=_needle(one, first))


def kv_retrieval(request: Request) -> Scene:
    """Nothing but pairs: every other entry is a distractor of the same form."""
    head = "This register lists a number for every word:"
    entries = affordable(request, "harbor: 471,", 1.2, 4, request.budget)
    pairs = key_values(request.rng, request.split, entries)
    places = request.rng.sample(range(entries), entries)
    question = _ask_entry(*pairs[0])

    def context(number: int) -> str:
        order = sorted(range(number), key=places.__getitem__)
        return " ".join([head, *(f"{pairs[entry][0]}: {pairs[entry][1]}," for entry in order)])

    limit = request.budget - SHORT_ANSWER
    number = most_that_fit(request, lambda number: context(number) + question.tail, limit, 2, entries)
    return Scene(context(number), tuple(_ask_entry(*pair) for pair in pairs[:number]))


def _ask_entry(key: str, value: str) -> Question:
    tail = f"\nQuestion: Which number does the register list for {key}?\nAnswer: {key}:"
    return Question(tail, f" {value}", (value,), evidence=f"{key}: {value},")
