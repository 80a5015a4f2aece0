"""The cloze task: a last word that only a far sentence fixes, as in LAMBADA."""

from __future__ import annotations

from .base import Question, Request, Scene
from .haystack import affordable, fill, tokens
from .split import partner
from .words import NAMES, OBJECTS, PLACES

_HEAD = "It had been a long week in the town."
_FACT = "{} left the {} in the {}."


def cloze(request: Request) -> Scene:
    """People leave things in places; the text ends as one of them returns to the place."""
    rng = request.rng
    number = affordable(request, _FACT.format("Martha", "ring", "kitchen"), 1 / 6, 2, 64)
    used: set[str] = set()
    facts = [
        (name, rng.choice(OBJECTS), partner(rng, request.split, name, PLACES, used))
        for name in rng.sample(NAMES, number)
    ]
    questions = [_ending(*fact) for fact in facts]
    evidence = [_FACT.format(*fact) for fact in facts]
    rng.shuffle(evidence)
    reserve = max(tokens(request.count, " " + place) for place in PLACES)
    return Scene(fill(request, _HEAD, evidence, questions[0].tail, reserve), tuple(questions))


def _ending(name: str, thing: str, place: str) -> Question:
    tail = f" In the end {name} wanted the {thing} again, so {name} went back to the"
    return Question(tail, f" {place}", (), (f" {place}",), 0, _FACT.format(name, thing, place))
