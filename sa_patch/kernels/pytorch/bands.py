"""Band patterns: the queries in the order of their ranks, cut into tiles. Belongs to the `torch` kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kernels.merging import Part
from sa_patch.kernels.pytorch.parts import Record
from sa_patch.kernels.pytorch.tile_gradients import tiles_gradients
from sa_patch.kernels.pytorch.tiles import Tiles, tiles_part
from sa_patch.patterns import Band
from sa_patch.randomness import inverse

_ROWS = 64  # queries per tile, where enough of them lie close together


def band_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    scaling: float,
    *,
    split: bool,
    with_lse: bool = False,
    into: Tensor | None = None,
) -> Part:
    """Attention to the keys that are near by rank.

    Args:
        split: sinks and local window are parts of their own, to be merged: leave out the pairs that they show.
        with_lse: return the log-sum-exp where nothing is merged, too.
        into: where the output goes; a new tensor if None.
    """
    tiles, exclude = band_tiles(band, query.device), band if split else None
    return tiles_part(query, key, value, tiles, scaling, with_lse=split or with_lse, exclude=exclude, into=into)


def band_gradients(record: Record, band: Band, *, split: bool) -> None:
    """Add the gradients of `band_part`."""
    tiles_gradients(record, band_tiles(band, record.query.device), band if split else None)


def band_tiles(band: Band, device: torch.device) -> Tiles:
    """Cut the queries, sorted by rank, into tiles; a tile's keys are the tokens whose ranks are near any of its own.

    Work is O(query_len (rows + width)) pairs. Tokens of the horizon beyond `length` take no slots.
    """
    positions = torch.arange(band.first, band.length, device=device)
    if band.order is None:
        rank, by_rank = positions, positions - band.first
    else:
        rank = inverse(band.order)[positions]
        by_rank = torch.argsort(rank)
    rows = _rows(band)
    num_tiles = -(-band.query_len // rows)
    # The last tile is filled up with copies of the last query, whose results are dropped.
    index = torch.arange(num_tiles * rows, device=device).clamp(max=band.query_len - 1)
    # Masks compare these by the million: 32 bits halve the traffic.
    queries, query_rank = (x[by_rank][index].view(-1, rows).int() for x in (positions, rank))
    token, token_rank = (x.int() for x in _tokens_by_rank(band, device))
    if band.query_len == band.horizon:
        return _even_tiles(band, queries, token)
    low = torch.searchsorted(token_rank, query_rank[:, 0] - band.width, right=True)
    # In the identity order the later half of the band is in the future.
    reach = 1 if band.order is None else band.width
    count = torch.searchsorted(token_rank, query_rank[:, -1] + reach) - low
    offset = torch.arange(int(count.max()), device=device)
    slots = (low[:, None] + offset).clamp(max=token.numel() - 1)
    keys = torch.where(offset < count[:, None], token[slots], band.length)
    key_rank = token_rank[slots]

    def near(chunk: slice) -> Tensor:
        return (query_rank[chunk, :, None] - key_rank[chunk, None]).abs() < band.width

    return Tiles(queries, keys, near=near, ordered=band.order is None)


def _even_tiles(band: Band, queries: Tensor, token: Tensor) -> Tiles:
    """Tiles where every token is a query: the keys of the next tile are those of this one, moved on by `rows` ranks."""
    num_tiles, rows = queries.shape
    side = band.width - 1
    span = rows + (1 if band.order is None else 2) * side
    before = 0 if band.circular else side  # a ring has tokens beyond its ends already, others get empty slots
    after = (num_tiles - 1) * rows + span - before - token.numel()
    line = F.pad(token, (before, max(0, after)), value=band.length)
    row = torch.arange(rows, device=token.device)
    distance = torch.arange(span, device=token.device) - side - row[:, None]
    shared = distance.abs() < band.width
    surplus = torch.arange(num_tiles * rows, device=token.device).view(-1, rows) >= band.query_len

    def near(chunk: slice) -> Tensor:
        # Surplus rows are copies; they see something so that no softmax is empty and no gradient NaN.
        return shared | surplus[chunk, :, None] if chunk.stop == num_tiles else shared

    alike = None
    if band.order is None:
        # Between the first tiles, where keys are missing, and the last one, with copies, all masks are the same.
        full = -(-side // rows), band.query_len // rows
        alike = None if full[0] >= full[1] else ((shared & (distance <= 0))[None], *full)
    keys = line.unfold(0, span, rows)[:num_tiles]
    return Tiles(queries, keys, near=near, line=(line, rows), alike=alike, ordered=band.order is None)


def _rows(band: Band) -> int:
    """Queries per tile: few where their ranks are far apart, or a tile would need keys from everywhere."""
    apart = band.horizon / band.query_len if band.order is not None else 1
    close = 2 * band.width / apart
    return min(_ROWS, band.query_len, 1 << max(0, int(close).bit_length() - 1))


def _tokens_by_rank(band: Band, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens below `length` in the order of their ranks, and the ranks; a ring is continued at both ends."""
    if band.order is None:
        position = torch.arange(band.length, device=device)
        return position, position
    rank = torch.arange(band.horizon, device=device)
    if band.circular:
        rank = torch.arange(1 - band.width, band.horizon + band.width - 1, device=device)
    token = band.order[rank % band.horizon]
    if band.length == band.horizon:
        return token, rank
    present = token < band.length
    return token[present], rank[present]
