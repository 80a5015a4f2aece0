"""What a report says of modes and options without knowing any by name: read from the variants' declarations.

A mode that is not declared here (a variant of another machine) is a method without a seed or a caveat. Declarations
come with torch, which takes seconds to import: it is imported when the first question is asked, so that `sa-eval
compare`, which asks none, answers at once.
"""

from __future__ import annotations

from typing import Any


def methods() -> list[str]:
    """The modes that a comparison asks about."""
    return [name for name, mode in _declared().modes().items() if mode.variant.role == "method"]


def rivals() -> list[str]:
    """The modes that methods are held against, full attention aside: baselines and controls."""
    found = _declared().modes().items()
    return [name for name, mode in found if mode.variant.role != "method" and not mode.variant.always_dense]


def in_order() -> list[str]:
    """Every mode but full: variants first, then their forms; new ones keep the places of those before them."""
    found = {name: mode for name, mode in _declared().modes().items() if not mode.variant.always_dense}
    return sorted(found, key=lambda name: bool(found[name].fixed))


def is_seeded(mode: str) -> bool:
    """Whether its keys depend on a seed."""
    return getattr(_variant(mode), "seeded", False)


def is_untrained(mode: str) -> bool:
    """Whether it was made for training that has not happened here."""
    return getattr(_variant(mode), "untrained", False)


def caveat(mode: str) -> str:
    """What a reader must know about it, as a clause; empty when there is nothing."""
    return getattr(_variant(mode), "caveat", "")


def outside_budget() -> list[str]:
    """Options that change how many keys are read without being charged to the window."""
    return [name for name, option in _declared().all_options().items() if option.outside_budget]


def _variant(mode: str) -> Any:
    return _declared().VARIANTS.get(mode)


def _declared() -> Any:
    from sa_patch import variants

    return variants
