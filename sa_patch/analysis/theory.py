"""Closed forms: what random orders should connect, with their derivations. Tests hold each against simulation.

Notation: n tokens, window w, m = 2(w - 1) neighbours of a rank that is not near an end, p the probability that a given
earlier token is visible to a query in one layer. Every layer has an independent, uniformly random order.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sa_patch.counting import band_pairs, triangle
from sa_patch.plan import Plan
from sa_patch.variants.base import Variant
from sa_patch.variants.sliding_window import SlidingWindow
from sa_patch.variants.stochastic import Stochastic

Form = Literal["sliding", "circular", "bucket", "window"]
_MOST_ENDS = 8  # ranks near an end are taken together in so many classes at most


def pairs(length: int, window: int, circular: bool = False) -> int:
    """Visible (query, key) pairs of one layer, the query itself included: n w - w (w - 1) / 2 whatever the order is.

    There are n - d pairs of ranks at distance d, and of two tokens one is the later: each is one causal pair. Summed
    over d = 0 .. w - 1. On a ring there are n at every distance: n w while 2 (w - 1) < n.
    """
    return band_pairs(length, window, circular)


def visibility(length: int, window: int, circular: bool = False) -> float:
    """p: the probability that a query sees a given earlier token in one layer of the causal two-sided band.

    The ranks of two tokens are a uniformly random pair of distinct ranks, whatever the tokens are: so p is the share
    of near ones among all n (n - 1) / 2 pairs of ranks, ((w - 1) n - w (w - 1) / 2) / (n (n - 1) / 2), that is
    (w - 1) (2 n - w) / (n (n - 1)). On a ring 2 (w - 1) / (n - 1). The order of the positions takes no part: it only
    says which of the two is the query. All pairs are equally likely, the previous token no more than the first one.
    """
    return (pairs(length, window, circular) - length) / triangle(length - 1) if length > 1 else 1.0


def expected_coverage(
    length: int, window: int, num_layers: int, *, form: Form = "sliding", causal: bool = True
) -> tuple[float, ...]:
    """The share of pairs that are connected after 1, 2, ... layers, expected over orders.

    form="window" (swa) is exact: content moves at most w - 1 tokens per layer, so distance d needs ceil(d / (w - 1)).

    Random orders: let s tokens hold j's content, all up to i, none of them i. Their ranks in the next layer are a
    uniformly random s-subset of the n - 1 ranks other than i's, so none is among the m neighbours of i's rank with
    probability q(s) = C(n - 1 - m, s) / C(n - 1, s): exact, with m = 2 (w - 1) on a ring and in a full bucket, and in a
    sliding window averaged over i's rank, for there are fewer neighbours near an end.

    Causal: only holders before i count. u(d), the probability that j's content is at j + d, begins as 1 at d = 0 and
    goes by u'(d) = u(d) + (1 - u(d)) (1 - q(u(0) + ... + u(d - 1))). Both directions (the paper's theory): r' = r +
    (n - r) (1 - q(r)). Putting the expected number of holders into q instead of the number itself is the only
    approximation (mean field); the first layer is exact. Buckets: an incomplete last one is ignored.
    """
    if form == "window":
        return _of_window(length, window, num_layers, causal)
    missed = _missed(length, window, form)
    if not causal:
        return tuple(share / length for share in _spread_both_ways(length, num_layers, missed))
    weight = torch.arange(length, 0, -1, dtype=torch.float64)
    reached = torch.zeros(length, dtype=torch.float64)
    reached[0] = 1.0
    found = []
    for _ in range(num_layers):
        reached = _spread(reached, missed)
        found.append(float(reached @ weight) / triangle(length))
    return tuple(found)


def expected_by_distance(length: int, window: int, num_layers: int, *, form: Form = "sliding") -> Tensor:
    """u: the probability that a token is connected to the one d before it, causal: float64 [layers, length]."""
    if form == "window":
        layer = torch.arange(1, num_layers + 1)[:, None]
        return (torch.arange(length) <= layer * (min(window, length) - 1)).double()
    missed, reached = _missed(length, window, form), torch.zeros(length, dtype=torch.float64)
    reached[0] = 1.0
    found = []
    for _ in range(num_layers):
        reached = _spread(reached, missed)
        found.append(reached)
    return torch.stack(found)


def coverage_bound(length: int, window: int, num_layers: int, circular: bool = False) -> tuple[float, ...]:
    """No causal stack connects more than this share of pairs, expected over orders, after 1, 2, ... layers.

    A connection over distance d is a chain of h hops in h different layers, in order, over h - 1 tokens in between, in
    order: C(l, h) C(d - 1, h - 1) chains, each there with probability p^h, for layers are independent. The probability
    that one is there is at most their expected number, and at most 1 (first moment). Averaged over all pairs.
    """
    if length == 1:
        return (1.0,) * num_layers
    p, distance = visibility(length, window, circular), torch.arange(1, length, dtype=torch.float64)
    weight, found = length - distance, []
    for depth in range(1, num_layers + 1):
        chains = torch.zeros_like(distance)
        for hops in range(1, depth + 1):
            log_chains = _log_choose(torch.tensor(depth), hops) + _log_choose(distance - 1, hops - 1)
            chains += torch.where(distance >= hops, (log_chains + hops * math.log(p)).clamp(max=1.0).exp(), 0.0)
        found.append((length + float(chains.clamp(max=1.0) @ weight)) / triangle(length))
    return tuple(found)


def log_depth(length: int, window: int) -> float:
    """log(n) / log(2 w - 1): fewer layers connect no query to all n tokens, in any form and any direction.

    A token sees at most 2 w - 1 tokens, itself included; so l layers reach at most (2 w - 1)^l. This is the log_w n of
    the claim that coverage is complete in O(log_w n) layers.
    """
    return math.log(length) / math.log(2 * window - 1) if window > 1 else math.inf


def layers_needed(
    length: int, window: int, delta: float, *, form: Form = "sliding", causal: bool = True, everything: bool = False
) -> int:
    """The fewest layers after which a pair drawn at random is connected with probability at least 1 - delta.

    By `expected_coverage`. With everything=True: after which all pairs at once are, with probability at least
    1 - delta. Both directions: the expected number of pairs left out, n (n - r), is at most delta (a union bound on the
    mean field). Causal: see `layers_for_everything`, whose upper bound this is.

    Raises:
        ValueError: for a delta that is no probability, or where no number of layers is enough.
    """
    _check_delta(delta)
    if window < 2 <= length:
        raise ValueError(f"window={window} shows a query nothing but itself: no number of layers is enough")
    if everything and form == "window":
        return max(1, -(-(length - 1) // (window - 1)))
    if everything and causal:
        return layers_for_everything(length, window, delta, circular=form != "sliding")[1]
    enough, depth = 1 - (delta / length**2 if everything else delta), 8
    while True:  # every layer adds something, so this ends
        shares = expected_coverage(length, window, depth, form=form, causal=causal)
        if shares[-1] >= enough:
            return next(layer + 1 for layer, share in enumerate(shares) if share >= enough)
        depth *= 2


def layers_for_previous(length: int, window: int, delta: float, circular: bool = False) -> int:
    """The fewest layers after which a token is connected to its previous token with probability at least 1 - delta.

    No token lies between the two, so only a layer that shows the pair itself connects them: l independent layers fail
    with probability (1 - p)^l, hence l = ln(delta) / ln(1 - p), about n / (2 w) ln(1 / delta). Exact.
    """
    _check_delta(delta)
    p = visibility(length, window, circular)
    return 1 if p >= 1 else max(1, math.ceil(math.log(delta) / math.log1p(-p)))


def previous_connected(length: int, window: int, num_layers: int, circular: bool = False) -> float:
    """The probability that a token is connected to its previous token after some layers: 1 - (1 - p)^l. Exact."""
    return 1 - (1 - visibility(length, window, circular)) ** num_layers


def layers_for_everything(length: int, window: int, delta: float, circular: bool = False) -> tuple[int, int]:
    """Bounds on the layers after which ALL causal pairs are connected with probability 1 - delta: (lower, upper).

    Upper: each of the n (n - 1) / 2 pairs is itself visible in one of l layers but with probability (1 - p)^l, so
    n (n - 1) / 2 (1 - p)^l <= delta is enough (union bound; rigorous). Lower: all n - 1 pairs of neighbours have to be
    visible themselves (`layers_for_previous`); they are nearly independent, so that all of them are with probability
    about exp(-(n - 1) (1 - p)^l), which is to be 1 - delta (Poisson approximation). Both are about n / (2 w) ln(n)
    layers, up to a factor of 2: the causal form does not cover everything in O(log_w n) layers.
    """
    _check_delta(delta)
    p = visibility(length, window, circular)
    if p >= 1 or length < 3:
        return 1, 1
    rate = -math.log1p(-p)
    lower = math.log((length - 1) / -math.log1p(-delta)) / rate
    upper = math.log(length * (length - 1) / 2 / delta) / rate
    return max(1, math.ceil(lower)), max(1, math.ceil(upper))


def of_variant(variant: Variant | Plan, length: int, num_layers: int, *, causal: bool) -> tuple[float, ...] | None:
    """`expected_coverage` of a variant; None without a closed form: for plans, sinks, local windows, dense parts."""
    if isinstance(variant, Plan) and variant.single is None:
        return None
    one = variant.variants[0] if isinstance(variant, Plan) else variant
    if one.always_dense:
        return (1.0,) * num_layers
    sizes = one.sizes(length)
    dense = one.dense_tail or one.dense_layers or (isinstance(one.dense_below, int) and one.dense_below >= length)
    if dense or sizes.sinks or sizes.local > 1:
        return None
    if type(one) is SlidingWindow:
        return expected_coverage(length, sizes.window, num_layers, form="window", causal=causal)
    if type(one) is not Stochastic or one.horizon != "length":
        return None
    form: Form = "circular" if one.circular else one.form
    return expected_coverage(length, sizes.window, num_layers, form=form, causal=causal)


def _of_window(length: int, window: int, num_layers: int, causal: bool) -> tuple[float, ...]:
    reach = [min(length, depth * (window - 1) + 1) for depth in range(1, num_layers + 1)]
    one_way = [band_pairs(length, some) for some in reach]
    if causal:
        return tuple(found / triangle(length) for found in one_way)
    return tuple((2 * found - length) / length**2 for found in one_way)


def _missed(length: int, window: int, form: Form) -> Callable[[Tensor], Tensor]:
    """q: how likely none of s tokens is a neighbour of another one, whose rank is uniformly random."""
    if form == "sliding":
        rank, reach = torch.arange(length), min(window, length) - 1
        neighbours = rank.clamp(max=reach) + (length - 1 - rank).clamp(max=reach)
        number, count = neighbours.unique(return_counts=True)
        classes = zip(number.tensor_split(_MOST_ENDS), count.tensor_split(_MOST_ENDS), strict=True)
        merged = [((m * c).sum().double() / c.sum(), c.sum().double() / length) for m, c in classes if len(m)]
    else:
        merged = [(torch.tensor(min(length - 1, 2 * (window - 1))), torch.tensor(1.0))]

    def missed(held: Tensor) -> Tensor:
        total, common = torch.zeros_like(held), torch.lgamma(length - held) - math.lgamma(length)
        for number, share in merged:
            m = number.double()
            free = torch.lgamma((length - m - held).clamp(min=1e-300))
            log_q = (torch.lgamma(length - m) - free + common).clamp(max=0.0)
            total += share.double() * torch.where(held <= length - 1 - m, log_q.exp(), 0.0)
        return total

    return missed


def _spread(reached: Tensor, missed: Callable[[Tensor], Tensor]) -> Tensor:
    """One causal layer: the probability at every distance, from that before it."""
    before = reached.cumsum(0) - reached
    return reached + (1 - reached) * (1 - missed(before)) * (before > 0)


def _spread_both_ways(length: int, num_layers: int, missed: Callable[[Tensor], Tensor]) -> list[float]:
    held, found = 1.0, []
    for _ in range(num_layers):
        if length - held > 1e-12:
            left = float(missed(torch.tensor([min(held, length - 1.0)], dtype=torch.float64)))
            held += (length - held) * (1 - left)
        found.append(held)
    return found


def _log_choose(total: Tensor, chosen: int) -> Tensor:
    total = total.double()
    return torch.lgamma(total + 1) - math.lgamma(chosen + 1) - torch.lgamma((total - chosen + 1).clamp(min=1.0))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta is a probability between 0 and 1, got {delta!r}")
