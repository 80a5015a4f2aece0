"""Mixing: how fast layers spread attention mass, were every query to attend to its visible keys alike.

A layer is then a matrix A whose row i is 1 over the number of visible keys at those keys; a stack is their product.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from sa_patch import intervals
from sa_patch.analysis import layers
from sa_patch.intervals import Interval
from sa_patch.plan import Plan
from sa_patch.randomness import mixed, steps, stream
from sa_patch.variants.base import Variant

LARGEST = 2048  # tokens: the matrices are dense
FOLLOWED = 64  # tokens whose mass is followed
_SUBSPACE, _ITERATIONS = 24, 60  # vectors and steps of the iteration for averages
_USE = 4  # tells these random numbers from others
MIXED = 0.25  # total variation distance at which a walk counts as mixed (Levin & Peres, Markov Chains and Mixing Times)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What a stack of layers does to a unit of mass.

    Attributes:
        causal: True: keys are visible to later queries only. False: both ways, the theory's case.
        layer_gap: 1 - the second largest modulus of an eigenvalue of one layer's matrix, mean over seeds (first layer).
        averaged_gap: the same of the operator averaged over a seed's layers. Of M layers with k keys each, the second
            eigenvalue is still about (1 + sqrt(M / k))^2 / M, as for the mean of M random projections (Marchenko &
            Pastur): it comes down to the limit's 1 / k (`averaged_gap` below) only where M is large against k.
        distance: total variation distance, after l + 1 layers, between where a token's mass is and where it should be:
            spread evenly over all tokens; causal: spread as by so many layers of full attention. Mean over 64
            tokens, evenly spread, or all of them.
        mixing_time: layers until the mean distance is at most 0.25; None: more than there are.
        *_interval, distance_intervals: 95 % over seeds.
    """

    length: int
    num_layers: int
    seeds: tuple[int, ...]
    causal: bool
    layer_gap: float
    layer_gap_interval: Interval
    averaged_gap: float
    averaged_gap_interval: Interval
    distance: tuple[float, ...]
    distance_intervals: tuple[Interval, ...]

    @property
    def mixing_time(self) -> int | None:
        return next((layer + 1 for layer, found in enumerate(self.distance) if found <= MIXED), None)


