"""Local coherence: how much of its immediate past a query still sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from sa_patch import intervals
from sa_patch.analysis import layers
from sa_patch.analysis.reach import sees
from sa_patch.intervals import Interval
from sa_patch.plan import Plan
from sa_patch.variants.base import Variant

QUERIES = 4096  # looked at per layer at most, evenly spread
_CHUNK = 1 << 20  # pairs at once


@dataclass(frozen=True, kw_only=True)
class LocalCoherence:
    """Direct visibility of the last `last` tokens, the query itself left out; means over queries and layers.

    Attributes:
        visible: share of queries that see the token d before them, for d = 1 .. last.
        share: the mean of these: which share of its last tokens a query sees in one layer.
        previous: share of queries that see their previous token in one layer.
        previous_within: share of queries that saw their previous token in at least one of the first l + 1 layers.
        broken: share of queries that never do in the whole stack: what previous-token heads lose for good.
        *_interval: 95 % over seeds.
    """

    length: int
    num_layers: int
    last: int
    seeds: tuple[int, ...]
    visible: tuple[float, ...]
    share: float
    share_interval: Interval
    previous: float
    previous_interval: Interval
    previous_within: tuple[float, ...]
    previous_within_intervals: tuple[Interval, ...]

    @property
    def broken(self) -> float:
        return 1 - self.previous_within[-1]


def local_coherence(
    variant: Variant | Plan, length: int, num_layers: int, seeds: Sequence[int] = range(8), *, last: int = 64
) -> LocalCoherence:
    """Look up the pairs of queries and the tokens just before them, layer by layer: O(length + queries x last).

    Args:
        last: tokens before the query; queries that have fewer are left out.

    Raises:
        ValueError: for arguments out of range, or variants that choose keys by content.
    """
    layers.check(variant, length, num_layers, seeds)
    if isinstance(last, bool) or not isinstance(last, int) or not 1 <= last < length:
        raise ValueError(f"last must be a number of tokens from 1 to {length - 1} (length - 1), got {last!r}")
    count = min(QUERIES, length - last)
    query = last + torch.arange(count) * (length - last) // count
    back = torch.arange(1, last + 1)
    random = layers.is_random(variant)
    used = tuple(seeds) if random else tuple(seeds)[:1]
    by_seed, within = [], []
    for seed in used:
        visible, ever, held = torch.zeros(last, dtype=torch.float64), torch.zeros(count, dtype=torch.bool), []
        for pattern in layers.patterns(variant, length, num_layers, seed):
            for rows in torch.arange(count).split(max(1, _CHUNK // last)):
                pairs = query[rows, None].expand(-1, last)
                seen = sees(pattern, pairs, pairs - back)
                visible += seen.double().sum(0)
                ever[rows] |= seen[:, 0]
            held.append(ever.double().mean().item())
        by_seed.append((visible / (count * num_layers)).tolist())
        within.append(held)
    shares, previous = [fmean(one) for one in by_seed], [one[0] for one in by_seed]

    interval = partial(intervals.of_seeds, random=random)
    layerwise = [list(values) for values in zip(*within, strict=True)]
    return LocalCoherence(
        length=length,
        num_layers=num_layers,
        last=last,
        seeds=used,
        visible=tuple(map(fmean, zip(*by_seed, strict=True))),
        share=fmean(shares),
        share_interval=interval(shares),
        previous=fmean(previous),
        previous_interval=interval(previous),
        previous_within=tuple(map(fmean, layerwise)),
        previous_within_intervals=tuple(map(interval, layerwise)),
    )
