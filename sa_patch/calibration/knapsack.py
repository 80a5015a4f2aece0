"""One candidate per layer, so that the estimated loss is least within a total number of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STEPS = 20_000  # the budget's resolution


def choose(losses: Tensor, pairs: Sequence[int], budget: int) -> list[int]:
    """Which candidate every layer takes: the exact optimum for pairs rounded up to 1 / STEPS of the budget.

    Args:
        losses: float64 [layers, candidates], of each layer alone; they are added up.
        pairs: what each candidate costs.
        budget: pairs that all layers together may cost.

    Raises:
        ValueError: when even the cheapest candidates cost more.
    """
    unit = max(1, budget // STEPS)
    costs, most = [-(-cost // unit) for cost in pairs], budget // unit
    best = torch.zeros(most + 1, dtype=torch.float64)  # the least loss of the layers so far, by what they may cost
    taken = []
    for row in losses:
        choices = torch.full((len(costs), most + 1), torch.inf, dtype=torch.float64)
        for number, cost in enumerate(costs):
            if cost <= most:
                choices[number, cost:] = best[: most + 1 - cost] + row[number]
        best, chosen = choices.min(dim=0)
        taken.append(chosen)
    if not torch.isfinite(best[most]):
        raise ValueError(f"the cheapest variants cost more than {budget:,} pairs over {len(losses)} layers")
    picks, left = [], most
    for chosen in reversed(taken):
        picks.append(int(chosen[left]))
        left -= costs[picks[-1]]
    return picks[::-1]
