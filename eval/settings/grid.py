"""Owns the product of a run's lists: its combinations as arms, and what these are called. Imports no torch.

Nothing is judged here: a combination may be refused by its variant, or mean the same as another (arms.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

from sa_eval.settings import layer_sets
from sa_eval.settings.arm import Arm
from sa_eval.settings.config import Settings, SettingsError
from sa_eval.settings.modes import ARM_MODES, SEEDED_MODES, STOCHASTIC_OPTIONS, knows, label_of
from sa_eval.settings.named_arms import NamedArm

OUTER = ("decode", "dense_below", "dense_layers", "local", "sinks", "dense_tail", "window")  # the product's order
DEFAULTS: dict[str, Any] = {
    "sinks": 0,
    "local": 0,
    "dense_layers": (),
    "dense_below": 0,
    "decode": "full",
    **STOCHASTIC_OPTIONS,
}
WORDS = {  # how a name tells an option that is not at its default
    "horizon": "{}",
    "form": "{}",
    "sinks": "sinks{}",
    "local": "local{}",
    "dense_layers": "dense_{}",
    "dense_below": "below{}",
    "decode": "decode_{}",
}


def combinations(settings: Settings) -> int:
    """The size of the product, before anything is built."""
    outer = math.prod(len(getattr(settings, name)) for name in OUTER)
    grid = outer * sum(_count(_own_lists(settings, label)) for label in settings.modes if label != "full")
    named = (_count({**_lists(settings, OUTER), **_own_lists(settings, e.mode), **e.values}) for e in settings.arms)
    return grid + sum(named)


def _count(lists: Mapping[str, tuple[Any, ...]]) -> int:
    return math.prod(map(len, lists.values()))


def _lists(settings: Settings, names: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    return {name: getattr(settings, name) for name in names}


def _own_lists(settings: Settings, label: str) -> dict[str, tuple[Any, ...]]:
    """The lists that only some modes know and that this name under --modes does not fix."""
    mode, fixed = ARM_MODES.get(label, (label, {}))
    return _lists(settings, tuple(name for name in STOCHASTIC_OPTIONS if knows(mode, name) and name not in fixed))


def _product(lists: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def grid_arms(settings: Settings) -> list[Arm]:
    """The product of all lists: tail by tail, window by window, mode by mode."""
    return [
        _arm(settings, label, {**outer, **own})
        for outer in _product(_lists(settings, OUTER))
        for label in settings.modes
        if label != "full"
        for own in _product(_own_lists(settings, label))
    ]


def named_arms(settings: Settings) -> list[Arm]:
    """The arms of all entries of `arms`."""
    return [arm for entry in settings.arms for arm in _entry_arms(settings, entry)]


def _entry_arms(settings: Settings, entry: NamedArm) -> Iterator[Arm]:
    """The arms of one entry; what it fixes to one value is not repeated in their names."""
    mode, fixed = ARM_MODES.get(entry.mode, (entry.mode, {}))
    for name in entry.values:
        if name in fixed:
            raise SettingsError(f"arm {entry.name}: mode {entry.mode} fixes {name} already: use mode {mode}")
        if not knows(mode, name):
            raise SettingsError(f"arm {entry.name}: mode {mode} has no {name}: leave it out")
    told = {name for name, values in entry.values.items() if len(values) == 1}
    for values in _product({**_lists(settings, OUTER), **_own_lists(settings, entry.mode), **entry.values}):
        yield _arm(settings, entry.mode, values, name=entry.name, told=told)


def _arm(
    settings: Settings, mode_name: str, values: dict[str, Any], name: str = "", told: Set[str] = frozenset()
) -> Arm:
    """The arm of one combination; `name` and what it tells of it come from an entry of `arms`."""
    mode, fixed = ARM_MODES.get(mode_name, (mode_name, {}))
    window, tail = values["window"], values["dense_tail"]
    special = {
        option: values[option] for option in DEFAULTS if values.get(option, DEFAULTS[option]) != DEFAULTS[option]
    }
    if mode == "swa" and _inside(settings.budget, special, window):
        del special["local"]
    options = {"budget": settings.budget, "decode": values["decode"], "dense_tail": tail, **fixed, **special}
    base, told = (name, told) if name else (label_of(mode, options), {"form", "horizon"})
    words = "".join(f"-{_word(option, special[option])}" for option in WORDS if option in special.keys() - told)
    width = "" if "window" in told else f"-w{window}"
    end = f"-tail{tail}" if tail and "dense_tail" not in told else ""
    seeds = settings.seeds if mode in SEEDED_MODES or mode_name not in ARM_MODES else (0,)
    return Arm(f"{base}{width}{words}{end}", f"{base}{words}", mode, window, tail, seeds, settings.kernel, options)


def _inside(budget: str, special: Mapping[str, Any], window: int | float) -> bool:
    """Whether a sliding window shows its `local` keys anyway: then they say nothing."""
    local = special.get("local", 0)
    size = local + (special.get("sinks", 0) if budget == "pairs" else 0)
    return local > 0 and type(local) is type(window) and type(size) is type(window) and size <= window


def _word(option: str, value: Any) -> str:
    return WORDS[option].format(layer_sets.name_of(value) if option == "dense_layers" else value)
