"""Variable tracking: a value copied on from word to word, and the words it reached, as in RULER (arXiv 2404.06654).

The answer spells the chain out, so that each of its words is looked up under the one before it.
"""

from __future__ import annotations

import random
from itertools import pairwise

from .base import Question, Request, Scene
from .haystack import affordable, fill
from .split import key_values, partner
from .words import KEYS

_HEAD = "This text copies values to words. Remember them."
_COPY = "Copy {} to {}."
CHAIN_ANSWER = 32  # new tokens: four words and what joins them
_WORDS = 4  # of a chain: the first gets the value, each of the others a copy from the one before it


def variable_tracking(request: Request) -> Scene:
    """Chains of four words, more of them where the text is long; a question names a value and asks for its words."""
    rng = request.rng
    number = affordable(request, _COPY.format("harbor", "lantern"), 1 / 24, 2, 12)
    pairs = key_values(rng, request.split, number)
    used = {key for key, _ in pairs}
    chains = []
    for first, value in pairs:
        chain = [value, first]
        while len(chain) <= _WORDS:
            chain.append(partner(rng, request.split, chain[-1], KEYS, used))
        chains.append(chain)
    questions = [_ask(chain) for chain in chains]
    evidence = _interleaved(rng, [_links(chain) for chain in chains])
    return Scene(fill(request, _HEAD, evidence, questions[0].tail, CHAIN_ANSWER), tuple(questions))


def _links(chain: list[str]) -> list[str]:
    return [_COPY.format(source, target) for source, target in pairwise(chain)]


def _interleaved(rng: random.Random, queues: list[list[str]]) -> list[str]:
    """The sentences of all chains, mixed; each chain keeps its order, for a copy needs the one before it."""
    mixed, queues = [], [list(queue) for queue in queues]
    while queues:
        queue = rng.choice(queues)
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return mixed


def _ask(chain: list[str]) -> Question:
    value, *words = chain
    tail = f"\nQuestion: Which four words have the value {value}?\nAnswer: The four words with the value {value} are"
    target = f" {', '.join(words[:-1])} and {words[-1]}"
    last = _COPY.format(*words[-2:])  # only after it is the whole chain known
    return Question(tail, target, tuple(words), evidence=last)
