"""The product of a run's lists: its combinations as arms, and what these are called.

Nothing is judged here: a combination may be refused by its variant, or mean the same as another (arms.py).

The product goes option by option in the order of their declaration, the last one outermost; modes stand between the
options that all variants share and their own. A name tells the variant's own options first, then the shared ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

from sa_eval.settings import layer_sets
from sa_eval.settings.arm import Arm, Options
from sa_eval.settings.config import Settings, SettingsError
from sa_eval.settings.named_arms import NamedArm
from sa_patch.variants import NamedMode, Option, Variant, modes, options_of

ALWAYS = ("budget", "decode", "dense_tail")  # what an arm holds of its options in any case
APART = ("window", "budget", "dense_tail")  # what stands elsewhere in a name than among the options, or nowhere
Lists = dict[str, tuple[Any, ...]]


def combinations(settings: Settings) -> int:
    """The size of the product, before anything is built."""
    outer = _count(_shared_lists(settings))
    grid = outer * sum(_count(_own_lists(settings, mode)) for mode in settings.modes if mode != "full")
    return grid + sum(_count(_entry_lists(settings, entry)) for entry in settings.arms) + len(settings.plans)


def _count(lists: Lists) -> int:
    return math.prod(map(len, lists.values()))


def _lists(settings: Settings, options: tuple[Option, ...]) -> Lists:
    return {item.name: settings.options[item.name] for item in reversed(options) if item.swept}


def _shared_lists(settings: Settings) -> Lists:
    return _lists(settings, options_of(Variant))


def _own_lists(settings: Settings, name: str) -> Lists:
    """The lists of options that only some variants have and that this name of a mode does not fix."""
    mode = modes()[name]
    return _lists(settings, tuple(item for item in _own_options(mode) if item.name not in mode.fixed))


def _own_options(mode: NamedMode) -> tuple[Option, ...]:
    return options_of(mode.variant)[len(options_of(Variant)) :]


def _product(lists: Lists) -> Iterator[Options]:
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def grid_arms(settings: Settings) -> list[Arm]:
    """The product of all lists: tail by tail, window by window, mode by mode."""
    return [
        _arm(settings, mode, {**shared, **own})
        for shared in _product(_shared_lists(settings))
        for mode in settings.modes
        if mode != "full"
        for own in _product(_own_lists(settings, mode))
    ]


def named_arms(settings: Settings) -> list[Arm]:
    """The arms of all entries of `arms`."""
    return [arm for entry in settings.arms for arm in _entry_arms(settings, entry)]


def _entry_lists(settings: Settings, entry: NamedArm) -> Lists:
    return {**_shared_lists(settings), **_own_lists(settings, entry.mode), **entry.values}


def _entry_arms(settings: Settings, entry: NamedArm) -> Iterator[Arm]:
    """The arms of one entry; what it fixes to one value is not repeated in their names."""
    mode = modes()[entry.mode]
    for name in entry.values:
        if name in mode.fixed:
            kind = mode.variant.name
            raise SettingsError(f"arm {entry.name}: mode {entry.mode} fixes {name} already: use mode {kind}")
        if name not in {item.name for item in options_of(mode.variant)}:
            raise SettingsError(f"arm {entry.name}: mode {entry.mode} has no {name}: leave it out")
    said = {name for name, values in entry.values.items() if len(values) == 1} | mode.fixed.keys()
    for values in _product(_entry_lists(settings, entry)):
        yield _arm(settings, entry.mode, values, name=entry.name, said=said)


def _arm(
    settings: Settings, mode_name: str, values: Mapping[str, Any], name: str = "", said: Set[str] = frozenset()
) -> Arm:
    """The arm of one combination; `name`, and the options it says already, come from an entry of `arms`."""
    mode, window, tail = modes()[mode_name], values["window"], values["dense_tail"]
    own = mode.variant.defaults  # what None stands for
    chosen = {"budget": settings.options["budget"], **values, **mode.fixed}
    chosen = {key: own.get(key) if value is None else value for key, value in chosen.items()}
    defaults = {item.name: own.get(item.name, item.default) for item in options_of(mode.variant)}
    special = {key: value for key, value in chosen.items() if key != "window" and value != defaults[key]}
    if mode.variant.name == "swa" and _inside(chosen, window):
        del special["local"]
    options = {key: chosen[key] for key in ALWAYS} | special
    base, said = (name, said) if name else label_of(mode, special)
    order = (*_own_options(mode), *options_of(Variant))
    words = [_word(item, special[item.name]) for item in order if item.name in special.keys() - {*said, *APART}]
    width = [] if "window" in said else [f"w{window}"]
    end = [f"tail{tail}"] if tail and "dense_tail" not in said else []
    full_name, label = "-".join([base, *width, *words, *end]), "-".join([base, *words])
    seeds = settings.seeds if mode.variant.seeded else (0,)
    return Arm(full_name, label, mode.variant.name, window, tail, seeds, settings.kernel, options)


def label_of(mode: NamedMode, options: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The name of a variant with these options, and which of them it says: that of a form where there is one."""
    own = {item.name: options[item.name] for item in _own_options(mode) if item.name in options}
    for name, form in modes().items():
        if form.variant is mode.variant and dict(form.fixed) == own:
            return name, set(own)
    words = [_word(item, own[item.name]) for item in _own_options(mode) if item.name in own]
    return "-".join([mode.variant.name, *words]), set(own)


def _inside(chosen: Mapping[str, Any], window: int | float) -> bool:
    """Whether a sliding window shows its `local` keys anyway: then they say nothing."""
    local = chosen["local"]
    size = local + (chosen["sinks"] if chosen["budget"] == "pairs" else 0)
    return local > 0 and type(local) is type(window) and type(size) is type(window) and size <= window


def _word(option: Option, value: Any) -> str:
    return option.told.format(layer_sets.name_of(value) if option.kind == "layers" else value)
