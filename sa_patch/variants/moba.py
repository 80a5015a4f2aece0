"""`moba`: block attention routed by mean keys, as in the official code (arXiv 2502.13189), untrained."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.budget import LayerBudget, closest
from sa_patch.counting import triangle, window_pairs
from sa_patch.geometry import Group
from sa_patch.patterns import Blocks, Pattern
from sa_patch.router import largest, programs
from sa_patch.variants.base import (
    BLOCK_SIZE_HELP,
    CHARGED_REASON,
    ROUTER_COST_HELP,
    Role,
    Sizes,
    Variant,
    check_charged,
)
from sa_patch.variants.options import option

_SCORE_BYTES = (1 << 28, 1 << 22)  # router scores held at once: on a GPU, where few launches matter, and on a CPU
_TOLERANCE = 0.05  # how far a block_size given by hand may miss the budget


@dataclass(frozen=True, kw_only=True)
class Moba(Variant):
    """visible(i, j): the query's own block, causal, plus the top (k - 1) earlier blocks by q . mean(keys of the block).

    Scores are unscaled, float32, per query token and per query head. The own block counts among the k, so k = 2 is the
    own block and one more, k = 1 the own block alone. Where fewer blocks are eligible fewer are used.

    Attributes:
        top_k: blocks per query, the own one included.
        block_size: tokens per block; None chooses it for the budget: round(w / (k - 1/2)) under "pairs", w / k under
            "nominal".
        router_cost: "charged": the window pays for the router, half a pair for every block's mean and every score. A
            prompt's blocks are then as large, or, where block_size is given, as many, as comes closest to the pairs of
            swa at the window.
    """

    name: ClassVar[str] = "moba"
    label: ClassVar[str] = "block attention (MoBA), untrained"
    help: ClassVar[str] = (
        "blocks of keys chosen by content, MoBA's rule (untrained here: it was made for continued training)"
    )
    role: ClassVar[Role] = "baseline"
    untrained: ClassVar[bool] = True
    caveat: ClassVar[str] = "untrained here: its authors made it for continued training"
    layout: ClassVar[str] = "routed"

    top_k: int | None = option(
        None, "blocks per query, the own one included; none: 2, or what fits block_size", minimum=1, told="top{}"
    )
    block_size: int | None = option(None, BLOCK_SIZE_HELP, minimum=1, told="block{}")
    router_cost: Literal["reported", "charged"] = option("reported", ROUTER_COST_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.router_cost == "charged":
            check_charged(self.budget, self.decode)
            if self.top_k and self.block_size:
                raise ValueError(
                    f"router_cost='charged' leaves less of the window to blocks, and block_size={self.block_size} with "
                    f"top_k={self.top_k} leaves nothing to choose: drop one of them"
                )
        if self.block_size is not None and isinstance(self.window, float):
            raise ValueError(f"block_size={self.block_size} can't follow window={self.window}, a fraction: drop one")
        if isinstance(self.window, int):
            self._blocks(Sizes(self.window, *(0 if isinstance(x, float) else x for x in (self.sinks, self.local))))

    def _blocks(self, sizes: Sizes) -> tuple[int, int]:
        """(block_size, top_k) for these sizes.

        Raises:
            ValueError: when options given by hand miss the budget.
        """
        window = sizes.window
        if self.budget == "nominal":
            top_k = self.top_k or (2 if self.block_size is None else max(1, round(window / self.block_size)))
            size = self.block_size or max(1, round(window / top_k))
            if isinstance(self.window, int) and size * top_k != window:
                raise ValueError(
                    f"budget='nominal' means block_size * top_k = window, but {size} * {top_k} = {size * top_k}, "
                    f"not {window}: choose a window divisible by top_k, or budget='pairs'"
                )
            return size, top_k
        if self.block_size is None:
            top_k = self.top_k or 2
            return matched_block_size(window, top_k, sizes.sinks, sizes.local), top_k
        size = self.block_size
        top_k = self.top_k or max(1, round(window / size + 0.5))
        found = keys_per_query(size, top_k, sizes.sinks, sizes.local)
        if self.router_cost == "charged":
            return size, top_k  # to begin with: the prompt's length decides
        if abs(found - window) > max(1, _TOLERANCE * window):
            fitting = matched_block_size(window, top_k, sizes.sinks, sizes.local)
            raise ValueError(
                f"block_size={size} with top_k={top_k} gives about {found:.0f} keys per query, not window={window}: "
                f"use block_size={fitting}, another top_k, or leave block_size out"
            )
        return size, top_k

    @property
    def prefix_consistent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.router_cost == "reported"

    def whole_prompt_reason(self) -> str | None:
        return CHARGED_REASON if self.router_cost == "charged" else super().whole_prompt_reason()

    def blocks(self, length: int) -> tuple[int, int]:
        """(block_size, top_k) of a prompt of `length` tokens.

        Raises:
            ValueError: when options given by hand miss the budget, or the router alone costs more than the window.
        """
        found = self._blocks(self.sizes(length))
        return (
            _charged(self, length, *found) if self.router_cost == "charged" and found[0] * found[1] < length else found
        )

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        sizes = self.sizes(group.length)
        size, top_k = self.blocks(group.length)
        if size * top_k >= group.length:
            return self.dense(group)
        selected = None
        if top_k > 1:
            if query is None or key is None:
                raise ValueError("the keys moba selects depend on the content: its mask exists only in a forward pass")
            with torch.no_grad():
                selected = select_blocks(query, key, size, top_k - 1)
        return Blocks(block_size=size, selected=selected, **self.common(group, sizes))

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        size, top_k = self.blocks(length)
        pairs, products = self.counts(length, size, top_k)
        # Selected blocks may hold sinks or local keys that are visible anyway; which ones is up to the content.
        sizes = self.sizes(length)
        exact = size * top_k >= length or not (sizes.sinks or sizes.local > 1)
        charged = (products + 1) // 2 if self.router_cost == "charged" else 0
        return LayerBudget(layer_idx, "sparse", pairs, products, exact, charged)

    def counts(self, length: int, size: int, top_k: int) -> tuple[int, int]:
        """(visible pairs, the router's products with vectors of head_dim numbers: means of blocks, and scores)."""
        if size * top_k >= length:
            return triangle(length), 0
        sizes, row = self.sizes(length), torch.arange(length)
        near = torch.maximum(row % size + 1, (row + 1).clamp(max=sizes.local))
        shown = near + torch.minimum(row + 1 - near, torch.tensor(sizes.sinks))
        shown += (row // size).clamp(max=top_k - 1) * size
        shown[length - min(self.dense_tail, length) :] = row[length - min(self.dense_tail, length) :] + 1
        products = 0 if top_k == 1 else int((row // size).sum()) + (length - 1) // size
        return min(int(shown.sum()), triangle(length)), products


@lru_cache(maxsize=1024)
def _charged(variant: Moba, length: int, size: int, top_k: int) -> tuple[int, int]:
    """(block_size, top_k) that are closest to the window when the router is paid from it.

    With a block size given, blocks are fewer; otherwise they have another size: smaller ones show less and cost more,
    so there may be two sizes at which the sum is right, and the larger one is taken.
    """
    target = window_pairs(length, variant.window_at(length))

    def off(one: tuple[int, int]) -> float:
        pairs, products = variant.counts(length, *one)
        return pairs + products / 2 - target

    if variant.block_size is not None:
        candidates = [(size, count) for count in range(top_k, 1, -1)]
    else:
        candidates = [(one, top_k) for one in range(size, 0, -1)]
    larger = candidates[0]
    for best in candidates:
        if off(best) <= 0:
            best = min(larger, best, key=lambda some: abs(off(some)))
            break
        larger = best
    else:
        best = min(candidates, key=off)
    if abs(off(best)) > max(1, _TOLERANCE * variant.window_at(length)) * length:
        pairs, products = variant.counts(length, *best)
        raise ValueError(
            f"at {length} tokens no choice of blocks fits window={variant.window} with the router charged: "
            f"{best[1]} of {best[0]} tokens cost {pairs / length:.0f} and their router {products / 2 / length:.0f} "
            "pairs per query. Raise window, change top_k or block_size, or use router_cost='reported'"
        )
    return best


def keys_per_query(block_size: int, top_k: int, sinks: int, local: int) -> float:
    """Keys per query of long prompts: (k - 1/2) B, sinks, and what the local window adds to the own block."""
    rows = min(block_size, local)  # the block's first rows, whose own keys are fewer than `local`
    return (top_k - 0.5) * block_size + sinks + (rows * local - triangle(rows)) / block_size


@lru_cache(maxsize=4096)
def matched_block_size(window: int, top_k: int, sinks: int, local: int) -> int:
    """The block size whose keys per query come closest to the window; round(w / (k - 1/2)) without extras."""
    return closest(lambda size: keys_per_query(size, top_k, sinks, local) - window, 2 * window)


def select_blocks(query: Tensor, key: Tensor, block_size: int, count: int) -> Tensor:
    """The best `count` earlier blocks of every query.

    Scores are float32 whatever the dtype, and nobody waits for the device. Beyond the result it holds the blocks' means
    and the scores of some queries at once, a few times `_SCORE_BYTES`. Where two blocks score within the rounding of a
    float32 product, which of them is taken may differ between devices and between one call and pieces of it: sums
    are taken in another order there. Of several equal scores the first block wins when one is asked for, any otherwise.

    Args:
        query: [batch, heads, query_len, head_dim], the last positions; key: [batch, kv_heads, length, head_dim].

    Returns:
        int64 [batch, heads, query_len, min(count, earlier blocks of the last query)], -1 where fewer are eligible.
    """
    batch, heads, query_len, _ = query.shape
    length, kv_heads = key.shape[2], key.shape[1]
    first, earlier = length - query_len, (length - 1) // block_size
    made = programs(query, key) if min(count, earlier) == 1 else None
    if made is not None:
        return made.nearest(query, key, block_size)
    means = key[:, :, : earlier * block_size].unflatten(2, (earlier, block_size)).mean(dim=3, dtype=torch.float32)
    block, count = torch.arange(earlier, device=query.device), min(count, earlier)
    chosen = []
    step = max(1, _SCORE_BYTES[query.device.type == "cpu"] // (4 * batch * heads * max(1, earlier)))
    for start in range(0, query_len, step):
        stop = min(start + step, query_len)
        own = torch.arange(first + start, first + stop, device=query.device)[:, None] // block_size
        most = (first + stop - 1) // block_size  # blocks that are earlier for the last of these queries
        rows = query[:, :, start:stop].unflatten(1, (kv_heads, -1))
        scores = _scores(rows, means[:, :, :most])
        common = (first + start) // block_size  # blocks that are earlier for all of these queries
        scores[..., common:].masked_fill_(block[common:most] >= own, -torch.inf)
        if most == 0 or count == 0:
            best = own.new_zeros(*scores.shape[:-1], 0)
        elif count == 1:
            best = scores.argmax(dim=-1, keepdim=True)
        else:
            best = largest(scores, min(count, most))
        best = torch.where(best < own, best, -1)
        chosen.append(F.pad(best, (0, count - best.shape[-1]), value=-1))
    return torch.cat(chosen, dim=3).reshape(batch, heads, query_len, count)


def _scores(rows: Tensor, means: Tensor) -> Tensor:
    """Products of queries [batch, kv_heads, group, q, head_dim] and means [batch, kv_heads, m, head_dim], in float32.

    On a GPU, bfloat16 queries stay as they are: a float32 mean is the sum of three bfloat16 numbers, and a bfloat16
    product is exact in float32, so that tensor cores give what a float32 product would, in another order of summation.
    """
    if rows.device.type != "cuda" or rows.dtype != torch.bfloat16:
        found = rows.float().flatten(2, 3) @ means.transpose(-1, -2)  # a group's heads as rows of one product
        return found.unflatten(2, rows.shape[2:4])
    parts = _split(means)
    left = torch.cat([rows] * len(parts), dim=-1).flatten(0, 1).flatten(1, 2)
    right = torch.cat(parts, dim=-1).flatten(0, 1).transpose(-1, -2)
    return _product(left, right).unflatten(0, rows.shape[:2]).unflatten(2, rows.shape[2:4])


def _split(numbers: Tensor) -> list[Tensor]:
    """Three bfloat16 tensors whose sum is the float32 tensor: 3 x 8 bits of 24."""
    parts, rest = [], numbers
    for _ in range(3):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    return parts


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A batch of bfloat16 products in float32: CUDA only."""
    return torch.bmm(left, right, out_dtype=torch.float32)
