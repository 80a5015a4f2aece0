"""Band patterns in O(n w) time and memory with plain PyTorch.

Tokens are laid out by rank; a tile of consecutive ranks then sees one contiguous span of ranks, an overlapping view of
the sorted keys that is never copied. Part of the `torch` kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.partial import CHUNK_ENTRIES, Part, attend
from sa_patch.patterns import Band
from sa_patch.randomness import inverse


class _Layout:
    """How one Band falls into tiles: `num_tiles` tiles of `tile` query ranks, each seeing `span` ranks of keys.

    Slot s of tile t is rank t * tile - before + s; ring patterns wrap, others have empty slots at both ends.
    """

    def __init__(self, band: Band, device: torch.device):
        self.band, length = band, band.length
        self.tile = min(64, length)
        self.num_tiles = -(-length // self.tile)
        self.before = band.width - 1
        # In the identity order the later half of the band is in the future: no slots for it.
        one_sided = band.order is None and not band.circular
        self.span = self.tile + (1 if one_sided else 2) * (band.width - 1)
        self.padded = self.num_tiles * self.tile
        slots = torch.arange((self.num_tiles - 1) * self.tile + self.span, device=device) - self.before
        order = torch.arange(length, device=device) if band.order is None else band.order
        self.query_order = F.pad(order, (0, self.padded - length))
        self.key_order = order[slots % length if band.circular else slots.clamp(0, length - 1)]
        in_range = (slots >= 0) & (slots < length) if not band.circular else torch.ones_like(slots, dtype=torch.bool)
        self.key_position = torch.where(in_range, self.key_order, length)
        offset = torch.arange(self.span, device=device) - self.before - torch.arange(self.tile, device=device)[:, None]
        self.near = offset.abs() < band.width

    def tiles(self, keys: Tensor, start: int, stop: int) -> Tensor:
        """View of sorted keys [kv_heads, slots, head_dim] as tiles [stop - start, kv_heads, span, head_dim]."""
        return keys.unfold(1, self.span, self.tile)[:, start:stop].permute(1, 0, 3, 2)

    def mask(self, start: int, stop: int, exclude_extras: bool) -> Tensor:
        """Visible (query, slot) pairs of some tiles: bool [tiles, tile, span]."""
        length = self.band.length
        rank = torch.arange(start * self.tile, stop * self.tile, device=self.near.device).view(-1, self.tile, 1)
        row = self.query_order[start * self.tile : stop * self.tile].view(-1, self.tile, 1)
        key = self.key_position.unfold(0, self.span, self.tile)[start:stop, None]
        mask = self.near & (key <= row)
        if exclude_extras:
            mask &= (key >= self.band.sinks) & (row - key >= self.band.local)
        # Ranks past the end are no queries; they see something so that no softmax is empty and no gradient NaN.
        return mask | (rank >= length) & (key < length)


def attend_band(query: Tensor, key: Tensor, value: Tensor, band: Band, scaling: float, *, part: bool) -> Part:
    """The band of every query.

    Args:
        query: [batch, heads, n, head_dim]; key, value: [batch, kv_heads, n, head_dim].
        part: leave out the pairs that sinks and local open, and return what `merge` needs.

    Returns:
        (output [batch, heads, n, head_dim], log-sum-exp [batch, heads, n] or None)
    """
    layout = _Layout(band, query.device)
    rows = [_attend_row(q, k, v, layout, scaling, part) for q, k, v in zip(query, key, value, strict=True)]
    place = torch.arange(band.length, device=query.device) if band.order is None else inverse(band.order)
    output = torch.stack([row for row, _ in rows]).index_select(2, place)
    return output, torch.stack([lse for _, lse in rows if lse is not None]).index_select(2, place) if part else None


def _attend_row(query: Tensor, key: Tensor, value: Tensor, layout: _Layout, scaling: float, part: bool) -> Part:
    """One sequence: query [heads, n, head_dim], key and value [kv_heads, n, head_dim]; results ordered by rank."""
    heads, head_dim = query.shape[0], query.shape[-1]
    queries = query.index_select(1, layout.query_order).view(heads, layout.num_tiles, layout.tile, head_dim)
    keys, values = key.index_select(1, layout.key_order), value.index_select(1, layout.key_order)
    step = max(1, CHUNK_ENTRIES // (layout.tile * layout.span * (heads if part else 1)))
    outputs, lses = [], []
    for start in range(0, layout.num_tiles, step):
        stop = min(start + step, layout.num_tiles)
        tile = queries[:, start:stop].transpose(0, 1)
        near = layout.tiles(keys, start, stop), layout.tiles(values, start, stop)
        mask = layout.mask(start, stop, part)
        if part:
            output, lse = attend(tile, *near, mask[:, None], scaling)
            lses.append(lse)
        else:
            output = fused(tile, *near, scaling, mask[:, None])
        outputs.append(output)
    output = torch.cat(outputs).transpose(0, 1).reshape(heads, layout.padded, head_dim)
    return output, torch.cat(lses).transpose(0, 1).reshape(heads, layout.padded) if part else None
