"""What a patched model's layers see on a real prompt: coverage where content decides, kept attention mass, a needle.

The patch's own run is watched (`State.observer`); nothing that the model computes changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sa_patch.analysis import layers
from sa_patch.analysis.coverage import Coverage, Found, distances_of, summarise
from sa_patch.counting import triangle
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern
from sa_patch.variants.base import Variant

if TYPE_CHECKING:
    from sa_patch.patch import Patch

LONGEST = 4096  # tokens where masks and their products are held whole
QUERIES = 512  # looked at per prompt where attention weights are computed
_SCORES = 1 << 23  # attention scores at once
See = Callable[[int, Pattern, Tensor, Tensor, float], None]


@dataclass(frozen=True, eq=False)
class KeptMass:
    """How much of full attention's probability a variant's visible keys hold.

    Attributes:
        mass: float64 [layers, heads], mean over the queries looked at; 1 where a layer shows everything.
        queries: how many of the prompt's were looked at, evenly spread.
    """

    mass: Tensor
    length: int
    queries: int


@dataclass(frozen=True, eq=False)
class NeedleSight:
    """Which layers see a needle.

    Attributes:
        share: float64 [layers, heads], the share of the needle's tokens among the query's visible keys.
        connected: per layer, the share of the needle's tokens whose content can have reached the query after that
            layer, through any heads of the layers up to it.
        needle: first and last position. query: its position.
    """

    share: Tensor
    connected: tuple[float, ...]
    needle: tuple[int, int]
    query: int


def prompt_coverage(patch: Patch, prompts: Tensor | Sequence[Tensor]) -> Coverage:
    """`coverage`, measured while a patched model reads prompts: for variants whose keys depend on the content.

    A layer connects what any of its heads shows, for their outputs are added. Exact: every pair is looked at.

    Args:
        prompts: token ids [n] or [prompts, n], or several [n] of one length, at most 4,096 tokens; each is read on its
            own. Intervals are over prompts (a second one makes them).

    Raises:
        ValueError: for prompts of several lengths, or longer ones.
        RuntimeError: for a patch that does not run.
    """
    rows = _prompts(prompts)
    length = len(rows[0])
    if length > LONGEST:
        raise ValueError(
            f"the prompts have {length:,} tokens: what layers connect is held as n x n matrices here, up to "
            f"{LONGEST:,} tokens; sa_patch.analysis.coverage takes longer ones where content decides nothing"
        )
    found = [_connected(patch, row) for row in rows]
    return summarise(
        found,
        name=f"{' and '.join(one.name for one in patch.plan.distinct)} on {len(rows)} prompt(s)",
        length=length,
        seeds=(),
        causal=True,
        sources=length,
        exact=True,
        single=False,
        expected=None,
    )


def kept_mass(patch: Patch, input_ids: Tensor) -> KeptMass:
    """The share of full attention's probability that a patch's visible keys hold, per layer and head.

    The model reads the prompt with full attention; its queries and keys decide the weights, and what a router would
    choose. So every layer answers for itself. At most 512 queries, evenly spread, are looked at.

    Args:
        input_ids: [n] or [1, n].

    Raises:
        ValueError: for several prompts.
    """
    from sa_patch.api import apply

    row = _single(input_ids)
    queries = torch.arange(0, len(row), max(1, -(-len(row) // QUERIES)))
    kept: dict[int, Tensor] = {}

    def see(layer: int, pattern: Pattern, query: Tensor, key: Tensor, scaling: float) -> None:
        kept[layer] = _mass(pattern, query[0], key[0], scaling, queries.to(query.device))

    with apply(patch.model, "full") as full:
        _read(full, row, _with_patterns(patch, see))
    return KeptMass(torch.stack([kept[layer] for layer in range(patch.num_layers)]), len(row), len(queries))


def needle_sight(patch: Patch, input_ids: Tensor, needle: range, query: int = -1) -> NeedleSight:
    """Which layers and heads of a patched model show a needle to a query, and which can have been told of it.

    Args:
        input_ids: [n] or [1, n], at most 4,096 tokens.
        needle: the needle's positions.
        query: the position that should know; the last one by default.

    Raises:
        ValueError: for a needle that is not before the query, or a longer prompt.
    """
    row = _single(input_ids)
    length = len(row)
    position = query % length if -length <= query < length else length
    if not needle or needle.step != 1 or needle.start < 0 or needle.stop - 1 > position or position >= length:
        raise ValueError(
            f"needle={needle!r} must be consecutive positions up to query={query} of a prompt of {length} tokens"
        )
    if length > LONGEST:
        raise ValueError(f"the prompt has {length:,} tokens, a needle is followed through up to {LONGEST:,}")
    shares: list[Tensor] = []
    connected: list[float] = []
    reached = torch.eye(length)[:, needle.start : needle.stop]

    def see(layer: int, pattern: Pattern, query_heads: Tensor, key: Tensor, scaling: float) -> None:
        nonlocal reached
        mask = pattern.visible().cpu()
        heads = mask[0] if mask.dim() == 4 else mask.expand(query_heads.shape[1], *mask.shape)
        shares.append(heads[:, position, needle.start : needle.stop].double().mean(-1))
        reached = ((heads.any(0).float() @ reached) > 0).float()
        connected.append(float(reached[position].mean()))

    _read(patch, row, _with_patterns(patch, see))
    return NeedleSight(torch.stack(shares), tuple(connected), (needle.start, needle.stop - 1), position)


def _connected(patch: Patch, row: Tensor) -> Found:
    length = len(row)
    reached, shares, whole, by_distance = torch.eye(length), [], [], []
    distance = torch.arange(length)[:, None] - torch.arange(length)
    bins = [(distance >= low) & (distance <= high) for low, high in distances_of(length)]

    def see(layer: int, pattern: Pattern, query: Tensor, key: Tensor, scaling: float) -> None:
        nonlocal reached
        mask = pattern.visible().cpu()
        mask = mask[0].any(0) if mask.dim() == 4 else mask
        reached = ((mask.float() @ reached) > 0).float()
        count = int(reached.sum())
        shares.append(count / triangle(length))
        whole.append(count == triangle(length))
        by_distance.append([float(reached[some].mean()) for some in bins])

    _read(patch, row, _with_patterns(patch, see))
    return Found(shares, whole, by_distance)


def _with_patterns(patch: Patch, see: See) -> Callable[[int, Tensor, Tensor, Tensor, float], None]:
    """An observer that is told each layer's pattern for what the layer got."""
    variants: tuple[Variant, ...] = patch.plan.variants

    def observe(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        group = Group(key.shape[2], query.shape[2], query.device)
        pattern = layers.pattern_of(variants[layer], group, layer, len(variants), query.dtype, query, key)
        see(layer, pattern, query, key, scaling)

    return observe


def _mass(pattern: Pattern, query: Tensor, key: Tensor, scaling: float, positions: Tensor) -> Tensor:
    """Mean visible share of full attention's weights at some queries: float64 [heads].

    Args:
        query: [heads, n, head_dim]; key: [kv_heads, n, head_dim].
    """
    heads, length, dim = query.shape
    total = torch.zeros(heads, dtype=torch.float64)
    for rows in positions.split(max(1, _SCORES // (heads * length))):
        grouped = query[:, rows].float().reshape(key.shape[0], -1, dim)
        scores = (grouped @ key.float().transpose(-1, -2) * scaling).reshape(heads, len(rows), length)
        later = torch.arange(length, device=query.device) > rows[:, None]
        weights = scores.masked_fill_(later, -torch.inf).softmax(-1)
        visible = pattern.visible(rows)
        visible = visible[0] if visible.dim() == 4 else visible
        total += (weights * visible).sum((1, 2)).double().cpu()
    return total / len(positions)


def _read(patch: Patch, row: Tensor, observe: Callable[[int, Tensor, Tensor, Tensor, float], None]) -> None:
    """Let the model read one prompt while its layers are watched."""
    from sa_patch import integration

    if not patch.active:
        raise RuntimeError("this patch does not run (restored or replaced): apply it again")
    seen: list[int] = []

    def count(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        observe(layer, query, key, value, scaling)
        seen.append(layer)

    model: Any = patch.model
    with _watched(patch, count), torch.no_grad():
        model(input_ids=row[None].to(integration.device(model)), use_cache=False)
    if seen != list(range(patch.num_layers)):
        raise RuntimeError("the layers could not be watched: a compiled model shows nothing, use it uncompiled")


@contextmanager
def _watched(patch: Patch, observe: Callable[[int, Tensor, Tensor, Tensor, float], None]) -> Iterator[None]:
    state = patch._state
    before, state.observer = state.observer, observe
    try:
        yield
    finally:
        state.observer = before


def _prompts(prompts: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(prompts, Tensor):
        rows = list(prompts) if prompts.dim() == 2 else [prompts]
    else:
        rows = [_single(row) for row in prompts]
    lengths = sorted({len(row) for row in rows if row.dim() == 1 and len(row)})
    if len(lengths) != 1 or any(row.dim() != 1 or not len(row) for row in rows):
        raise ValueError(f"prompts must be token ids [n] of one length, got lengths {lengths}: cut them to one")
    return rows


def _single(input_ids: Tensor) -> Tensor:
    row = input_ids[0] if input_ids.dim() == 2 and len(input_ids) == 1 else input_ids
    if row.dim() != 1 or not len(row):
        raise ValueError(f"input_ids must be one prompt, [n] or [1, n], got {list(input_ids.shape)}")
    return row
