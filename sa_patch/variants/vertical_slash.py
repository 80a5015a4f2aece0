"""`vertical-slash`: MInference's lines, single keys and single distances that the prompt's last queries choose."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.budget import LayerBudget
from sa_patch.counting import extra_pairs, triangle, window_pairs
from sa_patch.geometry import Group
from sa_patch.patterns import Lines, Pattern
from sa_patch.variants.base import ROUTER_COST_HELP, Variant, check_charged, default_sinks
from sa_patch.variants.options import option


@dataclass(frozen=True)
class Shares:
    """What a prompt's budget is divided into.

    Attributes:
        sinks, local: tokens.
        lines: what all lines together may take beside them: pairs, or lines under budget="nominal".
        vertical: what of it vertical lines may take.
    """

    sinks: int
    local: int
    lines: int
    vertical: int


@dataclass(frozen=True, kw_only=True)
class VerticalSlash(Variant):
    """Query i sees the first `sinks` tokens, the last `local` tokens, and its head's vertical and slash lines.

    A vertical line c shows the key at position c to every later query, a slash line d shows every query i the key at
    i - d. Let A be the weights of full attention for the prompt's last `probe` queries: a causal softmax in float32 of
    their scores with all keys, scaled by head_dim ** -0.5. A vertical line's score is the sum of A over column c, a
    slash line's the sum over its entries at distance d. Every query head takes its best lines, in order of score (of
    equal ones the lowest c or d): of the pairs that swa has at the window beyond sinks and local window, vertical lines
    get `vertical_share`, as many as fit; slash lines get all that is left, as many as fit. Candidates are the keys
    after the sinks and the distances beyond the local window; a slash line is counted without pairs that vertical
    lines show already. So there are never more pairs than swa has, and fewer by less than the first slash line that was
    not taken would add; how many there are is up to the content.

    The rule is MInference's (arXiv 2407.02490, its pattern "vertical-slash", and github.com/microsoft/MInference).
    There, numbers of lines are found per head by a search beforehand, which may also give a head another kind of
    pattern; the first 30 keys and the last 100 distances always count among the lines; and slash lines are rounded to
    blocks of keys for its kernel. Here every head has this kind, lines are of single tokens, and what is shown is
    counted.

    The last queries decide what all queries see: outputs depend on content that comes later, in training, too.

    Attributes:
        budget: "nominal": `window` lines, `vertical_share` of them vertical, whatever pairs they have; sinks and local
            window come on top.
        sinks: 4 when None, fewer in windows below 32.
        local: 0: a quarter of the window (charged, of what the router leaves).
        probe: queries that choose; all of a shorter prompt's.
        router_cost: "charged": the window pays for A, half a pair for every product of a query with a key.
    """

    name: ClassVar[str] = "vertical-slash"
    label: ClassVar[str] = "vertical and slash lines (MInference)"
    help: ClassVar[str] = "sinks, a local window, and the best single keys and distances for the prompt's last queries"
    caveat: ClassVar[str] = (
        "a peer's rule to compare with, not made to be fast here; the last queries choose the keys of all, so that "
        "scores of a text depend on its end"
    )
    layout: ClassVar[str] = "lines"
    defaults: ClassVar[Mapping[str, Any]] = {}

    probe: int = option(64, "last queries of the prompt that choose lines for all", minimum=1, told="probe{}")
    vertical_share: int | float = option(
        0.5, "of what lines may take, the share of vertical ones; slash lines get the rest", told="vertical{}"
    )
    router_cost: Literal["reported", "charged"] = option("reported", ROUTER_COST_HELP)

    def __post_init__(self) -> None:
        if self.sinks is None:
            object.__setattr__(self, "sinks", default_sinks(self.window))
        super().__post_init__()
        if self.vertical_share > 1:
            raise ValueError(f"vertical_share={self.vertical_share} is no share: give 0, 1, or a fraction between them")
        if self.decode == "sparse":
            raise ValueError(
                f"the last {self.probe} queries of a prompt choose its lines, and generated tokens come one by one: "
                "use decode='full'"
            )
        if self.router_cost == "charged":
            check_charged(self.budget, self.decode)

    def whole_prompt_reason(self) -> str | None:
        return f"the last {self.probe} queries of the whole prompt choose the keys of {self.name!r}"

    def shares(self, length: int) -> Shares:
        """What a prompt of `length` tokens, more than the window, is divided into.

        Raises:
            ValueError: when sinks and local window exceed what the router leaves of the window.
        """
        sizes = self.sizes(length)
        if self.budget == "nominal":
            local = sizes.local or max(1, sizes.window // 4)
            return Shares(sizes.sinks, local, sizes.window, int(self.vertical_share * sizes.window))
        pairs = window_pairs(length, sizes.window) - self._charged(length)
        window = bisect_right(range(1, sizes.window + 1), pairs, key=lambda one: window_pairs(length, one))
        local = sizes.local or max(1, min(window // 4, window - sizes.sinks))
        if sizes.sinks + local > window:
            raise ValueError(
                f"at {length} tokens the router alone costs {self._charged(length) / length:.0f} of "
                f"window={sizes.window} keys per query, which leaves no room for {sizes.sinks} sinks and a local "
                f"window of {local}: raise window, lower probe, sinks or local, or use router_cost='reported'"
            )
        lines = pairs - length - extra_pairs(length, sizes.sinks, local)
        return Shares(sizes.sinks, local, lines, int(self.vertical_share * lines))

    def _products(self, length: int) -> int:
        """Products of the last queries with the keys that they may see, per head."""
        return triangle(length) - triangle(length - min(self.probe, length))

    def _charged(self, length: int) -> int:
        return (self._products(length) + 1) // 2 if self.router_cost == "charged" else 0

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        if self.window_at(group.length) >= group.length:
            return self.dense(group)
        shares = self.shares(group.length)
        if shares.sinks + shares.local >= group.length:  # under budget="nominal"
            return self.dense(group)
        if query is None or key is None:
            raise ValueError(
                "the keys vertical-slash selects depend on the content: its mask exists only in a forward pass"
            )
        probe = min(self.probe, group.length)
        if group.query_len < probe:
            raise NotImplementedError(
                f"the last {probe} queries of the prompt choose its lines, and this call has {group.query_len}: give "
                "the whole prompt, or lower probe"
            )
        with torch.no_grad():
            lines = choose_lines(*line_scores(query, key, probe), shares, in_pairs=self.budget == "pairs")
        common = self.common(group, self.sizes(group.length))
        common["local"] = shares.local
        return Lines(verticals=lines[0], slashes=lines[1], **common)

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        if self.window_at(length) >= length:
            return LayerBudget(layer_idx, "sparse", triangle(length))
        shares = self.shares(length)
        most = shares.lines
        if self.budget == "nominal":  # the longest lines of each kind
            span = max(0, length - shares.sinks - shares.local)
            most = window_pairs(span, shares.vertical) + window_pairs(span, shares.lines)
        sparse = max(0, length - self.dense_tail)
        certain = sparse + extra_pairs(sparse, shares.sinks, shares.local)
        pairs = min(certain + most, triangle(sparse)) + triangle(length) - triangle(sparse)
        charged = self._charged(length)
        return LayerBudget(layer_idx, "sparse", pairs, self._products(length), exact=False, charged=charged)


def line_scores(query: Tensor, key: Tensor, probe: int) -> tuple[Tensor, Tensor]:
    """The weight that the last `probe` queries put on every key, and on every distance.

    A head's numbers are computed by themselves, so that they are the same in any batch.

    Args:
        query: [rows, heads, query_len, head_dim]; key: [rows, kv_heads, length, head_dim]; probe <= query_len.

    Returns:
        float32 [rows, heads, length], twice: sums of attention weights by position, and by distance.
    """
    length, group = key.shape[2], query.shape[1] // key.shape[1]
    shape = (*query.shape[:2], length)
    vertical, slash = (torch.empty(shape, dtype=torch.float32, device=query.device) for _ in range(2))
    position = torch.arange(length, device=query.device)
    ahead = position > position[length - probe :, None]
    for row in range(shape[0]):
        for head in range(shape[1]):
            last = query[row, head, -probe:].float() * query.shape[-1] ** -0.5
            scores = last @ key[row, head // group].float().contiguous().transpose(0, 1)
            weights = scores.masked_fill_(ahead, -torch.inf).softmax(dim=-1)
            vertical[row, head] = weights.sum(0)
            slash[row, head] = sums_by_distance(weights)
    return vertical, slash


def sums_by_distance(weights: Tensor) -> Tensor:
    """Sums over pairs of one distance: [probe, length], of the last queries, to [length].

    Turned over, keys lie in the order of their distance from the last query, one place further on for every query
    before it. Rows that are read one entry too short are each shifted by one against the row above.
    """
    probe, length = weights.shape
    rows = F.pad(weights.flip(-1), (0, probe)).flatten()[: probe * (length + probe - 1)]
    return rows.view(probe, length + probe - 1).sum(0)[probe - 1 :]


def choose_lines(vertical: Tensor, slash: Tensor, shares: Shares, *, in_pairs: bool) -> tuple[Tensor, Tensor]:
    """Every head's lines.

    Args:
        vertical, slash: scores of positions and of distances, [rows, heads, length].
        in_pairs: whether `shares` counts pairs, or lines.

    Returns:
        (verticals, slashes) as in `Lines`.
    """
    length = vertical.shape[-1]
    span = length - shares.sinks - shares.local  # the k-th candidate of either kind has `span - k` pairs
    alone = torch.arange(span, 0, -1, device=vertical.device)
    cost = alone if in_pairs else torch.ones_like(alone)
    chosen = _best(vertical[..., shares.sinks : length - shares.local], cost, shares.vertical)
    left = shares.lines - (chosen * cost).sum(-1, keepdim=True)
    if in_pairs:  # a slash line crosses the verticals up to the last query's key on it
        cost = alone - chosen.cumsum(-1).flip(-1)
    crossing = _best(slash[..., shares.local : length - shares.sinks], cost, left)
    return _listed(chosen, shares.sinks, length), _listed(crossing, shares.local, length)


def _best(scores: Tensor, cost: Tensor, room: Tensor | int) -> Tensor:
    """The candidates of highest score whose costs add up to at most `room`: bool, as `scores`."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    fits = cost.expand_as(scores).gather(-1, order).cumsum(-1) <= room
    return torch.zeros_like(fits).scatter_(-1, order, fits)


def _listed(chosen: Tensor, first: int, length: int) -> Tensor:
    """The numbers of chosen candidates, which count from `first`: ascending, filled up with `length`."""
    number = torch.arange(first, first + chosen.shape[-1], device=chosen.device)
    listed = torch.where(chosen, number, length).sort(dim=-1).values
    return listed[..., : int(chosen.sum(-1).max())]
