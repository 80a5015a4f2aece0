"""Bands and blocks, and pieces of them, as disjoint sets of keys: own part, sinks and local window.

Belongs to the `torch` kernel.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from sa_patch.kernels.dense import causal
from sa_patch.kernels.merging import Part, merge
from sa_patch.kernels.pytorch.bands import band_gradients, band_part
from sa_patch.kernels.pytorch.blocks import blocks_gradients, blocks_part
from sa_patch.kernels.pytorch.parts import Record, empty_part, sinks_gradients, sinks_part
from sa_patch.patterns import Band, Blocks, Dense, Pieces

Simple = Band | Blocks | Dense


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Simple | Pieces,
    scaling: float,
    *,
    with_lse: bool,
    into: Tensor | None = None,
) -> Part:
    """Attention to the keys of a pattern.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        with_lse: return the log-sum-exp in any case; else only where parts were merged.
        into: where the output goes, in the dtype it has; a new tensor if None.

    Returns:
        (output [batch, heads, query_len, head_dim], log-sum-exp [batch, heads, query_len] or None)
    """
    if isinstance(pattern, Pieces):
        output, lse = empty_part(query, with_lse=with_lse, into=into)
        for piece, rows in _pieces(pattern):
            seen = key[:, :, : piece.length], value[:, :, : piece.length]
            if piece.covers_all and not with_lse:
                output[:, :, rows] = causal(query[:, :, rows], *seen, scaling)
                continue
            settings = {"with_lse": with_lse, "into": output[:, :, rows]}
            _, piece_lse = attention(query[:, :, rows], *seen, piece, scaling, **settings)
            if lse is not None and piece_lse is not None:
                lse[:, :, rows] = piece_lse
        return output, lse
    own, near = _split(pattern)
    alone = not own.sinks and near is None
    settings = {"split": not alone, "with_lse": with_lse, "into": into if alone else None}
    if isinstance(own, Band):
        parts = [band_part(query, key, value, own, scaling, **settings)]
    else:
        parts = [blocks_part(query, key, value, own, scaling, **settings)]
    if alone:
        return parts[0]
    if own.sinks:
        parts.append(sinks_part(query, key, value, own.sinks, scaling))
    if near is not None:
        parts.append(band_part(query, key, value, near, scaling, split=True))
    output, lse = merge(parts)
    return output if into is None else into.copy_(output), lse


def add_gradients(record: Record, pattern: Simple | Pieces) -> None:
    """Add the gradients of `attention`."""
    if isinstance(pattern, Pieces):
        for piece, rows in _pieces(pattern):
            add_gradients(record.stretch(rows, piece.length), piece)
        return
    own, near = _split(pattern)
    alone = not own.sinks and near is None
    if isinstance(own, Band):
        band_gradients(record, own, split=not alone)
    else:
        blocks_gradients(record, own, split=not alone)
    if own.sinks:
        sinks_gradients(record, own.sinks)
    if near is not None:
        band_gradients(record, near, split=True)


def joins(pattern: Pieces) -> bool:
    """Whether all pieces can be computed here."""
    return all(isinstance(piece, Simple) and not piece.tail for piece in pattern.pieces)


def _pieces(pattern: Pieces) -> Iterator[tuple[Simple, slice]]:
    """The pieces, and which of the pattern's queries are theirs."""
    for piece in pattern.pieces:
        assert isinstance(piece, Simple), "joins() was not asked"
        yield piece, slice(piece.first - pattern.first, piece.length - pattern.first)


def _split(pattern: Simple) -> tuple[Band | Blocks, Band | None]:
    """The pattern, and its local window as one of its own where it shows anything else."""
    if isinstance(pattern, Dense):
        return Band(length=pattern.length, query_len=pattern.query_len, width=pattern.length), None
    if isinstance(pattern, Band) and pattern.order is None and not pattern.circular and pattern.local <= pattern.width:
        pattern = replace(pattern, local=0)  # a sliding window holds a local window that is no wider
    if pattern.weight:  # sampled keys are a part of their own: the query itself is none of them
        pattern = replace(pattern, local=max(pattern.local, 1))
    if not pattern.local:
        return pattern, None
    near = Band(length=pattern.length, query_len=pattern.query_len, sinks=pattern.sinks, width=pattern.local)
    return pattern, near
