"""The gradients of `tiles_part`: tiles computed again, a chunk at a time. Belongs to the `torch` kernel."""

from collections.abc import Callable

import torch
from torch import Tensor

from sa_patch.kernels.merging import wide
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, Record, masked_gradients
from sa_patch.kernels.pytorch.tiles import Tiles, gather_tiles, join_tiles, keys_of_tiles
from sa_patch.patterns import Pattern

_CACHED = 1 << 21  # entries of a chunk on a CPU, per thread: fewer calls matter more than its smaller caches
_ROWS = 64  # queries of a causal tile that are computed in one step, with the keys up to the last of them

Add = Callable[[slice, Tensor, Tensor], None]


def tiles_gradients(record: Record, tiles: Tiles, exclude: Pattern | None = None) -> None:
    """Add the gradients of attention over the pairs of all tiles.

    Args:
        exclude: see `Tiles.mask`.
    """
    query, key = record.query, record.key
    if query.shape[0] > 1 and tiles.line is not None:  # views of a line exist for one sequence only
        for row in record.rows():
            tiles_gradients(row, tiles, exclude)
        return
    batch, first, rows = query.shape[0], key.shape[2] - query.shape[2], tiles.queries.shape[1]
    keys, values = keys_of_tiles(key, tiles), keys_of_tiles(record.value, tiles)
    copies = torch.arange(tiles.queries.numel(), device=query.device) >= query.shape[2]
    if tiles.slot is not None:
        copies = torch.ones_like(copies).index_fill(0, tiles.slot, False)
    copies = copies.view(-1, rows)
    add, finish = _adders(record, tiles)
    for chunk in tiles.chunks(_tiles_at_once(query, key, tiles)):
        index = tiles.queries[chunk] - first
        q, output, grad = (gather_tiles(x, index) for x in (query, record.output, record.grad))
        lse = None if record.lse is None else gather_tiles(record.lse[..., None], index)[..., 0]
        if tiles.slot is not None or chunk.stop == len(copies):
            # Without a gradient of its own, a copy of a query contributes nothing.
            grad = grad.masked_fill_(copies[chunk].repeat(batch, 1)[:, None, :, None], 0.0)
        shown = tiles.mask(chunk, exclude)
        if lse is not None and exclude is not None and exclude.weight:  # instead of raising the scores
            lse = lse - tiles.raised(chunk, shown, exclude).to(lse.dtype).repeat(batch, 1)[:, None]
        mask = shown[:, None] if batch == 1 else shown[:, None].repeat(batch, 1, 1, 1)
        gradients = _causal_gradients if tiles.causal else masked_gradients
        query_grad, *others = gradients(q, keys(chunk), values(chunk), mask, record.scaling, grad, output, lse)
        record.query_grad.index_add_(2, index.flatten(), join_tiles(query_grad, batch).to(record.query_grad.dtype))
        add(chunk, *others)
    finish()


def _tiles_at_once(query: Tensor, key: Tensor, tiles: Tiles) -> int:
    rows, span = tiles.queries.shape[1], tiles.keys.shape[1]
    if query.device.type != "cpu":
        return max(1, CHUNK_ENTRIES // (query.shape[0] * rows * query.shape[1] * max(span, query.shape[3])))
    # Of queries, outputs and their gradients; of keys, values and theirs.
    entries = 4 * query.shape[0] * query.shape[3] * (rows * query.shape[1] + span * key.shape[1])
    return max(1, _CACHED * torch.get_num_threads() // entries)


def _causal_gradients(query, key, value, mask, scaling, grad, output, lse) -> tuple[Tensor, Tensor, Tensor]:
    """`masked_gradients` of tiles whose queries are their keys: rows in steps that skip their future."""
    key_grad, value_grad = (torch.zeros_like(x, dtype=wide(query)) for x in (key, value))
    query_grads = []
    for start in range(0, query.shape[2], _ROWS):
        rows = slice(start, min(start + _ROWS, query.shape[2]))
        seen = slice(0, rows.stop)
        known = grad[:, :, rows], output[:, :, rows], None if lse is None else lse[:, :, rows]
        heads = query[:, :, rows], key[:, :, seen], value[:, :, seen]
        found = masked_gradients(*heads, mask[:, :, rows, seen], scaling, *known)
        query_grads.append(found[0])
        key_grad[:, :, seen] += found[1]
        value_grad[:, :, seen] += found[2]
    return torch.cat(query_grads, dim=2), key_grad, value_grad


def _adders(record: Record, tiles: Tiles) -> tuple[Add, Callable[[], None]]:
    """How a chunk's gradients of keys and values [batch * tiles, kv_heads, span, head_dim] are added to those of all
    keys; and what is left to do in the end."""
    grads, last = (record.key_grad, record.value_grad), record.key.shape[2] - 1
    batch, span = record.key.shape[0], tiles.keys.shape[1]

    def add_gathered(chunk: slice, *found: Tensor) -> None:
        index = tiles.keys[chunk].clamp(max=last).flatten()  # an empty slot is seen by nobody: it adds 0
        for grad, one in zip(grads, found, strict=True):
            grad.index_add_(2, index, join_tiles(one, batch).to(grad.dtype))

    if tiles.line is None or tiles.causal:  # tiles of runs don't overlap
        return add_gathered, lambda: None
    line, step = tiles.line
    lines = [grad.new_zeros(grad.shape[1], line.numel() + step, grad.shape[3]) for grad in grads]

    def add_to_lines(chunk: slice, *found: Tensor) -> None:
        # Neighbours overlap: the first `step` keys of all tiles, then the next ones.
        for start in range(0, span, step):
            stop = min(start + step, span)
            for target, one in zip(lines, found, strict=True):
                part = target.narrow(1, chunk.start * step + start, (chunk.stop - chunk.start) * step)
                part.unflatten(1, (-1, step))[:, :, : stop - start] += one[:, :, start:stop].transpose(0, 1)

    def finish() -> None:
        index = line.clamp(max=last)
        for grad, one in zip(grads, lines, strict=True):
            grad[0].index_add_(1, index, one[:, : index.numel()])

    return add_to_lines, finish
