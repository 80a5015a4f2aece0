"""Lines with plain PyTorch: work in proportion to the pairs, O(n) memory beyond the inputs.

Head by head, because every head has lines of its own: a head's result depends on no other head or row. Keys that all
queries of a stretch share (sinks, vertical lines) are one product; those of each query (local window, slash lines) are
gathered. Belongs to the `torch` kernel.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sa_patch.kernels.base import needs_gradients
from sa_patch.kernels.merging import wide
from sa_patch.patterns import Lines

# Entries gathered at once: on a CPU as many as stay in its cache; elsewhere fewer launches matter more.
_GATHERED_CPU, _GATHERED = 1 << 20, 1 << 25


class _Keys(NamedTuple):
    """What a stretch of q queries sees, each key once.

    Attributes:
        shared: int64 [s], positions; own: int64 [q, o], positions of each query.
        hidden: bool [q, s + o], those that a query does not see.
    """

    shared: Tensor
    own: Tensor
    hidden: Tensor


def lines(query: Tensor, key: Tensor, value: Tensor, pattern: Lines, scaling: float) -> Tensor:
    """Attention to own, line, sink and local keys.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].

    Returns:
        [batch, heads, query_len, head_dim] in query's dtype. Gradients compute each stretch again.
    """
    (batch, heads), group = query.shape[:2], query.shape[1] // key.shape[1]
    outputs = []
    for row in range(batch):
        for head in range(heads):
            of_head = query[row, head], key[row, head // group], value[row, head // group]
            outputs.append(_head(*of_head, pattern, pattern.verticals[row, head], pattern.slashes[row, head], scaling))
    return torch.stack(outputs).unflatten(0, (batch, heads))


def _head(
    query: Tensor, key: Tensor, value: Tensor, pattern: Lines, verticals: Tensor, slashes: Tensor, scaling: float
) -> Tensor:
    """One head: query [q, head_dim], key and value [n, head_dim], its lines as in the pattern."""
    verticals, slashes = (some[some < pattern.length] for some in (verticals, slashes))
    most = _GATHERED_CPU if query.device.type == "cpu" else _GATHERED
    step = max(1, most // ((max(pattern.local, 1) + slashes.numel()) * key.shape[1]))
    recorded, outputs = needs_gradients(query, key, value), []
    for start in range(0, pattern.query_len, step):
        rows = query[start : start + step]
        keys = _keys(pattern, verticals, slashes, pattern.first + start, pattern.first + start + len(rows))
        attend = partial(_attend, keys=keys, scaling=scaling)
        if recorded:
            outputs.append(checkpoint(attend, rows, key, value, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(attend(rows, key, value))
    return torch.cat(outputs)


def _keys(pattern: Lines, verticals: Tensor, slashes: Tensor, start: int, stop: int) -> _Keys:
    """The keys of the queries at positions start..stop-1; lines that none of them can see are left out."""
    reach, device = max(pattern.local, 1), verticals.device
    row = torch.arange(start, stop, device=device)[:, None]
    sinks = torch.arange(min(pattern.sinks, pattern.length), device=device)
    shared = torch.cat([sinks, verticals])
    shared = shared[shared < stop - reach]
    near = row - torch.arange(reach, device=device)
    far = row - slashes[slashes < stop - pattern.sinks]
    is_vertical = torch.zeros(pattern.length, dtype=torch.bool, device=device)
    is_vertical[verticals] = True
    hidden = [shared > row - reach, near < 0, (far < pattern.sinks) | is_vertical[far.clamp(min=0)]]
    return _Keys(shared, torch.cat([near, far], dim=1).clamp(min=0), torch.cat(hidden, dim=1))


def _attend(query: Tensor, key: Tensor, value: Tensor, *, keys: _Keys, scaling: float) -> Tensor:
    exact, count = wide(query), keys.shared.numel()
    rows = query.to(exact) * scaling
    shared, own = key[keys.shared].to(exact), key[keys.own].to(exact)
    scores = torch.cat([rows @ shared.transpose(0, 1), (own @ rows[..., None])[..., 0]], dim=1)
    weights = scores.masked_fill(keys.hidden, -torch.inf).softmax(dim=1)
    output = weights[:, :count] @ value[keys.shared].to(exact)
    output = output + (weights[:, None, count:] @ value[keys.own].to(exact))[:, 0]
    return output.to(query.dtype)
