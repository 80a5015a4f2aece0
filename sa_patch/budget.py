"""Budgets: the pairs that were asked for, and those that a pattern shows, counted from the pattern.

The unit is causal sliding-window attention: at window w and length n it has n w - w (w - 1) / 2 pairs.
Imports torch only.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sa_patch import shown
from sa_patch.counting import extra_pairs, triangle


@dataclass(frozen=True)
class LayerBudget:
    """One layer at one prompt length.

    Attributes:
        kind: "sparse" or "dense".
        pairs: visible (query, key) pairs per head.
        router_scores: dot products a router spends on choosing keys, per head (a pair costs about two of them).
        exact: False when `pairs` is an upper bound because the exact number depends on the content.
        charged: pairs that the router is charged for, half a pair per product; 0 where it is reported only.
    """

    layer_idx: int
    kind: str
    pairs: int
    router_scores: int = 0
    exact: bool = True
    charged: int = 0

    def in_words(self) -> str:
        """The layer in words, its number aside."""
        parts = [f"{self.kind}, {'' if self.exact else 'at most '}{self.pairs:,} pairs"]
        parts += [f"router {self.router_scores:,} products"] if self.router_scores else []
        parts += [f"{self.charged:,} pairs charged for them"] if self.charged else []
        return ", ".join(parts)


@dataclass(frozen=True, repr=False)
class Budget:
    """What a patched model attends to while it reads a prompt of `length` tokens.

    Attributes:
        length: real tokens, n.
        target_keys_per_query: the budget that was asked for: keys per query of swa at the same window.
        per_layer: one entry per attention layer.
        over_all: True: the target is for the mean over all layers, full ones included (a plan). False: for every sparse
            layer.
    """

    length: int
    target_keys_per_query: float
    per_layer: tuple[LayerBudget, ...]
    over_all: bool = False

    @property
    def pairs(self) -> int:
        """Pairs per head, summed over layers."""
        return sum(layer.pairs for layer in self.per_layer)

    @property
    def keys_per_query(self) -> float:
        """Keys per query and head, averaged over layers."""
        return self.pairs / (self.length * len(self.per_layer))

    @property
    def density(self) -> float:
        """Share of full causal attention's n (n + 1) / 2 pairs."""
        return self.pairs / (triangle(self.length) * len(self.per_layer))

    @property
    def router_cost(self) -> float:
        """The router's dot products per query and head, averaged over layers; not part of `pairs`."""
        return sum(layer.router_scores for layer in self.per_layer) / (self.length * len(self.per_layer))

    @property
    def exact(self) -> bool:
        """False when some layer's count is an upper bound."""
        return all(layer.exact for layer in self.per_layer)

    @property
    def off_target(self) -> float:
        """Keys per query of the layers that the target is for, over the target, minus 1: 0.05 is 5 % more."""
        counted = [layer.pairs + layer.charged for layer in self.per_layer if self.over_all or layer.kind == "sparse"]
        if not counted:
            return 0.0
        return sum(counted) / len(counted) / self.length / self.target_keys_per_query - 1

    def facts(self) -> list[shown.Fact]:
        """What it comes to, what was asked for, and every kind of layer, as (name, text)."""
        bound = "" if self.exact else "at most "
        whole = f"{bound}{self.keys_per_query:,.1f} keys per query, density {self.density:.1%}"
        missed = f" ({self.off_target:+.0%} in fact)" if abs(self.off_target) > 0.05 else ""
        where = "on average over all layers" if self.over_all else "in every sparse layer"
        return [
            ("budget", f"{self.length:,} tokens: {whole}"),
            ("asked for", f"{self.target_keys_per_query:,.1f} keys per query {where}{missed}"),
            *shown.folded(layer.in_words() for layer in self.per_layer),
        ]

    def __repr__(self) -> str:
        return shown.screen(self.facts(), "budget.per_layer has all")

    def _repr_html_(self) -> str:
        return shown.html(self.facts())


def expected_union_pairs(length: int, own: int, sinks: int, local: int, first: int = 0) -> float:
    """Expected pairs of queries first..length-1 in `own` randomly placed pairs together with sinks and a local window.

    Args:
        own: pairs (i, j), j <= i, of all `length` queries. Those with j < i may lie anywhere, equally likely.
    """
    below = triangle(length - 1)
    share = (own - length) / below if below else 0.0
    extras = extra_pairs(length, sinks, local) - extra_pairs(first, sinks, local)
    return length - first + extras + (below - triangle(first - 1) - extras) * share


@lru_cache(maxsize=4096)
def matched_width(
    own_pairs: Callable[[int, int], int], length: int, window: int, sinks: int, local: int, first: int = 0
) -> int:
    """The width at which a variant with sinks and local window has as many pairs as at width `window` without them.

    Args:
        own_pairs: (length, width) -> pairs of the variant's own part. Grows with the width; their places are random.
        first: only queries i >= first are counted.
    """
    target = expected_union_pairs(length, own_pairs(length, window), 0, 0, first)

    def excess(width: int) -> float:
        return expected_union_pairs(length, own_pairs(length, width), sinks, local, first) - target

    return closest(excess, window)


def closest(excess: Callable[[int], float], upper: int) -> int:
    """The number 1 <= x <= upper at which a growing function is closest to 0."""
    above = bisect_left(range(1, upper), 0, key=excess) + 1
    return above - 1 if above > 1 and -excess(above - 1) <= excess(above) else above
