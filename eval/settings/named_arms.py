"""Owns the `arms` of a settings file: named arms with options of their own. Imports no torch.

An entry is a small grid: `name`, `mode`, and any of `window` and the options, each one value or a list. What it leaves
out comes from the settings of the run, so a flag like --window or --dense-tail reaches named arms too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sa_eval.messages import shown
from sa_eval.settings.values import SettingsError, nearest

OPTIONS = ("sinks", "local", "dense_layers", "dense_tail", "dense_below", "decode", "form", "horizon")
KEYS = ("name", "mode", "window", *OPTIONS)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")  # names are used as file names


@dataclass(frozen=True)
class NamedArm:
    """One entry: `values` are what it fixes, by the name of the setting, each as the setting's tuple."""

    name: str
    mode: str  # a name under --modes
    values: Mapping[str, tuple[Any, ...]]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "mode": self.mode, **self.values}


def checked(value: Any, option: Callable[[str, Any], tuple[Any, ...]]) -> tuple[NamedArm, ...]:
    """The entries, each checked; `option(name, value)` checks one option as the setting of that name."""
    if not isinstance(value, (list, tuple)):
        raise SettingsError(f"arms must be a list of `name: ..., mode: ...` entries, found {shown(value)}")
    entries = tuple(_entry(item, option) for item in value)
    names: set[str] = set()
    for entry in entries:
        if entry.name.casefold() in names:  # some file systems don't tell Sa from sa
            raise SettingsError(f"arms holds the name {entry.name!r} twice")
        names.add(entry.name.casefold())
    return entries


def _entry(item: Any, option: Callable[[str, Any], tuple[Any, ...]]) -> NamedArm:
    if not isinstance(item, Mapping):
        raise SettingsError(f"arms holds {shown(item)} where an entry `name: ..., mode: ...` belongs")
    for key in item:
        if key not in KEYS:
            raise SettingsError(f"arms: unknown key {shown(key)}: {nearest(str(key)[:100], KEYS)}")
    for key in ("name", "mode"):
        if not isinstance(item.get(key), str) or not item[key]:
            raise SettingsError(f"arms: an entry needs a {key}, found {shown(dict(item))}")
    name = item["name"]
    if NAME.fullmatch(name) is None or name.casefold() == "full":
        raise SettingsError(
            f"arms: {shown(name)} cannot name an arm: letters, digits and .+_- only, at most 64, and not `full`, which "
            "is always there"
        )
    if item["mode"] == "full":
        raise SettingsError(f"arms: {name} has mode full, which takes no options and is always there: leave it out")
    values = {key: _values(name, key, item[key], option) for key in KEYS[2:] if key in item}
    return NamedArm(name, item["mode"], values)


def _values(arm: str, key: str, value: Any, option: Callable[[str, Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    try:
        return option(key, value)
    except SettingsError as error:
        raise SettingsError(f"arm {arm}: {error}") from None
