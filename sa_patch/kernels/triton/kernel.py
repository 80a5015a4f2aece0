"""The `triton` kernel: bands and blocks in O(n w) on a GPU, in one pass for the own part and the sinks.

A local window beside a permuted pattern, and selected runs, are passes of their own, which have no gradients.
"""

from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sa_patch.kept import KEPT
from sa_patch.kernels.base import needs_gradients, refusal_of_float64, refusal_without_code
from sa_patch.kernels.dense import causal
from sa_patch.kernels.merging import Part
from sa_patch.kernels.recorded import record
from sa_patch.kernels.rules import choice
from sa_patch.kernels.triton.plans import Extras, Plan, join, kept_plan
from sa_patch.kernels.triton.tile_sizes import LARGEST_HEAD, Tile, candidates, tile_for, tiles_per_list
from sa_patch.patterns import Band, Blocks, Dense, Pattern, Pieces, Selected


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


_POOLED = "it has no code for heads that choose different numbers of blocks: use kernel='torch'"
_TILE: ContextVar[Tile | None] = ContextVar("tile", default=None)  # of the kernel that runs, where it has its own


class Triton:
    """Without a tile it takes what was measured for such tensors, or else the table's."""

    masks = False
    joins = True
    compile_seconds = 12.0  # of a program that is compiled for the first time

    def __init__(self, tile: Tile | None = None) -> None:
        self._own = tile

    def candidates(self, head_dim: int, dtype: torch.dtype) -> list[tuple[int, ...]]:
        """Sizes that may be faster on some device, as `sized` takes them."""
        return candidates(head_dim, dtype == torch.float32)

    def sized(self, sizes: tuple[int, ...]) -> "Triton":
        """The kernel with these sizes."""
        return Triton(Tile(*sizes))

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        return (
            refusal_without_code(pattern, Band, Blocks, Selected, Pieces)
            or (_refusal_to_join(pattern) if isinstance(pattern, Pieces) else None)
            or (_POOLED if isinstance(pattern, Selected) and pattern.pooled else None)
            or _refusal_here(query, key)
            or refusal_of_float64(query, key, value)
            or (_refusal_of_gradients(pattern) if needs_gradients(query, key, value) else None)
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if self._own is None:
            return self._run(query, key, value, pattern, scaling)
        token = _TILE.set(self._own)
        try:
            return self._run(query, key, value, pattern, scaling)
        finally:
            _TILE.reset(token)

    def _run(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        from sa_patch.kernels.triton.launch import plan_part
        from sa_patch.kernels.triton.requests import requests_part

        assert isinstance(pattern, (Band, Blocks, Selected, Pieces)), "refusal() was not asked"
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        if isinstance(pattern, Selected):
            return _selected(query, key, value, pattern, scaling)
        query, scaling = _positive(query, scaling)
        if isinstance(pattern, Pieces):
            plan = _joined_plan(pattern, query, key)
            return plan_part(query, key, value, plan, _tile(query), scaling, first=pattern.first)[0]
        if 0 < pattern.local <= _contained(pattern):
            pattern = replace(pattern, local=0)
        if needs_gradients(query, key, value):
            return _recorded(query, key, value, pattern, scaling)
        tile, first, skip, local = _tile(query), pattern.first, pattern.sinks, pattern.local
        prior = None
        if isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1]:
            prior = requests_part(query, key, value, pattern, tile, scaling)
        if local:
            near = Band(length=pattern.length, query_len=pattern.query_len, width=min(local, pattern.length))
            plan = _plan(near, query, key, Extras(skip))
            prior = _beside(prior, plan_part(query, key, value, plan, tile, scaling, first=first, with_lse=True))
        plan = _plan(pattern, query, key, Extras(skip, sinks=True, local=local))
        return plan_part(query, key, value, plan, tile, scaling, first=first, prior=prior)[0]


def _contained(pattern: Band | Blocks) -> int:
    """A sliding window holds a local window that is no wider, and every pattern holds the query itself."""
    return pattern.width if isinstance(pattern, Band) and pattern.order is None else 1


def _recorded(query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, scaling: float) -> Tensor:
    """A pattern without local window and selected runs, for autograd."""
    from sa_patch.kernels.triton.gradients import Planned
    from sa_patch.kernels.triton.launch import plan_part

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Part:
        plan = _plan(pattern, query, key, Extras(pattern.sinks, sinks=True))
        return plan_part(query, key, value, plan, _tile(query), scaling, first=pattern.first, with_lse=True)

    return record(query, key, value, Planned(pattern, scaling, forward))


def _refusal_of_gradients(pattern: Pattern) -> str | None:
    """Why the pattern has no backward pass; None when it has one."""
    if not isinstance(pattern, (Band, Blocks)):
        return f"it has no gradients of {type(pattern).__name__} patterns: use kernel='torch', or torch.no_grad()"
    chosen = isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1] > 0
    if chosen or pattern.local > _contained(pattern):
        parts = "selected runs" if chosen else "a local window beside a permuted pattern"
        return f"it has no gradients of {parts}: use kernel='torch', or torch.no_grad()"
    return None


