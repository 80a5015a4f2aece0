"""Coverage: which share of (query, earlier token) pairs a stack of layers connects, and after how many layers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from sa_patch import intervals
from sa_patch.analysis import layers, theory
from sa_patch.analysis.reach import sees, step
from sa_patch.intervals import Interval
from sa_patch.patterns import Pattern
from sa_patch.plan import Plan
from sa_patch.randomness import mixed, steps, stream
from sa_patch.variants.base import Variant

EXACT = 2048  # tokens up to which every pair is looked at
SAMPLED = 64  # tokens followed per seed beyond
_AT_ONCE = 1 << 20  # entries of the sets followed at once: 4 MiB of marks stay in a cache
_USE = 2  # tells these random numbers from those of orders and draws


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What layers connect. Entry l of a curve is about the first l + 1 layers.

    A pair (query i, token j <= i) is connected after l + 1 layers when j's content can have reached i: some chain of
    tokens j <= a <= b <= ... <= i in which every layer shows each token the next one before it, or leaves it in place.
    Content that is passed on is not content that is used: this is an upper bound on what a model can do with it.

    Attributes:
        name: the variant with its options.
        causal: False: pairs in both directions, every layer's pattern as an undirected graph.
        exact: every pair was looked at; else `sources` tokens per seed were followed exactly, drawn so that every pair
            is as likely as any other.
        covered: mean over seeds of the share of pairs that are connected, the query itself included.
        intervals: 95 % of that mean, Student's t over seeds; nan with one seed, equal ends where nothing is random.
        per_seed: the shares, [seeds][layers].
        everything: share of seeds in which no pair is left out. Where not exact, in which none was found to be: the
            pairs that are looked at are those of the sources, and all pairs of neighbours.
        everything_intervals: 95 %, Wilson's.
        distances: (from, to) in tokens, both included: distance 0, 1, 2-3, 4-7, ... Empty where not causal.
        by_distance: share of pairs connected by distance, [layers][distances], mean over seeds.
        expected: the theory's share, see `theory.expected_coverage`; None where there is no closed form.
    """

    name: str
    length: int
    num_layers: int
    seeds: tuple[int, ...]
    causal: bool
    exact: bool
    sources: int
    covered: tuple[float, ...]
    intervals: tuple[Interval, ...]
    per_seed: tuple[tuple[float, ...], ...]
    everything: tuple[float, ...]
    everything_intervals: tuple[Interval, ...]
    distances: tuple[tuple[int, int], ...]
    by_distance: tuple[tuple[float, ...], ...]
    expected: tuple[float, ...] | None = None

    @property
    def hops(self) -> tuple[float, ...]:
        """Share of pairs that need exactly l + 1 layers, from the first one on; the rest is not connected."""
        return tuple(now - before for before, now in zip((0.0, *self.covered), self.covered, strict=False))

    @property
    def mean_hops(self) -> float:
        """Layers needed by the pairs that are connected at all, on average."""
        return sum((layer + 1) * share for layer, share in enumerate(self.hops)) / self.covered[-1]

    def layers_for(self, share: float) -> int | None:
        """The fewest layers after which that share of pairs is connected on average; None: more than were tried."""
        return next((layer + 1 for layer, found in enumerate(self.covered) if found >= share), None)

    def __str__(self) -> str:
        how = "every pair" if self.exact else f"{self.sources} tokens per seed followed"
        lines = [f"{self.name}, {self.length:,} tokens, {len(self.per_seed)} seeds, {how}", "layers  connected  95 %"]
        for layer, (share, (low, high)) in enumerate(zip(self.covered, self.intervals, strict=True)):
            theory_text = "" if self.expected is None else f"   theory {self.expected[layer]:.4f}"
            lines.append(f"{layer + 1:>6}  {share:>9.4f}  {low:.4f} - {high:.4f}{theory_text}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Found:
    """What one seed connects: shares of pairs per layer, whether all, and shares by distance [layers][distances]."""

    shares: list[float]
    whole: list[bool]
    by_distance: list[list[float]]


def coverage(
    variant: Variant | Plan,
    length: int,
    num_layers: int,
    seeds: Sequence[int] = range(8),
    *,
    causal: bool = True,
    sources: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Coverage:
    """Follow what layers connect, exactly, without an n x n matrix.

    Time: seeds x layers x sources x O(length log(window)); memory: O(length x sources).

    Args:
        variant: any whose keys don't depend on content, with any options; or a plan of such, as deep as `num_layers`.
        length: tokens of the prompt, up to 1,048,576.
        num_layers: layers of the stack; every curve has so many entries.
        seeds: each takes the place of the variants' own; where nothing is random one is enough, and only the tokens
            that are followed differ.
        causal: False: every layer's pattern as an undirected graph, as the theory of the circular form has it.
        sources: tokens to follow per seed; None: all up to 2,048 tokens, else 64.
        progress: called with 1 after every layer of every seed.

    Raises:
        ValueError: for arguments out of range, and for variants that choose keys by content: `prompt_coverage`
            measures those on a prompt.
    """
    layers.check(variant, length, num_layers, seeds)
    if sources is not None and (isinstance(sources, bool) or not isinstance(sources, int) or sources < 1):
        raise ValueError(f"sources must be a number of tokens of at least 1, got {sources!r}")
    count = (length if length <= EXACT else SAMPLED) if sources is None else min(sources, length)
    exact = count == length
    used = tuple(seeds) if layers.is_random(variant) or not exact else tuple(seeds)[:1]
    found = []
    for seed in used:
        stack = layers.patterns(variant, length, num_layers, seed)
        followed = torch.arange(length) if exact else draw_sources(length, count, seed, causal=causal)
        found.append(follow(stack, length, num_layers, followed, exact=exact, causal=causal, progress=progress))
    single = exact and not layers.is_random(variant)
    return summarise(
        found,
        name=_name(variant),
        length=length,
        seeds=used,
        causal=causal,
        sources=count,
        exact=exact,
        single=single,
        expected=theory.of_variant(variant, length, num_layers, causal=causal),
    )


def draw_sources(length: int, count: int, seed: int, *, causal: bool = True) -> Tensor:
    """Tokens to follow, one from each of `count` equally likely stretches: int64 [count].

    Causal: a token j is drawn with a probability in proportion to its n - j pairs, so the mean share of these pairs
    that is connected estimates the share of all pairs without bias. Otherwise all tokens are equally likely.
    """
    number = torch.arange(count, dtype=torch.int64)
    random = (mixed(steps(number, stream(seed, length, _USE))) >> 11 & ((1 << 53) - 1)).double() / (1 << 53)
    share = (number + random) / count
    if not causal:
        return (share * length).long().clamp(max=length - 1)
    pairs = torch.arange(length, 0, -1).cumsum(0)
    return torch.searchsorted(pairs, (share * pairs[-1]).long(), right=True).clamp(max=length - 1)


def follow(
    stack: Iterator[Pattern],
    length: int,
    num_layers: int,
    sources: Tensor,
    *,
    exact: bool,
    causal: bool,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """How far the content of some tokens gets, layer by layer.

    Args:
        stack: the pattern of every layer.
        sources: int64 [sources]; all tokens in order where `exact`.
    """
    at_once = max(1, _AT_ONCE // length)
    sets = [_alone(length, some) for some in sources.split(at_once)]
    shares, whole, by_distance = [], [], []
    later = torch.arange(1, length)
    neighbours = torch.full_like(later, exact or not causal, dtype=torch.bool)  # those that a layer showed each other
    full = False
    for pattern in stack:
        if not neighbours.all():
            neighbours |= sees(pattern, later, later - 1)
        if full:  # nothing changes from here on
            shares.append(shares[-1])
            by_distance.append(by_distance[-1])
        else:
            sets = [step(pattern, some, "forward" if causal else "both") for some in sets]
            share, full, distances = _tally(sets, sources, length, exact=exact, causal=causal)
            shares.append(share)
            by_distance.append(distances)
        whole.append(full and bool(neighbours.all()))
        if progress is not None:
            progress(1)
    assert len(shares) == num_layers
    return Found(shares, whole, by_distance)


def _alone(length: int, sources: Tensor) -> Tensor:
    """Each token as a set of its own: bool [length, sources]."""
    sets = torch.zeros(length, len(sources), dtype=torch.bool)
    sets[sources, torch.arange(len(sources))] = True
    return sets


def _tally(
    sets: Sequence[Tensor], sources: Tensor, length: int, *, exact: bool, causal: bool
) -> tuple[float, bool, list[float]]:
    """Share of pairs connected, whether all of the sources' are, and shares by distance."""
    later = length - sources if causal else torch.full_like(sources, length)  # pairs of every source
    reached = torch.cat([some.sum(0) for some in sets])
    weight = later.double() if exact else torch.ones(len(sources), dtype=torch.float64)
    share = float((weight * reached / later).sum() / weight.sum())
    full = bool((reached == later).all())
    if not causal:
        return share, full, []
    # Every source stands for as many pairs as its weight says, spread over its own distances.
    bounds = torch.tensor([low for low, _ in distances_of(length)] + [length])
    ends = torch.minimum(sources[:, None] + bounds, torch.tensor(length))
    below = torch.cat([_counts(some, part) for some, part in zip(sets, _split(ends, sets), strict=True)])
    each = (weight / later)[:, None]
    connected, possible = (each * below.diff(dim=1)).sum(0), (each * ends.diff(dim=1)).sum(0)
    return share, full, (connected / possible.clamp(min=1e-300)).tolist()


def _split(ends: Tensor, sets: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return ends.split([some.shape[1] for some in sets])


def _counts(sets: Tensor, ends: Tensor) -> Tensor:
    """How many tokens of every set are before some positions: int64 [sets, ends], from bool [tokens, sets]."""
    before = torch.nn.functional.pad(sets.cumsum(0, dtype=torch.int32), (0, 0, 1, 0))
    return before.gather(0, ends.T).T.long()


def distances_of(length: int) -> list[tuple[int, int]]:
    """Distance 0, then octaves: (1, 1), (2, 3), (4, 7), ... up to length - 1."""
    octaves = [(1 << power, min(length - 1, (2 << power) - 1)) for power in range((length - 1).bit_length())]
    return [(0, 0), *octaves]


def summarise(
    found: Sequence[Found],
    *,
    name: str,
    length: int,
    seeds: tuple[int, ...],
    causal: bool,
    sources: int,
    exact: bool,
    single: bool,
    expected: tuple[float, ...] | None,
) -> Coverage:
    """Means and intervals over seeds (or prompts); `single`: one of them says all there is."""
    by_layer = [list(values) for values in zip(*(one.shares for one in found), strict=True)]
    whole = [sum(flags) for flags in zip(*(one.whole for one in found), strict=True)]
    distances = zip(*(one.by_distance for one in found), strict=True)
    return Coverage(
        name=name,
        length=length,
        num_layers=len(by_layer),
        seeds=seeds,
        causal=causal,
        exact=exact,
        sources=sources,
        covered=tuple(fmean(values) for values in by_layer),
        intervals=tuple(intervals.of_seeds(v, random=not single) for v in by_layer),
        per_seed=tuple(tuple(one.shares) for one in found),
        everything=tuple(count / len(found) for count in whole),
        everything_intervals=tuple(
            (float(count), float(count)) if single else intervals.of_share(count, len(found)) for count in whole
        ),
        distances=tuple(distances_of(length)) if causal else (),
        by_distance=tuple(tuple(map(fmean, zip(*seeds_of, strict=True))) for seeds_of in distances),
        expected=expected,
    )


def _name(variant: Variant | Plan) -> str:
    if isinstance(variant, Plan):
        return f"a plan of {len(variant.distinct)} variants"
    window = "" if variant.always_dense else f" w={variant.window}"
    options = "".join(f" {name}={value}" for name, value in variant.changed().items() if name != "seed")
    return f"{variant.name}{window}{options}"
