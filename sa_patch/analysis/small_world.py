"""Small worlds: clustering and path length of the graph that a stack's layers make together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from sa_patch import intervals
from sa_patch.analysis import layers
from sa_patch.analysis.coverage import draw_sources
from sa_patch.analysis.reach import sees, step
from sa_patch.intervals import Interval
from sa_patch.patterns import Pattern
from sa_patch.plan import Plan
from sa_patch.randomness import mixed, steps, stream
from sa_patch.variants.base import Variant

# Of the fly's central brain, as arXiv 2604.00754 quotes them for comparison; not measured here.
FLY = {"density": 0.0002, "hops": 4.4}
NODES, WEDGES = (8, 32), 64  # tokens followed per seed: least and most, and pairs of neighbours looked at per token
_AT_ONCE = 1 << 18  # tokens times tokens followed, between these bounds
_USE = 3  # tells these random numbers from others
_COMMON = 5.0  # neighbours in common on average: exp(-5) of the pairs have none
_MOST_HOPS = 100_000


@dataclass(frozen=True, kw_only=True)
class SmallWorld:
    """The undirected graph whose edges are the pairs that at least one of the layers shows; means over seeds.

    Attributes:
        degree: neighbours of a token. density: degree / (n - 1).
        clustering: how likely two neighbours of a token are neighbours, mean over tokens that have two.
        path_length: hops between two tokens, mean over connected pairs. Hops may use layers in any order.
        random_*: of a random graph with this degree: clustering = density; path length (ln n - 0.5772) / ln(degree) +
            1/2 (Fronczak, Fronczak & Holyst 2004), and 2 - density where it is so dense that two hops are enough.
        ring_*: of a ring where every token has this degree in next neighbours: clustering 3 (k - 2) / (4 (k - 1)),
            path length about n / (2 k) (Watts & Strogatz 1998).
    """

    length: int
    num_layers: int
    seeds: tuple[int, ...]
    degree: float
    clustering: float
    clustering_interval: Interval
    path_length: float
    path_length_interval: Interval

    @property
    def density(self) -> float:
        return self.degree / max(1, self.length - 1)

    @property
    def random_clustering(self) -> float:
        return min(1.0, self.density)

    @property
    def random_path_length(self) -> float:
        if self.degree <= 1:
            return math.inf
        least = 2 - self.random_clustering  # 1 hop to neighbours, at least 2 to others
        if self.degree**2 > _COMMON * self.length:  # nearly every two tokens have a neighbour in common
            return least
        return max(least, (math.log(self.length) - 0.5772156649) / math.log(self.degree) + 0.5)

    @property
    def ring_clustering(self) -> float:
        return 3 * (self.degree - 2) / (4 * (self.degree - 1)) if self.degree > 2 else 0.0

    @property
    def ring_path_length(self) -> float:
        return max(1.0, self.length / (2 * self.degree)) if self.degree else math.inf

    @property
    def index(self) -> float:
        """(clustering / random graph's) / (path length / random graph's): well above 1 is a small world (Humphries &
        Gurney 2008)."""
        return (self.clustering / self.random_clustering) / (self.path_length / self.random_path_length)


def small_world(variant: Variant | Plan, length: int, num_layers: int, seeds: Sequence[int] = range(4)) -> SmallWorld:
    """Measure on tokens drawn evenly: 32 per seed (8 beyond 32,768 tokens) for hops and neighbours, 64 pairs of
    neighbours of each.

    Raises:
        ValueError: for arguments out of range, or variants that choose keys by content.
    """
    layers.check(variant, length, num_layers, seeds)
    if length < 3:
        raise ValueError(f"length={length}: a graph of at least 3 tokens has clustering")
    degrees, clustering, paths = [], [], []
    random = layers.is_random(variant)
    for seed in seeds:
        stack = list(layers.distinct_patterns(variant, length, num_layers, seed))
        nodes = draw_sources(length, min(length, max(NODES[0], min(NODES[1], _AT_ONCE // length))), seed, causal=False)
        hop, neighbours = _hops(stack, nodes, length)
        degrees.append(float(neighbours.sum(0).double().mean()))
        clustering.append(_clustering(stack, neighbours, seed))
        paths.append(hop)
    return SmallWorld(
        length=length,
        num_layers=num_layers,
        seeds=tuple(seeds) if random or length > NODES[1] else tuple(seeds)[:1],
        degree=fmean(degrees),
        clustering=fmean(clustering),
        clustering_interval=intervals.of_mean(clustering, high=1.0),
        path_length=fmean(paths),
        path_length_interval=intervals.of_mean(paths),
    )


def _hops(stack: Sequence[Pattern], nodes: Tensor, length: int) -> tuple[float, Tensor]:
    """Mean hops from some tokens to those they are connected with, and their neighbours: bool [tokens, nodes]."""
    held = torch.zeros(length, len(nodes), dtype=torch.bool)
    held[nodes, torch.arange(len(nodes))] = True
    own, first, total, pairs = held, None, 0, 0
    for hop in range(1, _MOST_HOPS):
        wider = held
        for pattern in stack:
            wider = wider | step(pattern, held, "both")
        new = int(wider.sum()) - int(held.sum())
        if first is None:
            first = wider & ~own
        if not new:
            break
        total, pairs, held = total + hop * new, pairs + new, wider
    assert first is not None
    return total / max(1, pairs), first


def _clustering(stack: Sequence[Pattern], neighbours: Tensor, seed: int) -> float:
    """How often two neighbours of a token are neighbours themselves, over pairs drawn for every token."""
    found = []
    for node, column in enumerate(neighbours.unbind(1)):
        others = column.nonzero()[:, 0]
        if len(others) < 2:
            continue
        number = mixed(steps(torch.arange(2 * WEDGES), stream(seed, node, _USE))) >> 33 & ((1 << 30) - 1)
        one = number[:WEDGES] % len(others)
        other = (one + 1 + number[WEDGES:] % (len(others) - 1)) % len(others)
        early, late = torch.minimum(others[one], others[other]), torch.maximum(others[one], others[other])
        joined = torch.zeros(WEDGES, dtype=torch.bool)
        for pattern in stack:
            joined |= sees(pattern, late, early)
        found.append(float(joined.double().mean()))
    return fmean(found) if found else 0.0
