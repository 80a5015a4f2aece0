"""What a layer may run in a plan: variants at windows of several sizes, and the full attention of its own model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

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
    "swa, 1 sink": ("swa", lambda window: {"sinks": 1}),
    "routed, blocks of w/8, charged": ("routed", lambda window: _charged(window // 8)),
    "routed, blocks of w/4, charged": ("routed", lambda window: _charged(window // 4)),
    "routed, blocks of w/2, charged": ("routed", lambda window: _charged(window // 2)),
    "routed, blocks of w/4, by variance, charged": (
        "routed",
        lambda window: {**_charged(window // 4), "router": "variance"},
    ),
}


def _charged(block: int) -> dict[str, int | str]:
    return {"block_size": max(1, block), "router": "mean", "router_cost": "charged"}


RouterCost = Literal["reported", "charged"]
_NO_ROUTER = "swa, 4 sinks"


@dataclass(frozen=True)
class Family:
    """The recipes that compete where routers are free, or where they are paid from the window.

    Attributes:
        names: all of them.
        usual: of the recipes with a router, the first of these that is possible is run in one layer alone, reported in
            any case, and the unit of losses.
    """

    names: tuple[str, ...]
    usual: tuple[str, ...]

    def controls(self, possible: Callable[[str], bool]) -> tuple[str, str]:
        """The recipes that are run in one layer alone, at the mean window, and always reported."""
        first = next((name for name in self.usual if possible(name)), "sa+swa, 4 sinks")
        return first, _NO_ROUTER


FAMILIES: dict[RouterCost, Family] = {
    "reported": Family(
        tuple(name for name in RECIPES if not name.endswith(", charged") and name != "swa, 1 sink"), ("routed",)
    ),
    "charged": Family(
        (*(name for name in RECIPES if name.endswith(", charged")), _NO_ROUTER, "swa, 1 sink", "sa+swa, 4 sinks"),
        ("routed, blocks of w/4, charged", "routed, blocks of w/2, charged", "routed, blocks of w/8, charged"),
    ),
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


def possible(variant: Variant, lengths: Sequence[int]) -> bool:
    """Whether a variant leaves room for its keys at every length; a charged router may not."""
    return all(variant.always_dense or _has_room(variant, length) for length in lengths)


@lru_cache(maxsize=100_000)
def _has_room(variant: Variant, length: int) -> bool:
    try:
        variant.sparse_budget(length, 0)
    except ValueError:
        return False
    return True


def candidates(
    window: int,
    lengths: Sequence[int],
    shares: Sequence[float] = SHARES,
    router_cost: RouterCost = "reported",
) -> list[Candidate]:
    """All candidates for a mean of `window` keys per query in prompts of these lengths."""
    sizes = sorted({max(LEAST, round(share * window)) for share in shares})
    names = FAMILIES[router_cost].names
    found = [candidate(name, size) for size in sizes if size < min(lengths) // 2 for name in names]
    sparse = [one for one in found if one is not None and possible(one.variant, lengths)]
    return [Candidate("full", make_variant("full", {})), *sparse]
