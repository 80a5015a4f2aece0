"""The cheapest budget whose plan stays within a divergence, and what is said where none does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sa_patch.calibration.candidates import LEAST

PRECISION = 16  # the budget is found to a sixteenth of itself


def cheapest(keeps: Callable[[int], bool], most: int) -> int:
    """The smallest window, to 1 / PRECISION, that keeps the target, by halving the range; `most` is known to keep it.

    Args:
        keeps: whether the plan at a window does; taken to be true from some window on.
    """
    low, high = LEAST - 1, most
    while high - low > max(1, high // PRECISION):
        middle = (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle
    return high


def unreached(target: float, window: int, found: Mapping[str, float]) -> str:
    """Why nothing can be returned, with the nearest figures, by stratum."""
    reached = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    return (
        f"no plan was found that keeps KL at or below {target:g} on every stratum with {window} keys per query on "
        f"average: the best one reaches {reached}. Raise window, or target_kl to {max(found.values()):.3g}"
    )
