"""Owns the names under --modes: which sa_patch mode each runs and which options it fixes. Imports no torch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

# An arm's name -> the sa_patch mode it runs and the variant options it adds.
ARM_MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "swa": ("swa", {}),
    "sa": ("sa", {}),
    "sa-bucket": ("sa", {"form": "bucket"}),
    "sa-circular": ("sa", {"circular": True}),
    "sa-dyadic": ("sa", {"horizon": "dyadic"}),
    "sa-dyadic-bucket": ("sa", {"horizon": "dyadic", "form": "bucket"}),
    "sa+swa": ("sa+swa", {}),
    "moba": ("moba", {}),
    "random-keys": ("random-keys", {}),
}
MODE_HELP = {
    "full": "the model's own attention, untouched: the baseline of every comparison (always included)",
    "swa": "sliding window: the last `window` keys",
    "sa": "stochastic attention: `window` keys around the query in a random order of the tokens",
    "sa-bucket": "stochastic attention, the random order cut into buckets (faster; over budget on short prompts)",
    "sa-circular": "stochastic attention with ring distance in the random order",
    "sa-dyadic": "stochastic attention whose keys don't depend on the prompt's length (each power of two permuted)",
    "sa-dyadic-bucket": "sa-dyadic, cut into buckets",
    "sa+swa": "half the budget local, half stochastic, no key twice (training-free union)",
    "moba": "blocks of keys chosen by content, MoBA's rule (untrained here: it was made for continued training)",
    "random-keys": "a control: `window` keys drawn anew for every query, without any structure",
}
SEEDED_MODES = ("sa", "sa+swa", "random-keys")
STOCHASTIC_OPTIONS = {"form": "sliding", "horizon": "length"}  # with their defaults
STOCHASTIC_MODES = ("sa", "sa+swa")  # the modes that know them


def registered_modes() -> tuple[str, ...]:
    """Modes that sa_patch knows besides ours: a variant added there runs here by its name (imports torch)."""
    import sa_patch

    return tuple(sa_patch.VARIANTS)


def knows(mode: str, option: str) -> bool:
    """Whether a mode has an option that not all of them have."""
    if option not in STOCHASTIC_OPTIONS or mode in STOCHASTIC_MODES:
        return True
    if mode in {built_in for built_in, _ in ARM_MODES.values()}:
        return False
    import sa_patch

    return option in {item.name for item in fields(sa_patch.VARIANTS[mode])}


def label_of(mode: str, options: dict[str, Any]) -> str:
    """The name under --modes of a mode with these options, or one made alike where there is none."""
    known = {"circular", *STOCHASTIC_OPTIONS}
    fixed = {name: value for name, value in options.items() if name in known}
    for label, (other, others) in ARM_MODES.items():
        if (other, others) == (mode, fixed):
            return label
    words = [fixed.get("horizon", ""), fixed.get("form", ""), "circular" if fixed.get("circular") else ""]
    return "-".join([mode, *(word for word in words if word)])
