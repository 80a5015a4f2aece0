"""Scattered patterns with plain PyTorch: O(n w) work and O(n) memory beyond the inputs and the pattern.

The first queries have few earlier keys in all: one masked call over them is faster. For later queries, every query's
own keys are gathered, sinks and local window among them. Belongs to the `torch` kernel.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sa_patch.kernels.base import needs_gradients
from sa_patch.kernels.dense import fused
from sa_patch.kernels.merging import wide
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES
from sa_patch.patterns import Scattered

# A masked call is faster while there are up to this many keys for every visible one (one core, float32, the shapes of
# benchmarks/attention.py, windows 32 to 512).
_DENSE_KEYS = 16
# Entries gathered at once: on a CPU as many as stay in its cache; elsewhere fewer launches matter more.
_GATHERED_CPU, _GATHERED = 1 << 18, 1 << 25


def scattered(query: Tensor, key: Tensor, value: Tensor, pattern: Scattered, scaling: float) -> Tensor:
    """Attention to own, drawn, sink and local keys.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].

    Returns:
        [batch, heads, query_len, head_dim] in query's dtype. Gradients compute each stretch again.
    """
    recorded = needs_gradients(query, key, value)
    outputs, start = [], 0
    while start < pattern.query_len:
        stop, dense = _stretch(start, pattern, query, key)
        step = partial(_masked if dense else _gathered, pattern=pattern, scaling=scaling, start=start, stop=stop)
        if recorded:
            outputs.append(checkpoint(step, query, key, value, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(step(query, key, value))
        start = stop
    return torch.cat(outputs, dim=2)


def _stretch(start: int, pattern: Scattered, query: Tensor, key: Tensor) -> tuple[int, bool]:
    """Where the stretch of queries that begins at `start` ends, and whether it is computed with a mask."""
    shown = pattern.keys.shape[1] + pattern.sinks + max(pattern.local, 1)
    few = _DENSE_KEYS * shown - pattern.first  # queries that have few keys in all
    if start < few:
        rows = max(1, CHUNK_ENTRIES // (4 * min(_DENSE_KEYS * shown, pattern.length)))
        return min(start + rows, few, pattern.query_len), True
    most = _GATHERED_CPU if query.device.type == "cpu" else _GATHERED
    rows = max(1, most // (shown * query.shape[0] * key.shape[1] * key.shape[3]))
    return min(start + rows, pattern.query_len), False


def _masked(
    query: Tensor, key: Tensor, value: Tensor, *, pattern: Scattered, scaling: float, start: int, stop: int
) -> Tensor:
    seen = pattern.first + stop
    stretch = replace(pattern, length=seen, query_len=stop - start, keys=pattern.keys[start:stop])
    return fused(query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen], scaling, stretch.visible())


def _gathered(
    query: Tensor, key: Tensor, value: Tensor, *, pattern: Scattered, scaling: float, start: int, stop: int
) -> Tensor:
    index, there = _keys(pattern, start, stop)
    exact = wide(query)
    rows = query[:, :, start:stop].unflatten(1, (key.shape[1], -1)).transpose(2, 3).to(exact)
    keys, values = (
        tensor.index_select(2, index.flatten()).unflatten(2, index.shape).to(exact) for tensor in (key, value)
    )
    scores = (rows @ keys.transpose(-1, -2) * scaling).masked_fill(~there[:, None], -torch.inf)
    return (scores.softmax(dim=-1) @ values).transpose(2, 3).flatten(1, 2).to(query.dtype)


def _keys(pattern: Scattered, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """What some queries see, each key once: positions int64 [stop - start, k], and which of them are keys: bool."""
    drawn = pattern.keys[start:stop]
    row = torch.arange(pattern.first + start, pattern.first + stop, device=drawn.device)[:, None]
    near = row - torch.arange(max(pattern.local, 1), device=drawn.device)
    sinks = torch.arange(pattern.sinks, device=drawn.device).expand(row.numel(), -1)
    apart = row - near.shape[1]  # the last key before the local window
    there = [near >= 0, sinks <= apart, (drawn >= pattern.sinks) & (drawn <= apart)]
    return torch.cat([near.clamp(min=0), sinks, drawn.clamp(min=0)], dim=1), torch.cat(there, dim=1)
