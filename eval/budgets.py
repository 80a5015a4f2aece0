"""The measured budget of an arm over the prompts it really saw (prefill; decode reads what `decode` says)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sa_eval.records.types import MeasuredBudget

MAX_LENGTHS = 16


def measured_budget(patch: Any | None, prompt_tokens: Sequence[int]) -> MeasuredBudget:
    """keys per query and density over all queries of all prompts; `patch` None is full attention.

    Prompts of one length differ by a few tokens; beyond MAX_LENGTHS distinct lengths, quantiles stand for them.
    """
    counts = _few(Counter(prompt_tokens))
    queries = pairs = possible = router = 0.0
    exact, off_target = True, 0.0
    for length, count in counts.items():
        full_pairs = length * (length + 1) / 2
        budget = None if patch is None else patch.budget(length)
        keys = full_pairs / length if budget is None else float(budget.keys_per_query)
        queries += count * length
        pairs += count * length * keys
        possible += count * full_pairs
        if budget is not None:
            router += count * length * budget.router_cost
            exact = exact and budget.exact
            off_target = max(off_target, budget.off_target, key=abs)
    return MeasuredBudget(
        keys_per_query=pairs / queries,
        density=pairs / possible,
        router_cost_per_query=router / queries,
        exact=exact,
        off_target=off_target,
    )


def _few(counts: Counter[int]) -> dict[int, float]:
    if len(counts) <= MAX_LENGTHS:
        return dict(counts)
    ordered = sorted(counts.elements())
    picks = [ordered[(2 * idx + 1) * len(ordered) // (2 * MAX_LENGTHS)] for idx in range(MAX_LENGTHS)]
    return dict(Counter(picks))