def mixing(
    variant: Variant | Plan,
    length: int,
    num_layers: int,
    seeds: Sequence[int] = range(8),
    *,
    causal: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Mixing:
    """Build every layer's matrix and follow mass through the stack, from the last layer's queries down.

    Args:
        progress: called with 1 after every layer of every seed.

    Raises:
        ValueError: for arguments out of range, variants that choose keys by content, and more than 2,048 tokens.
    """
    layers.check(variant, length, num_layers, seeds)
    if length > LARGEST:
        raise ValueError(
            f"length={length:,}: mixing holds n x n matrices and takes at most {LARGEST:,} tokens; "
            "sa_patch.analysis.theory.averaged_gap and mixing_time say what to expect beyond"
        )
    random = layers.is_random(variant)
    used = tuple(seeds) if random else tuple(seeds)[:1]
    goal = _full(length) if causal else None
    gaps, averaged, distances = [], [], []
    for seed in used:
        mass = torch.eye(length)[_followed(length)]
        reference = mass
        total, found = torch.zeros(length, length), []
        for number, pattern in enumerate(layers.patterns(variant, length, num_layers, seed)):
            mask = pattern.visible()
            matrix = _spread(mask if causal else mask | mask.T)
            if number == 0:
                gaps.append(causal_gap(matrix) if causal else layer_gap(mask | mask.T))
            total += matrix
            mass = mass @ matrix
            reference = reference if goal is None else reference @ goal
            aim = torch.full_like(mass, 1 / length) if goal is None else reference
            found.append(float((mass - aim).abs().sum(1).mean() / 2))
            if progress is not None:
                progress(1)
        if random or len(set(layers.variants_of(variant, num_layers))) > 1:
            averaged.append(causal_gap(total / num_layers) if causal else _averaged(total / num_layers))
        else:
            averaged.append(gaps[-1])
        distances.append(found)

    interval = partial(intervals.of_seeds, random=random)
    by_layer = [list(values) for values in zip(*distances, strict=True)]
    return Mixing(
        length=length,
        num_layers=num_layers,
        seeds=used,
        causal=causal,
        layer_gap=fmean(gaps),
        layer_gap_interval=interval(gaps),
        averaged_gap=fmean(averaged),
        averaged_gap_interval=interval(averaged),
        distance=tuple(map(fmean, by_layer)),
        distance_intervals=tuple(map(interval, by_layer)),
    )


def _followed(length: int) -> Tensor:
    """The tokens whose mass is followed: int64."""
    count = min(length, FOLLOWED)
    return torch.arange(1, count + 1) * length // count - 1


def ring_gap(length: int, window: int) -> float:
    """The spectral gap of one layer of the ring: the same for swa on a ring and for sa-circular, whatever its order.

    A is circulant with k = 2 w - 1 equal entries, so its eigenvalues are Dirichlet kernels sin(pi k f / n) / (k sin(pi
    f / n)); the second largest modulus is that of f = 1 while k is small against n. A permutation of the tokens is a
    similarity and changes none. About (2 pi^2 / 3) (w / n)^2: one layer of sa mixes as slowly as swa.
    """
    k = 2 * window - 1
    if k >= length:
        return 1.0
    values = (
        abs(math.sin(math.pi * k * f / length) / (k * math.sin(math.pi * f / length)))
        for f in range(1, length // 2 + 1)
    )
    return 1 - max(values)


def averaged_gap(length: int, window: int) -> float:
    """The spectral gap of the operator averaged over the orders of sa on a ring: 1 - (n - k) / (k (n - 1)).

    With k = 2 w - 1, the diagonal of A is always 1 / k, and every other entry is 1 / k with probability (k - 1) /
    (n - 1). So E[A] = 1 / k I + (k - 1) / (k (n - 1)) (J - I): eigenvalue 1 once, (n - k) / (k (n - 1)) n - 1 times,
    about 1 / k. It is also the factor by which a layer shrinks the squared distance from even, expected over its order.
    """
    k = min(length, 2 * window - 1)
    return 1.0 if length == 1 else 1 - (length - k) / (k * (length - 1))


def mixing_time(length: int, window: int) -> int:
    """Layers until the averaged operator's total variation distance is at most 0.25, sa on a ring.

    E[A]^t = lambda^t I + ... has the distance (1 - 1/n) lambda^t from even, lambda = 1 - `averaged_gap`; layers are
    independent, so the average of the stack is the stack of averages. One stack's own mass is further from even: it is
    on at most k^t tokens.

    Raises:
        ValueError: for a window of 1, which spreads nothing.
    """
    if window < 2 <= length:
        raise ValueError(f"window={window} shows a query nothing but itself: nothing spreads")
    factor = 1 - averaged_gap(length, window)
    if factor <= 0 or (1 - 1 / length) * factor <= MIXED:
        return 1
    return math.ceil(math.log(MIXED / (1 - 1 / length)) / math.log(factor))


def _spread(mask: Tensor) -> Tensor:
    """Rows of equal shares."""
    weight = mask.float()
    return weight / weight.sum(1, keepdim=True)


def _full(length: int) -> Tensor:
    return _spread(torch.ones(length, length, dtype=torch.bool).tril())


def causal_gap(matrix: Tensor) -> float:
    """1 - the second largest eigenvalue of a triangular matrix: they are its diagonal. Every token that sees nobody but
    itself holds its mass for good, and has eigenvalue 1."""
    return 1.0 if len(matrix) == 1 else 1 - float(matrix.diagonal().sort(descending=True).values[1])


def layer_gap(mask: Tensor) -> float:
    """1 - the second largest modulus of an eigenvalue of the walk on an undirected graph: bool [n, n], symmetric.

    D^-1 V has the eigenvalues of the symmetric D^-1/2 V D^-1/2.
    """
    if len(mask) == 1:
        return 1.0
    root = mask.double().sum(1).rsqrt()
    values = torch.linalg.eigvalsh(root[:, None] * mask * root)
    return 1 - float(values.abs().sort(descending=True).values[1])


def _averaged(matrix: Tensor) -> float:
    """The same of an average of such walks, which is no walk on a graph: by subspace iteration."""
    size = min(len(matrix), _SUBSPACE)
    basis = torch.linalg.qr(_start(len(matrix), size)).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix @ basis).Q
    values = torch.linalg.eigvals(basis.T @ matrix @ basis)
    return 1.0 if size == 1 else 1 - float(values.abs().sort(descending=True).values[1])


def _start(rows: int, columns: int) -> Tensor:
    """Columns to begin with: a constant one, then random signs from a hash."""
    signs = mixed(steps(torch.arange(rows * columns), stream(0, 0, _USE))) & 1
    found = (2.0 * signs - 1).view(rows, columns)
    found[:, 0] = 1.0
    return found
