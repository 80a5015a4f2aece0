"""Random keys of tokens: an integer hash of (seed, layer, kv head, logical position), never a generator.

A hash has no state, so the same token gets the same key on every device, in every batch, process and re-computation.
Imports torch only.
"""

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
# splitmix64: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_FIRST_HEAD = 2  # uses of random numbers from here on are the kv heads' own orders (1: sa_patch/draws.py)


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer, which is what an int64 tensor can hold."""
    value &= _MASK64
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK64
    return value ^ (value >> 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 tensors shift arithmetically, so the copied sign bits are masked away."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mixed(value: Tensor) -> Tensor:
    """splitmix64's output function, elementwise: int64 to int64."""
    value = (value ^ _shift_right(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift_right(value, 27)) * _signed(_MIX_2)
    return value ^ _shift_right(value, 31)


def steps(count: Tensor, start: int | Tensor) -> Tensor:
    """splitmix64's states after some steps from a start: int64."""
    return count * _signed(_GOLDEN) + (_signed(start) if isinstance(start, int) else start)


def stream(seed: int, layer_idx: int, use: int = 0) -> int:
    """Where the random numbers of a layer begin: 64 bits, another place for every use of them."""
    value = _mix(_mix(seed + _GOLDEN) + _GOLDEN * (layer_idx + 1))
    return _mix(value + use) if use else value


def step_seed(seed: int, step: int) -> int:
    """The seed of a training step, for permutations that are drawn anew in each: a hash of both, 63 bits."""
    return _mix(_mix(seed + _GOLDEN) ^ _mix(step)) >> 1


def token_keys(
    length: int, seed: int, layer_idx: int, device: torch.device | str = "cpu", head: int | None = None
) -> Tensor:
    """The random keys of logical positions 0..length-1.

    Args:
        head: the kv head's number in its layer; None where all heads share the keys.

    Returns:
        int64 [length], non-negative, a function of (seed, layer_idx, head, position) alone (splitmix64).
    """
    position = torch.arange(length, dtype=torch.int64, device=device)
    use = 0 if head is None else _FIRST_HEAD + head
    return _shift_right(mixed(steps(position, stream(seed, layer_idx, use))), 1)


def permutation(
    length: int, seed: int, layer_idx: int, device: torch.device | str = "cpu", head: int | None = None
) -> Tensor:
    """The order of positions 0..length-1 by their random keys: int64 [length], `order[rank] = position`."""
    return torch.argsort(token_keys(length, seed, layer_idx, device, head), stable=True)


def inverse(order: Tensor) -> Tensor:
    """Ranks from an order (or the reverse): `inverse(order)[order[r]] = r`. int64 [length]."""
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(order.numel(), device=order.device)
    return ranks


def random_order(
    horizon: int, seed: int, layer_idx: int, run_size: int, head: int | None, device: torch.device
) -> Tensor:
    """The permuted order: int64 [horizon]; with a run size, every run of that many ranks is sorted by position."""
    order = permutation(horizon, seed, layer_idx, device, head)
    if not run_size:
        return order
    return torch.argsort(inverse(order) // run_size * horizon + torch.arange(horizon, device=device))
