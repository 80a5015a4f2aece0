"""What a report says of modes and options without knowing any by name: read from the variants' declarations.

A mode that is not declared here (a variant of another machine) is a method without a seed or a caveat.
"""

from __future__ import annotations

from sa_patch import variants


def methods() -> list[str]:
    """The modes that a comparison asks about."""
    return [name for name, mode in variants.modes().items() if mode.variant.role == "method"]


def rivals() -> list[str]:
    """The modes that methods are held against, full attention aside: baselines and controls."""
    found = variants.modes().items()
    return [name for name, mode in found if mode.variant.role != "method" and not mode.variant.always_dense]


def in_order() -> list[str]:
    """Every mode but full: variants first, then their forms; new ones keep the places of those before them."""
    found = {name: mode for name, mode in variants.modes().items() if not mode.variant.always_dense}
    return sorted(found, key=lambda name: bool(found[name].fixed))


def is_seeded(mode: str) -> bool:
    """Whether its keys depend on a seed."""
    return mode in variants.VARIANTS and variants.VARIANTS[mode].seeded


def is_untrained(mode: str) -> bool:
    """Whether it was made for training that has not happened here."""
    return mode in variants.VARIANTS and variants.VARIANTS[mode].untrained


def caveat(mode: str) -> str:
    """What a reader must know about it, as a clause; empty when there is nothing."""
    return variants.VARIANTS[mode].caveat if mode in variants.VARIANTS else ""


def outside_budget() -> list[str]:
    """Options that change how many keys are read without being charged to the window."""
    return [name for name, option in variants.all_options().items() if option.outside_budget]
