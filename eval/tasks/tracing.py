"""Variable tracking: a value reached through a chain of assignments."""

from __future__ import annotations

from .base import Question, Request, Scene
from .haystack import affordable, fill
from .retrieval import SHORT_ANSWER
from .split import in_split, key_values
from .words import KEYS

_HEAD = "This text gives values to words. Remember them."


def variable_tracking(request: Request) -> Scene:
    """Chains of two or three hops, more of them where the text is long; the first question asks the end of one."""
    rng = request.rng
    number = affordable(request, "Let harbor be lantern.", 1 / 24, 2, 12)
    chains, taken = [], set()
    for key, value in key_values(rng, request.split, number):
        taken.add(key)
        chains.append(([key], value))
    for chain, value in chains:
        for _ in range(rng.randint(2, 3)):
            name = rng.choice(KEYS)
            while name in taken or not in_split(request.split, name, value):
                name = rng.choice(KEYS)
            chain.append(name)
            taken.add(name)
    queues = [_assignments(chain, value) for chain, value in chains]
    ends = [_ask(chain[-1], value, queue[-1]) for (chain, value), queue in zip(chains, queues, strict=True)]
    others = [
        _ask(name, value, sentence)
        for (chain, value), queue in zip(chains, queues, strict=True)
        for name, sentence in zip(chain[:-1], queue[:-1], strict=True)
    ]
    evidence = []
    while queues:  # chains are interleaved; each keeps its order
        queue = rng.choice(queues)
        evidence.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return Scene(fill(request, _HEAD, evidence, ends[0].tail, SHORT_ANSWER), (*ends, *others))


def _assignments(chain: list[str], value: str) -> list[str]:
    return [f"Let {name} be {source}." for name, source in zip(chain, [value, *chain], strict=False)]


def _ask(name: str, value: str, sentence: str) -> Question:
    tail = f"\nQuestion: What is the value of {name}?\nAnswer: The value of {name} is"
    return Question(tail, f" {value}", (value,), evidence=sentence)
