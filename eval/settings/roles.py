"""What a report says of modes and options without knowing any by name: read from the variants' declarations.

Reading a run's files needs neither torch nor sa_patch. A mode that nobody declares, a variant of one's own, is a method
without a seed or a caveat.
"""

from __future__ import annotations

from sa_eval.settings.declared import Mode, declared

PLAN = "plan"  # the mode of an arm whose layers run variants of their own


def methods() -> list[str]:
    """The modes that a comparison asks about."""
    return [name for name, mode in declared().modes.items() if mode.role == "method"]


def is_method(mode: str, label: str) -> bool:
    """Whether a comparison asks about an arm: a method under its own name, or a plan."""
    return label in methods() or mode == PLAN


def rivals() -> list[str]:
    """The modes that methods are held against, full attention aside: baselines and controls."""
    return [name for name, mode in declared().modes.items() if mode.role != "method" and name != "full"]


def in_order() -> list[str]:
    """Every mode but full: variants first, then their forms."""
    modes = declared().modes
    return sorted((name for name in modes if name != "full"), key=lambda name: modes[name].form)


def is_seeded(mode: str) -> bool:
    """Whether its keys depend on a seed."""
    return _mode(mode).seeded


def is_untrained(mode: str) -> bool:
    """Whether it was made for training that has not happened here."""
    return _mode(mode).untrained


def caveat(mode: str) -> str:
    """What a reader must know about it, as a clause; empty when there is nothing."""
    return _mode(mode).caveat


def outside_budget() -> list[str]:
    """Options that change how many keys are read without being charged to the window."""
    return [name for name, option in declared().options.items() if option.outside_budget]


def _mode(name: str) -> Mode:
    unknown = Mode(help="", form=False, role="method", seeded=False, untrained=False, caveat="")
    return declared().modes.get(name, unknown)
