"""What a layer may run in a plan: variants at windows of several sizes, and the full attention of its own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sa_patch.variants import Variant, make_variant
from sa_patch.variants.routed import default_block

SHARES = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.25, 3.5, 5.0)  # of the mean window
SMALLER = (0.06, 0.12, 0.18)  # more of them where the budget is looked for below the mean window
LEAST = 12
# Name, mode, options of the window.
RECIPES: dict[str, tuple[str, Any]] = {
    "routed": ("routed", lambda window: {}),
    "routed, half the block": ("routed", lambda window: {"block_size": max(1, default_block(window) // 2)}),
    "routed, twice the block": ("routed", lambda window: {"block_size": 2 * default_block(window)}),
    "routed, near": ("routed", lambda window: {"local": window // 2}),
    "routed, far": ("routed", lambda window: {"local": max(1, window // 12)}),
    "routed, by the mean": ("routed", lambda window: {"router": "mean"}),
    "swa, 4 sinks": ("swa", lambda window: {"sinks": 4}),
    "sa+swa, 4 sinks": ("sa+swa", lambda window: {"sinks": 4}),
    "moba, 8 blocks": ("moba", lambda window: {"top_k": 8, "sinks": 4, "local": window // 2}),
}


@dataclass(frozen=True)
class Candidate:
    """One variant that a layer may run; `recipe` is its family."""

    recipe: str
    variant: Variant


def candidate(recipe: str, window: int) -> Candidate | None:
    """A recipe at a window; None where it is not possible there."""
    mode, options = RECIPES[recipe]
    try:
        return Candidate(recipe, make_variant(mode, {"window": window, **options(window)}))
    except ValueError:
        return None


@lru_cache(maxsize=10_000)
def recipe_of(variant: Variant) -> str:
    """The name of the recipe that gives a variant of a plan; "full" for full attention.

    Raises:
        ValueError: when no recipe does.
    """
    if variant.always_dense:
        return "full"
    for name in RECIPES:
        one = candidate(name, int(variant.window))
        if one is not None and one.variant == variant:
            return name
    raise ValueError(f"no recipe gives {variant.spec}")


def candidates(window: int, longest: int, shares: Sequence[float] = SHARES) -> list[Candidate]:
    """All candidates for a mean of `window` keys per query in prompts of up to `longest` tokens."""
    sizes = sorted({max(LEAST, round(share * window)) for share in shares})
    found = [candidate(recipe, size) for size in sizes if size < longest // 2 for recipe in RECIPES]
    return [Candidate("full", make_variant("full", {})), *(one for one in found if one is not None)]
