"""Buckets: positions and distances grouped by doubling, and how far back a token could be copied from.

Pure numpy. The same bucket means the same tokens for every arm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST = 16  # tokens read: the first bucket of positions; each next one ends at twice as many
SINKS = 4  # keys at the start of the text are counted apart: trained models park attention there


def position_bucket(read: np.ndarray) -> np.ndarray:
    """Bucket of a prediction made after `read` tokens (1, 2, ...): 1-16, 17-32, 33-64, ..."""
    return _bit_length((np.asarray(read) - 1) // FIRST)


def position_range(bucket: int) -> tuple[int, int]:
    """The fewest and the most tokens read in a bucket of positions."""
    return (1, FIRST) if bucket == 0 else ((FIRST << (bucket - 1)) + 1, FIRST << bucket)


def distance_bucket(distance: np.ndarray) -> np.ndarray:
    """Bucket of a distance in tokens (0 is the query itself): 0, 1, 2-3, 4-7, ..."""
    return _bit_length(np.asarray(distance))


def distance_range(bucket: int) -> tuple[int, int]:
    """The smallest and the largest distance of a bucket."""
    return (0, 0) if bucket == 0 else (1 << (bucket - 1), (1 << bucket) - 1)


def num_position_buckets(length: int) -> int:
    return int(position_bucket(np.array(length))) + 1


def num_distance_buckets(length: int) -> int:
    return int(distance_bucket(np.array(length - 1))) + 1


def label(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def copy_distances(ids: Sequence[int]) -> np.ndarray:
    """How far back the next token could be copied from, for every token that has a next one; -1 where nowhere.

    A pair (token t, its next) that occurred before at (s, s + 1), the last time, can be copied by attending from t to
    s + 1, over a distance of t - (s + 1). That is what induction heads do, and what a window cuts off.
    """
    last: dict[tuple[int, int], int] = {}
    found = np.full(max(0, len(ids) - 1), -1, dtype=np.int64)
    for position in range(len(ids) - 1):
        pair = (ids[position], ids[position + 1])
        if pair in last:
            found[position] = position - (last[pair] + 1)
        last[pair] = position
    return found


def _bit_length(values: np.ndarray) -> np.ndarray:
    """Bits of non-negative whole numbers, exact below 2**53: 0 -> 0, 1 -> 1, 2 and 3 -> 2, ..."""
    return np.frexp(np.asarray(values, dtype=np.float64))[1].astype(np.int64)
