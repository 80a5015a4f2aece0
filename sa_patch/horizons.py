"""Dyadic horizons: permutations that never need to know how long a sequence will be.

Query i belongs to the horizon N(i), the smallest power of two above i and at least 32. Its ranks are those of all N
tokens, the ones still to come included, so nothing depends on the length. Pure integers.
"""

from collections.abc import Iterator

SMALLEST = 32


def horizon_of(position: int) -> int:
    """N(i): the smallest power of two above a position, at least 32."""
    return max(SMALLEST, 1 << position.bit_length())


def stretches(first: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut positions first..stop-1 where the horizon changes: (start, end, horizon)."""
    while first < stop:
        horizon = horizon_of(first)
        end = min(stop, horizon)
        yield first, end, horizon
        first = end


def opening(horizon: int) -> int:
    """The first position of a horizon: those below it belong to smaller ones."""
    return horizon // 2 if horizon > SMALLEST else 0
