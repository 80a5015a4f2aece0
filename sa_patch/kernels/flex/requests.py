"""Selected runs for FlexAttention: queries collected by the run they want, as blocks of one long sequence.

Belongs to the `flex` kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from sa_patch.kernels.flex import block_masks
from sa_patch.kernels.requests import make_requests
from sa_patch.patterns import Blocks


@dataclass(frozen=True, eq=False)
class Asked:
    """(query, run) pairs in blocks that want one run, against the keys of all kv heads in one line.

    Attributes:
        rows: int64 [tiles * BLOCK], an index into batch x heads x queries: the query in each slot.
        target: int64 [tiles * BLOCK], an index into batch x heads x queries x chosen: the pair in each slot. Its size
            marks empty slots.
        mask: the block mask, [tiles * BLOCK, batch * kv_heads * length].
    """

    rows: Tensor
    target: Tensor
    mask: BlockMask


def ask(blocks: Blocks, kv_heads: int) -> Asked:
    """The selected runs of a pattern, without the pairs that sinks and local window show.

    A block of neighbouring queries would need the union of their runs, which soon is all of them. So a block has
    queries that want one run, whatever their heads and positions. Doesn't wait for the device.
    """
    assert blocks.selected is not None
    wanted, total = make_requests(blocks, kv_heads, block_masks.BLOCK), blocks.selected.numel()
    device, length, tiles = blocks.selected.device, blocks.length, wanted.tile_run.numel()
    slot = torch.arange(block_masks.BLOCK, device=device)
    pair = wanted.order[(wanted.tile_start[:, None] + slot).clamp(max=total - 1)]
    target = torch.where(slot < wanted.tile_count[:, None], pair, total).flatten()
    rows = pair.flatten() // wanted.num_chosen
    line = wanted.tile_run // wanted.num_runs * length
    begin = wanted.tile_run % wanted.num_runs * blocks.block_size
    low, high = line + begin.clamp(min=blocks.sinks), line + begin + blocks.block_size
    first_block, busy = low // block_masks.BLOCK, wanted.tile_count > 0
    index = first_block[:, None] + torch.arange(-(-blocks.block_size // block_masks.BLOCK) + 1, device=device)
    seen = (index * block_masks.BLOCK < high[:, None]) & busy[:, None] & (low < high)[:, None]
    keys = blocks.selected.shape[0] * kv_heads * length
    full = (
        seen
        & (index * block_masks.BLOCK >= low[:, None])
        & ((index + 1) * block_masks.BLOCK <= high[:, None])
        & (blocks.local <= 1)
    )
    index = index.clamp(max=-(-keys // block_masks.BLOCK) - 1)
    # The last key before each query's local window, as an index into the line of keys.
    near = line.repeat_interleave(block_masks.BLOCK) + rows % blocks.query_len + blocks.first - blocks.local
    shown = _in_run(*(x.int() for x in (low, high, near)))
    mask = block_masks.block_mask(
        *block_masks.compact(index, seen & ~full),
        *block_masks.compact(index, full),
        shown,
        tiles * block_masks.BLOCK,
        keys,
    )
    return Asked(rows, target, mask)


def _in_run(low: Tensor, high: Tensor, near: Tensor) -> Callable:
    """FlexAttention's mask function: the keys low <= key < high of a tile's run, with key <= near of the query."""

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        tile = query // block_masks.BLOCK
        return (key >= low[tile]) & (key < high[tile]) & (key <= near[query])

    return mask_mod
