"""`routed`: sinks, a local window, and the best small blocks in between, chosen by content."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sa_patch.budget import LayerBudget, closest
from sa_patch.counting import triangle, window_pairs
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern, Selected
from sa_patch.router import choose_blocks
from sa_patch.variants.base import (
    BLOCK_SIZE_HELP,
    CHARGED_REASON,
    CPU,
    ROUTER_COST_HELP,
    HeadDependent,
    Sizes,
    Variant,
    check_charged,
    default_sinks,
)
from sa_patch.variants.options import option

BLOCK = 8  # of a window that has room for it


def default_block(window: int) -> int:
    """8 tokens, in windows below 128 a sixteenth of them, at least 2. Smaller blocks are closer to full attention, and
    their router costs more: docs/beyond.md has figures for 64 and 128."""
    return min(BLOCK, max(2, window // 16))


@dataclass(frozen=True)
class Shares:
    """What a window is divided into, in tokens: sinks + local + count * block_size keys per query."""

    sinks: int
    local: int
    block_size: int
    count: int

    @property
    def keys(self) -> int:
        return self.sinks + self.local + self.count * self.block_size


@dataclass(frozen=True, kw_only=True)
class Routed(Variant):
    """Query i sees the first `sinks` tokens, the last `local` tokens, and the best small blocks of tokens in between.

    Blocks are counted from the end of the sinks, and may be chosen where they end before the local window begins: no
    pair is in two parts. Queries before `window` see everything. So the number of pairs is exactly that of `swa` at the
    same window, whatever is chosen (with query_block > 1, where it divides the window).

    Small blocks chosen by content follow MoBA (arXiv 2502.13189) and Quest (arXiv 2406.10774), sinks StreamingLLM
    (arXiv 2309.17453).

    Attributes:
        sinks: 4 when None, fewer in windows below 32.
        local: at least so many; 0: a quarter of the window. It takes what whole blocks leave of the window.
        block_size: tokens per block; None: 8, in windows below 128 a sixteenth of them, at least 2.
        share: "head": every query head chooses; "group": the query heads of a kv head choose together.
        pool: "layer": all heads of a layer share their blocks. A query takes the (head, block) pairs that hold the
            largest estimated share of their head's attention, heads x k of them, so some heads see more blocks than
            others, and the pairs of a query over all heads are the same. What a share is of: sinks, local window
            (exactly) and all blocks that may be chosen (by the router).
        query_block: tiles of so many queries choose together. 1: a token's keys don't depend on the tokens after it.
        router: "mean" ranks blocks by q . mean(keys); "variance" adds half of the diagonal second-order term, see
            sa_patch/router.py. "minmax" and "antidiagonal" are the rules of Quest and of XAttention, to compare with.
            Scores are scaled by head_dim ** -0.5.
        stride: of "antidiagonal"; it divides query_block and block_size.
        router_cost: "charged": the window pays for the router, half a pair for every product of a query or a key with
            a vector of head_dim numbers, so that visible keys are fewer.
    """

    name: ClassVar[str] = "routed"
    label: ClassVar[str] = "sinks, local window and the best small blocks"
    help: ClassVar[str] = "sinks, a local window, and the small blocks in between that fit the query best, by content"
    layout: ClassVar[str] = "selected"
    defaults: ClassVar[Mapping[str, Any]] = {}

    block_size: int | None = option(None, BLOCK_SIZE_HELP, minimum=1, told="block{}")
    share: Literal["head", "group"] = option(
        "head", "who chooses blocks: every query head, or a kv head's group of them"
    )
    pool: Literal["head", "layer"] = option(
        "head", "head: every head its own number of blocks; layer: the heads share them", told="pool_{}"
    )
    query_block: int = option(1, "consecutive queries that choose blocks together", minimum=1, told="tile{}")
    router: Literal["mean", "variance", "minmax", "antidiagonal"] = option(
        "variance",
        "how blocks are ranked: by mean keys, also by their variance, by Quest's bound, XAttention's sums",
    )
    stride: int = option(4, "of router antidiagonal: one product stands for so many", minimum=1, told="stride{}")
    router_cost: Literal["reported", "charged"] = option("reported", ROUTER_COST_HELP)

    def __post_init__(self) -> None:
        if self.sinks is None:
            object.__setattr__(self, "sinks", default_sinks(self.window))
        super().__post_init__()
        if self.query_block > 1 and self.decode == "sparse":
            raise ValueError(
                f"query_block={self.query_block} lets queries choose together, and generated tokens come one by one: "
                "use query_block=1 with decode='sparse', or decode='full'"
            )
        size = self.block_size or BLOCK
        if self.router == "antidiagonal" and (self.query_block % self.stride or size % self.stride):
            raise ValueError(
                "router='antidiagonal' needs a stride that divides query_block and block_size, got "
                f"stride={self.stride}, query_block={self.query_block}, block_size={size}"
            )
        if self.pool == "layer" and self.router not in ("mean", "variance"):
            raise ValueError(
                f"pool='layer' needs shares of the attention's mass, which router={self.router!r} does not estimate: "
                "use router='variance' or 'mean'"
            )
        if self.router_cost == "charged":
            check_charged(self.budget, self.decode)
        if not any(isinstance(size, float) for size in (self.window, self.sinks, self.local)):
            self._divided(Sizes(int(self.window), int(self.sinks), int(self.local)))

    @property
    def prefix_consistent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.query_block == 1 and self.router_cost == "reported"

    @property
    def head_dependent(self) -> HeadDependent:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "all" if self.pool == "layer" else "no"

    def whole_prompt_reason(self) -> str | None:
        if self.query_block > 1:
            return (
                f"tiles of query_block={self.query_block} queries choose together: pieces may begin at its multiples "
                "only (query_block=1 takes any)"
            )
        if self.router_cost == "charged":
            return CHARGED_REASON
        return super().whole_prompt_reason()

    def piece_reason(self, first: int) -> str | None:
        if self.query_block == 1 or first % self.query_block:
            return self.whole_prompt_reason()
        return replace(self, query_block=1).whole_prompt_reason()

    def shares(self, length: int) -> Shares:
        """What a query beyond the window sees of a prompt of `length` tokens.

        Raises:
            ValueError: when the window leaves no room for a block, or the router alone costs more than the window.
        """
        shares = self._divided(self.sizes(length))
        return _charged(self, shares, length) if self.router_cost == "charged" and shares.keys < length else shares

    def _divided(self, sizes: Sizes) -> Shares:
        local = sizes.local or max(1, sizes.window // 4)
        if self.budget == "nominal":
            size = self.block_size or default_block(sizes.window)
            return Shares(sizes.sinks, local, size, max(1, sizes.window // size))
        room = sizes.window - sizes.sinks - local
        step = self.stride if self.router == "antidiagonal" else 1
        size = self.block_size or max(step, min(default_block(sizes.window), room) // step * step)
        if room < size and self.block_size:
            raise ValueError(
                f"window={sizes.window} leaves no room for a block of {size} beside {sizes.sinks} sinks and a local "
                f"window of {local}: raise window, or lower block_size, sinks or local"
            )
        count = room // size
        return Shares(sizes.sinks, sizes.window - sizes.sinks - count * size, size, count)

    def pattern(self, group: Group, shares: Shares, selected: Tensor | None, heads: int) -> Selected:
        """The pattern of some shares; `selected` as in `Selected`."""
        sizes = Sizes(shares.keys, shares.sinks, shares.local)
        return Selected(
            block_size=shares.block_size,
            query_block=self.query_block,
            count_per_tile=shares.count,
            whole=shares.keys,
            selected=selected,
            heads=heads,
            pooled=self.pool == "layer",
            **self.common(group, sizes),
        )

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        shares = self.shares(group.length)
        if shares.keys >= group.length:
            return self.dense(group)
        if query is None or key is None:
            raise ValueError("the keys routed selects depend on the content: its mask exists only in a forward pass")
        if (group.length - group.query_len) % self.query_block:
            raise NotImplementedError(
                f"the queries begin at position {group.length - group.query_len}, inside a tile of "
                f"query_block={self.query_block}: begin at a multiple of it, or use query_block=1"
            )
        with torch.no_grad():
            selected = choose_blocks(
                query,
                key,
                start=shares.sinks,
                block_size=shares.block_size,
                query_block=self.query_block,
                count=shares.count,
                local=shares.local,
                choosers=query.shape[1] if self.share == "head" else key.shape[1],
                router=self.router,
                scaling=query.shape[-1] ** -0.5,
                stride=self.stride,
                pooled=self.pool == "layer",
            )
        return self.pattern(group, shares, selected, query.shape[1])

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        shares = self.shares(length)
        if shares.keys >= length:
            return LayerBudget(layer_idx, "sparse", triangle(length))
        products = self.products(length, shares)
        pairs = self.pattern(Group(length, length, CPU), shares, None, 1).count()
        charged = (products + 1) // 2 if self.router_cost == "charged" else 0
        return LayerBudget(layer_idx, "sparse", pairs, products, charged=charged)

    def products(self, length: int, shares: Shares) -> int:
        """Products with vectors of head_dim numbers that choosing takes, per head: queries' and keys'. Those with sinks
        and local window, which pool="layer" looks at, are the attention's own."""
        pattern = self.pattern(Group(length, length, CPU), shares, None, 1)
        scores = int(pattern.choosable(torch.arange(length)).sum())
        if self.router == "antidiagonal":
            return scores * shares.block_size // self.stride
        return (scores + max(0, length - shares.sinks) // shares.block_size) * (1 if self.router == "mean" else 2)


@lru_cache(maxsize=1024)
def _charged(variant: Routed, shares: Shares, length: int) -> Shares:
    """The shares that remain of a window when the router is paid from it."""

    def reduced(window: int) -> Shares:
        local = max(1, min(shares.local, window // 4))
        size = shares.block_size
        count = max(0, window - shares.sinks - local) // size
        return replace(shares, count=count, local=max(1, window - shares.sinks - count * size))

    def excess(window: int) -> float:
        found = reduced(window)
        pairs = window_pairs(length, found.keys) + variant.products(length, found) / 2
        return pairs - window_pairs(length, shares.keys)

    found = reduced(closest(excess, shares.keys))
    if found.count < 1:
        per_query = variant.products(length, replace(shares, local=1)) / 2 / length
        raise ValueError(
            f"at {length} tokens the router alone costs {per_query:.0f} of window={shares.keys} keys per query, which "
            f"leaves no room for a block of {shares.block_size}: raise window or block_size, or use "
            "router_cost='reported'"
        )
    return found
