"""Distinct random earlier positions for every query: the first values of a permutation of its own.

A query's permutation is a Feistel network over the smallest 4^h >= 256 numbers that hold its candidates; numbers that
are no candidate are sent through it again until they are one (cycle walking). Integers only, so every device draws the
same, and nothing but the query's own position takes part. Imports torch only.

Source: Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sa_patch.randomness import mixed, steps, stream

# With 4 rounds, or 3 bits a half, pairs of keys are measurably not uniform (chi-square of 300,000 draws).
_ROUNDS, _SMALLEST_HALF = 6, 4
_USE = 1  # tells these random numbers from those of the orders
# Numbers in the network at once: what stays in a CPU's cache; elsewhere few launches matter more.
_AT_ONCE_CPU, _AT_ONCE = 1 << 16, 1 << 24


def draw_earlier(
    first: int,
    stop: int,
    count: int,
    seed: int,
    layer_idx: int,
    device: torch.device,
    *,
    sinks: int = 0,
    reach: int = 1,
) -> Tensor:
    """For queries first..stop-1: `count` distinct positions, uniformly from sinks .. query - reach.

    Returns:
        int32 [stop - first, count]; all candidates, then -1, where a query has no more of them than `count`.
    """
    taken = sinks + reach - 1  # earlier positions that are no candidates, so query i has i - taken candidates
    few = max(first, min(stop, taken + count + 1)) if count else stop
    slot = torch.arange(count, device=device)
    candidates = torch.arange(first, few, device=device)[:, None] - taken
    drawn = [torch.where(slot < candidates, slot + sinks, -1).int()]
    at_once = _AT_ONCE_CPU if device.type == "cpu" else _AT_ONCE
    for start, end, half in _stretches(few, stop, taken, max(1, at_once // max(1, count))):
        query = torch.arange(start, end, device=device)
        round_keys = _round_keys(query, seed, layer_idx)
        drawn.append((_permuted(count, query - taken, round_keys, half) + sinks).int())
    return torch.cat(drawn)


def _stretches(start: int, stop: int, taken: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Cut queries start..stop-1 into stretches with one size of network: (start, end, bits of half a number)."""
    while start < stop:
        half = max(_SMALLEST_HALF, ((start - taken - 1).bit_length() + 1) // 2)
        end = min(stop, start + most, taken + 4**half + 1)
        yield start, end, half
        start = end


def _round_keys(query: Tensor, seed: int, layer_idx: int) -> Tensor:
    """int64 [rounds, queries]: a hash of (seed, layer, query, round)."""
    own = mixed(steps(query, stream(seed, layer_idx, _USE)))
    rounds = torch.arange(1, _ROUNDS + 1, device=query.device)
    return mixed(steps(rounds[:, None], own))


def _permuted(count: int, candidates: Tensor, round_keys: Tensor, half: int) -> Tensor:
    """The first values of every query's permutation of 0..candidates-1: int64 [queries, count]."""
    slot = torch.arange(count, device=candidates.device)
    value = _network(slot, round_keys[:, :, None], half).flatten()
    outside = (value >= candidates.repeat_interleave(count)).nonzero()[:, 0]
    while outside.numel():
        row = outside // count
        again = _network(value[outside], round_keys[:, row], half)
        value[outside] = again
        outside = outside[again >= candidates[row]]
    return value.view(-1, count)


def _network(value: Tensor, round_keys: Tensor, half: int) -> Tensor:
    """A permutation of 0..4^half-1, one for every set of round keys [rounds, ...]; elementwise."""
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for key in round_keys:
        left, right = right, left ^ (mixed(steps(right, key)) & low)
    return (left << half) | right
