"""The `arms` of a settings file: named arms with options of their own.

An entry is a small grid: `name`, `mode`, and any of `window` and the options, each one value or a list. What it leaves
out comes from the settings of the run, so a flag like --window or --dense-tail reaches named arms too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sa_eval.messages import shown
from sa_eval.settings.setting import Setting
from sa_eval.settings.values import SettingsError, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")  # names are used as file names


@dataclass(frozen=True)
class NamedArm:
    """One entry: `values` are what it fixes, by the name of the setting, each as the setting's tuple."""

    name: str
    mode: str  # a name of `sa_patch.variants.modes`
    values: Mapping[str, tuple[Any, ...]]

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "mode": self.mode, **self.values}


def checked(value: Any, options: Sequence[Setting]) -> tuple[NamedArm, ...]:
    """The entries, each checked, their options as the settings of these names."""
    if not isinstance(value, (list, tuple)):
        raise SettingsError(f"arms must be a list of `name: ..., mode: ...` entries, found {shown(value)}")
    lists = {setting.name: setting for setting in options if setting.many}
    entries = tuple(_entry(item, lists) for item in value)
    names: set[str] = set()
    for entry in entries:
        if entry.name.casefold() in names:  # some file systems don't tell Sa from sa
            raise SettingsError(f"arms holds the name {entry.name!r} twice")
        names.add(entry.name.casefold())
    return entries


def _entry(item: Any, lists: Mapping[str, Setting]) -> NamedArm:
    if not isinstance(item, Mapping):
        raise SettingsError(f"arms holds {shown(item)} where an entry `name: ..., mode: ...` belongs")
    keys = ["name", "mode", *lists]
    for key in item:
        if key not in keys:
            raise SettingsError(f"arms: unknown key {shown(key)}: {nearest(str(key)[:100], keys)}")
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
    try:
        return NamedArm(name, item["mode"], {key: lists[key].checked(item[key]) for key in lists if key in item})
    except SettingsError as error:
        raise SettingsError(f"arm {name}: {error}") from None
