"""Selected patterns with plain PyTorch, O(n w) time and O(n) memory beyond the inputs.

The heads that choose together and the queries of a tile attend together to one gathered list of keys: sinks, the tile's
local windows, and its blocks. Part of the `torch` kernel.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kernels.dense import causal, fused
from sa_patch.patterns import Selected

# Keys gathered at once, in entries: what stays in a CPU's caches; elsewhere few launches matter more.
_GATHERED_CPU, _GATHERED = 1 << 20, 1 << 26
_UNMASKED = 16  # with fewer keys and no mask, PyTorch's CPU kernel gives 0 where a query is NaN


@dataclass(frozen=True)
class _Lists:
    """Positions that are alike in every tile, relative to its first query, and who may see what of a tile's list.

    Attributes:
        near: the local windows of a tile's queries, int64 [local + query_block - 1].
        mask: bool [query_block, sinks + near + blocks], chosen blocks counted as there; None shows everything.
    """

    near: Tensor
    mask: Tensor | None


def selected(query: Tensor, key: Tensor, value: Tensor, pattern: Selected, scaling: float) -> Tensor:
    """Attention to the keys of the pattern: [batch, heads, query_len, head_dim].

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
    """
    if pattern.pooled and query.shape[0] > 1:  # as long as a row's own lists are: other rows don't change its rounding
        rows = enumerate(zip(query.split(1), key.split(1), value.split(1), strict=True))
        return torch.cat([selected(*heads, _of_row(pattern, row), scaling) for row, heads in rows])
    dense = min(max(0, pattern.whole - pattern.first), pattern.query_len)  # queries that see every earlier key
    skipped = dense // pattern.query_block
    outputs = [_tiles(query, key, value, pattern, scaling, skipped)]
    if dense:
        seen = pattern.first + dense
        outputs[0] = outputs[0][:, :, dense - skipped * pattern.query_block :]
        outputs.insert(0, causal(query[:, :, :dense], key[:, :, :seen], value[:, :, :seen], scaling))
    return torch.cat(outputs, dim=2)


def _of_row(pattern: Selected, row: int) -> Selected:
    """The pattern of one row of the batch, without places that none of its choosers needs."""
    assert pattern.selected is not None
    own = pattern.selected[row : row + 1]
    width = max(1, int((own >= 0).sum(-1).max()))
    return replace(pattern, selected=own[..., own.shape[-1] - width :])


def _tiles(query: Tensor, key: Tensor, value: Tensor, pattern: Selected, scaling: float, skipped: int) -> Tensor:
    """All tiles but the first `skipped` ones, surplus rows at the end cut off."""
    assert pattern.selected is not None
    size, selected = pattern.query_block, pattern.selected[:, :, skipped:]
    batch, choosers, tiles, _ = selected.shape
    query = query[:, :, skipped * size :]
    real = query.shape[2]
    query = F.pad(query, (0, 0, 0, tiles * size - real)).unflatten(2, (tiles, size))
    # [batch, choosers, tiles, heads of a chooser x queries of a tile, head_dim]
    rows = query.unflatten(1, (choosers, -1)).transpose(2, 3).flatten(3, 4)
    chosen = selected.shape[-1] * pattern.block_size
    lists = _lists(pattern, chosen, query.device)
    first = torch.arange(tiles, device=query.device) * size + pattern.first + skipped * size
    most = _GATHERED_CPU if query.device.type == "cpu" else _GATHERED
    shown = pattern.sinks + lists.near.numel() + chosen
    step = max(1, most // (batch * choosers * shown * key.shape[3]))
    found = []
    for start in range(0, tiles, step):
        chunk = slice(start, start + step)
        found.append(
            _attend(rows[:, :, chunk], key, value, first[chunk], selected[:, :, chunk], pattern, lists, scaling)
        )
    if not found:
        return query.new_empty(batch, query.shape[1], 0, key.shape[3])
    output = torch.cat(found, dim=2).unflatten(3, (-1, size))  # [batch, choosers, tiles, heads, queries, head_dim]
    return output.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :real]


def _attend(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    first: Tensor,
    selected: Tensor,
    pattern: Selected,
    lists: _Lists,
    scaling: float,
) -> Tensor:
    """Some tiles: rows [batch, choosers, tiles, r, head_dim] to the keys that their lists name."""
    batch, choosers, tiles = rows.shape[:3]
    kv_heads, length = key.shape[1], key.shape[2]
    block = torch.arange(pattern.block_size, device=key.device)
    chosen = (selected.clamp(min=0)[..., None] * pattern.block_size + block + pattern.sinks).flatten(3)
    alike = torch.arange(pattern.sinks, device=key.device).expand(tiles, -1), first[:, None] + lists.near
    index = torch.cat([*(one.expand(batch, choosers, -1, -1) for one in alike), chosen], dim=3)
    row = torch.arange(batch, device=key.device)[:, None] * kv_heads
    owner = (row + torch.arange(choosers, device=key.device) // (choosers // kv_heads)) * length
    flat = (index.clamp(min=0, max=length - 1) + owner[..., None, None]).flatten()
    keys, values = (
        tensor.reshape(-1, tensor.shape[-1]).index_select(0, flat).view(-1, 1, index.shape[-1], tensor.shape[-1])
        for tensor in (key, value)
    )
    mask = _mask(selected, pattern, lists, rows.shape[3] // pattern.query_block)
    return fused(rows.flatten(0, 2)[:, None], keys, values, scaling, mask).view(rows.shape)


def _lists(pattern: Selected, chosen: int, device: torch.device) -> _Lists:
    local, size = max(pattern.local, 1), pattern.query_block
    near = torch.arange(1 - local, size, device=device)
    if size == 1:
        return _Lists(near, None)
    row = torch.arange(size, device=device)[:, None]
    window = (near <= row) & (near > row - local)
    return _Lists(near, F.pad(window, (pattern.sinks, chosen), value=True))


def _mask(selected: Tensor, pattern: Selected, lists: _Lists, heads: int) -> Tensor | None:
    """bool, broadcastable to [batch x choosers x tiles, 1, rows, keys]; None where every row sees its whole list."""
    needed = selected.shape[-1] * pattern.block_size
    before = pattern.whole // pattern.query_block * pattern.query_block + 1 - max(pattern.local, 1) - pattern.sinks
    # Every tile beyond `whole` has as many blocks as it may choose.
    full = before >= needed and not pattern.pooled
    shown = pattern.sinks + lists.near.numel() + needed
    if full and lists.mask is None and shown >= _UNMASKED:
        return None
    base = lists.mask
    if base is None:
        base = torch.ones(1, shown, dtype=torch.bool, device=selected.device)
    base = base.repeat(heads, 1)[None, None]
    if full:
        return base
    there = (selected >= 0).flatten(0, 2).repeat_interleave(pattern.block_size, dim=1)
    return base & F.pad(there, (base.shape[-1] - needed, 0), value=True)[:, None, None]
