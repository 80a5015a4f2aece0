"""What a kernel says to a variant before there is a prompt: asked about a short pattern of the same build."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sa_patch import kernels
from sa_patch.geometry import Group
from sa_patch.kernels.rules import layout_of
from sa_patch.patterns import Heads, Pattern, Pieces
from sa_patch.variants.base import CPU, Variant
from sa_patch.variants.options import options_of

_LARGEST = 128  # a window up to this is tried as it is
_LENGTHS = ("dense_below", "dense_layers", "dense_tail")  # say nothing about how a pattern is built
_SMALL = {"window": 64, "sinks": 2, "local": 4}
_BUILD = ("choice", "switch")  # kinds of options that say how a pattern is built; others say how large it is


def refusal(
    kernel: str, variant: Variant, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> str | None:
    """Why a kernel can't run a variant's prompts on such tensors, whatever their length; None when nothing is known
    against it. The kernel is asked, nothing is computed with it."""
    asked = () if kernel in ("auto", "reference") or variant.always_dense else variant.branches
    for piece in (piece for branch in asked for piece in _probed(branch)):
        query, key = (
            torch.empty(1, 1, 1, head_dim, device=device, dtype=dtype).expand(1, count, size, head_dim)
            for count, size in ((heads, piece.query_len), (kv_heads, piece.length))
        )
        reason = kernels.get(kernel).refusal(piece, query, key, key)
        if reason:
            return reason
    return None


def probe(variant: Variant) -> Pattern | None:
    """A short prompt's pattern of a variant, or of a small one built alike; None where neither can be made."""
    for small in _candidates(variant):
        length = 4 * small.window_at(_LARGEST) + 8  # no variant sees all of it
        pattern = make_pattern(small, *_random(length))
        if any(not piece.covers_all for piece in pieces_of(pattern)):
            return pattern
    return None


def layouts_of(variant: Variant) -> list[str]:
    """How the keys of a variant's patterns lie in memory, see `rules.layout_of`; none where it shows everything."""
    asked = () if variant.always_dense else variant.branches
    return sorted({layout_of(piece) for branch in asked for piece in _probed(branch)})


def _probed(variant: Variant) -> list[Pattern]:
    pattern = probe(variant)
    return pieces_of(pattern) if pattern else []


def make_pattern(variant: Variant, query: Tensor, key: Tensor) -> Pattern:
    """The pattern of layer 0 for [batch, heads, q, head_dim] and [batch, kv_heads, n, head_dim]."""
    return variant.sparse_pattern(Group(key.shape[2], query.shape[2], query.device), 0, query, key)


def pieces_of(pattern: Pattern) -> list[Pattern]:
    """The pieces that kernels are asked about: what shows everything is left out."""
    if isinstance(pattern, Heads):
        return [piece for one in pattern.of_head for piece in pieces_of(one)]
    found = pattern.pieces if isinstance(pattern, Pieces) else (pattern,)
    return [piece for piece in found if not piece.covers_all]


def _random(length: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, length, 8, generator=source, device=CPU) for _ in range(2))
    return query, key


def _candidates(variant: Variant) -> Iterator[Variant]:
    if variant.window_at(_LARGEST) <= _LARGEST:
        yield variant
    options = [item for item in options_of(type(variant)) if item.name not in _LENGTHS]
    sizes = {name: size for name, size in _SMALL.items() if getattr(variant, name, 0)}
    for kept in (options, [item for item in options if item.kind in _BUILD]):
        try:
            yield type(variant)(**{**{item.name: getattr(variant, item.name) for item in kept}, **sizes})
        except (ValueError, TypeError, NotImplementedError):
            continue  # sizes that belong to the window
