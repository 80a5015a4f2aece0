"""`moba`: block attention routed by mean keys, as in the official code (arXiv 2502.13189), untrained."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sa_patch.budget import LayerBudget, closest
from sa_patch.counting import triangle
from sa_patch.geometry import Group
from sa_patch.patterns import Blocks, Pattern
from sa_patch.variants.base import CPU, Sizes, Variant, check_integer, option

_SCORE_ENTRIES = 1 << 24  # router scores held at once: 64 MiB of float32
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
    """

    name: ClassVar[str] = "moba"
    label: ClassVar[str] = "block attention (MoBA), untrained"
    layout: ClassVar[str] = "routed"
    prefix_consistent: ClassVar[bool] = True

    top_k: int | None = option(None, "blocks per query, the own one included (2, or what fits block_size)")
    block_size: int | None = option(None, "tokens per block; None: what matches the budget")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None:
            check_integer("top_k", self.top_k, at_least=1)
        if self.block_size is not None:
            check_integer("block_size", self.block_size, at_least=1)
            if isinstance(self.window, float):
                raise ValueError(
                    f"block_size={self.block_size} can't follow window={self.window}, a fraction: drop one"
                )
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
        if abs(found - window) > max(1, _TOLERANCE * window):
            fitting = matched_block_size(window, top_k, sizes.sinks, sizes.local)
            raise ValueError(
                f"block_size={size} with top_k={top_k} gives about {found:.0f} keys per query, not window={window}: "
                f"use block_size={fitting}, another top_k, or leave block_size out"
            )
        return size, top_k

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        sizes = self.sizes(group.length)
        size, top_k = self._blocks(sizes)
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
        sizes = self.sizes(length)
        size, top_k = self._blocks(sizes)
        if size * top_k >= length:
            return LayerBudget(layer_idx, "sparse", triangle(length))
        own = Blocks(block_size=size, **self.common(Group(length, length, CPU), sizes)).count()
        sparse_rows = max(0, length - self.dense_tail)
        chosen = sum(min(top_k - 1, row // size) for row in range(sparse_rows)) * size
        router = 0 if top_k == 1 else sum(row // size for row in range(length))
        # Selected blocks may hold sinks or local keys that are visible anyway; which ones is up to the content.
        exact = not (sizes.sinks or sizes.local > 1)
        return LayerBudget(layer_idx, "sparse", min(own + chosen, triangle(length)), router, exact)

    def note(self) -> str:
        return "untrained: MoBA's authors require continued training"


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

    Args:
        query: [batch, heads, query_len, head_dim], the last positions; key: [batch, kv_heads, length, head_dim].

    Returns:
        int64 [batch, heads, query_len, min(count, earlier blocks of the last query)], -1 where fewer are eligible.
    """
    batch, heads, query_len, head_dim = query.shape
    length, kv_heads = key.shape[2], key.shape[1]
    earlier = (length - 1) // block_size
    means = key[:, :, : earlier * block_size].float().unflatten(2, (earlier, block_size)).mean(dim=3)
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, query_len, head_dim)
    first, count, chosen = length - query_len, min(count, earlier), []
    step = max(1, _SCORE_ENTRIES // (batch * heads * earlier))
    for start in range(0, query_len, step):
        rows = slice(start, min(start + step, query_len))
        own = torch.arange(first + rows.start, first + rows.stop, device=query.device)[:, None] // block_size
        # Blocks before the first row's own are open to all rows, blocks from the last row's own on to none.
        open_to_all, reached = (first + rows.start) // block_size, (first + rows.stop - 1) // block_size
        scores = grouped[..., rows, :].float() @ means[:, :, None, : max(reached, count)].transpose(-1, -2)
        some = torch.arange(open_to_all, scores.shape[-1], device=query.device)
        scores[..., open_to_all:].masked_fill_(some >= own, -torch.inf)
        # The largest one is found faster than the largest few.
        best = scores.argmax(dim=-1, keepdim=True) if count == 1 else scores.topk(count, dim=-1).indices
        chosen.append(torch.where(best < own, best, -1))
    return torch.cat(chosen, dim=3).reshape(batch, heads, query_len, count)