def _positive(query: Tensor, scaling: float) -> tuple[Tensor, float]:
    """The same scores with a scaling above 0: the programs take the largest product for the largest score."""
    if scaling > 0:
        return query, scaling
    return (-query, -scaling) if scaling else (query * 0.0, 1.0)


def _selected(query: Tensor, key: Tensor, value: Tensor, pattern: Selected, scaling: float) -> Tensor:
    from sa_patch.kernels.triton.launch import routed

    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    dense = min(max(0, pattern.whole - pattern.first), pattern.query_len)  # queries that see every earlier key
    if dense:
        seen = pattern.first + dense
        output[:, :, :dense] = causal(query[:, :, :dense], key[:, :, :seen], value[:, :, :seen], scaling)
    if dense < pattern.query_len:
        query, scaling = _positive(query, scaling)
        routed(query, key, value, pattern, _tile(query), scaling, output)
    return output


def _beside(parts: tuple[Tensor, Tensor] | None, part: Part) -> tuple[Tensor, Tensor]:
    """Parts with a further one, as `plan_part` takes them."""
    output, lse = part
    assert lse is not None
    output, lse = output[..., None, :], lse[..., None]
    return (output, lse) if parts is None else (torch.cat([parts[0], output], -2), torch.cat([parts[1], lse], -1))


def _refusal_to_join(pattern: Pieces) -> str | None:
    """Why the pieces can't be computed in one pass; None when they can."""
    pieces = [piece for piece in pattern.pieces if not isinstance(piece, Dense)]
    orders = all(isinstance(piece, (Band, Blocks)) and piece.order is not None for piece in pieces)
    if not orders or any(piece.local > 1 or piece.tail for piece in pieces):
        return "it joins permuted pieces without a local window and dense tail only"
    return None if len({piece.sinks for piece in pieces}) == 1 else "its pieces have different sinks"


def _joined_plan(pattern: Pieces, query: Tensor, key: Tensor) -> Plan:
    """The plans of all pieces as one, from the cache."""
    device, step = query.device, _tile(query).keys
    extras = Extras(max(piece.sinks for piece in pattern.pieces), sinks=True)
    known = [piece.own_key if isinstance(piece, (Band, Blocks)) else _dense_key(piece) for piece in pattern.pieces]

    def make() -> Plan:
        return join([_plan(_permuted(piece, device), query, key, extras) for piece in pattern.pieces], step)

    name = ("joined", step, _tokens(query, key), extras, *known)
    return make() if None in known else KEPT.get(name, device, make)


def _dense_key(piece: Pattern) -> tuple:
    return piece.length, piece.query_len


def _permuted(piece: Pattern, device: torch.device) -> Band | Blocks:
    """Every earlier key as one run of a list."""
    if isinstance(piece, (Band, Blocks)):
        return piece
    order = torch.arange(piece.length, device=device)
    return Blocks(length=piece.length, query_len=piece.query_len, block_size=piece.length, order=order)


def _refusal_here(query: Tensor, key: Tensor) -> str | None:
    """Why Triton can't compute with such tensors; None when it can."""
    if not _installed():
        return "Triton is not installed (pip install sa-patch[triton])"
    kind = query.device.type
    if kind != "cuda" and not _interpreted():
        return f"it needs a GPU, the tensors are on {kind!r}"
    if query.dtype == torch.bfloat16 and _interpreted():
        return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 there"
    if query.dim() == 4:
        _, heads, _, head_dim = query.shape
        if head_dim > LARGEST_HEAD:
            return f"head_dim {head_dim} is over {LARGEST_HEAD}"
        rows, kv_heads = _tile(query).rows, key.shape[1]
        if heads // kv_heads > rows:
            return f"{heads} query heads on {kv_heads} key heads are over {rows} a group"
    return None


def _tile(query: Tensor) -> Tile:
    own = _TILE.get()
    if own is not None:
        return own
    measured = choice(query.device, query.dtype, query.shape[-1], 1).tiles.get("triton")
    return Tile(*measured) if measured else tile_for(query.shape[-1], query.dtype == torch.float32)


def _tokens(query: Tensor, key: Tensor) -> int:
    """Tokens per tile, each with all heads that share a kv head."""
    group = query.shape[1] // key.shape[1]
    return max(1, _tile(query).rows // (1 << (group - 1).bit_length()))


def _plan(pattern: Band | Blocks, query: Tensor, key: Tensor, extras: Extras) -> Plan:
    rows = _tokens(query, key)
    # Consecutive keys gain nothing from a common list.
    tiles = tiles_per_list(pattern.width, rows) if isinstance(pattern, Band) and pattern.order is not None else 1
    return kept_plan(pattern, rows, _tile(query).keys, tiles, extras, query.device)
