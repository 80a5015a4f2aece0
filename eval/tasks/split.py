"""The held-out split: which pairs of words belong to training and which to evaluation."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from .words import KEYS, NUMBERS

_EVAL_SHARE = 5  # every fifth pair is kept from training


def in_split(split: str, first: str, second: str) -> bool:
    """Whether the pair may occur in this split; a stable hash decides, so no list has to be kept."""
    held_out = zlib.crc32(f"{first}|{second}".encode()) % _EVAL_SHARE == 0
    return held_out != (split == "train")


def partner(rng: random.Random, split: str, first: str, pool: Sequence[str], used: set[str]) -> str:
    """A word of the pool, not used yet, that makes a pair of this split with `first`."""
    for _ in range(400):
        second = rng.choice(pool)
        if second not in used and in_split(split, first, second):
            used.add(second)
            return second
    second = rng.choice([word for word in pool if in_split(split, first, word)])  # pool nearly used up: allow a repeat
    used.add(second)
    return second


def key_values(rng: random.Random, split: str, number: int, pool: Sequence[str] = NUMBERS) -> list[tuple[str, str]]:
    """Pairs of distinct keys (two words each, where single ones do not suffice) and values, all of one split.

    Values are distinct while there are enough of them; the first pair's value is unique always, for it may be asked.
    """
    if number <= len(KEYS):
        keys = rng.sample(KEYS, number)
    else:
        codes = rng.sample(range(len(KEYS) ** 2), number)
        keys = [f"{KEYS[code // len(KEYS)]} {KEYS[code % len(KEYS)]}" for code in codes]
    used: set[str] = set()
    pairs = [(keys[0], partner(rng, split, keys[0], pool, used))]
    answer = pairs[0][1]
    for key in keys[1:]:
        if len(used) > len(pool) * 7 // 10:
            used = {answer}
        pairs.append((key, partner(rng, split, key, pool, used)))
    return pairs
