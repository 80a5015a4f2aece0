"""Sets of layers: how they are written, what they mean for a model's depth, what they are called.

A set is layer numbers (negative ones count from the end) and slices as text: `1::2` is every second
layer from the second, whatever the depth. As text, `,` joins the members of a set and `/` sets apart; `none` is the
empty set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from sa_eval.messages import shown
from sa_eval.settings.values import LARGEST, SettingsError, number, refuse_doubles

LayerSet = tuple[int | str, ...]
NONE = "none"
SLICE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?(?::(\d{1,9}))?")
LONGEST_NAME = 24


def sets_from(name: str, value: Any) -> tuple[LayerSet, ...]:
    """The sets that a flag's text, a YAML list (one set) or a list of lists (several) means."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in value):
        flat = next((item for item in value if not isinstance(item, (list, tuple))), None)
        if flat is not None:
            raise SettingsError(f"{name} mixes sets and members: write {shown(flat)} as a list of its own")
        groups = [list(item) for item in value]
    else:
        groups = _groups(name, list(value) if isinstance(value, (list, tuple)) else [value])
    sets = tuple(_set(name, group) for group in groups)
    for idx, members in enumerate(sets):
        if set(members) in map(set, sets[:idx]):
            raise SettingsError(f"{name} holds the set {name_of(members) or NONE} twice")
    return sets


def _groups(name: str, items: Sequence[Any]) -> list[list[Any]]:
    """Members group by group; a flag may bring several pieces of text, which belong together."""
    groups: list[list[Any]] = [[]]
    for item in items:
        if not isinstance(item, str):
            groups[-1].append(item)
            continue
        first, *others = item.split("/")
        for text, group in [(first, groups[-1]), *((other, None) for other in others)]:
            if group is None:
                group = []
                groups.append(group)
            group.extend(part.strip() for part in text.split(","))
    return groups


def _set(name: str, members: Sequence[Any]) -> LayerSet:
    if any(member == NONE for member in members) and len(members) > 1:
        raise SettingsError(f"{name} says none beside layers: set them apart with /")
    found = tuple(_member(name, member) for member in members if member not in ("", NONE))
    refuse_doubles(name, found)
    return found


def _member(name: str, member: Any) -> int | str:
    if isinstance(member, str) and ":" in member:
        text = member.replace(" ", "")
        match = SLICE.fullmatch(text)
        if match is None or (match[3] is not None and int(match[3]) == 0):
            raise SettingsError(f"{name} {shown(member)} is no slice start:stop:step with a step of at least 1")
        start, stop, step = ("" if part is None else str(int(part)) for part in match.groups())
        return f"{start}:{stop}" + (f":{step}" if step not in ("", "1") else "")
    layer = int(number(name, member, fraction=False))
    if abs(layer) > LARGEST:
        raise SettingsError(f"{name} must be at most {LARGEST:,}, found {shown(layer)}")
    return layer


def resolve(members: Sequence[int | str], num_layers: int) -> tuple[int, ...]:
    """Layer numbers in a model of that depth.

    Raises:
        ValueError: for a slice that holds no layer of this model. Numbers out of range are left to sa_patch.
    """
    found: dict[int, None] = {}
    for member in members:
        if isinstance(member, int):
            found[member] = None
            continue
        parts = [int(part) if part else None for part in member.split(":")]
        layers = range(num_layers)[slice(*parts)]
        if not layers:
            raise ValueError(f"dense_layers {member!r} holds none of this model's {num_layers} layers")
        found.update(dict.fromkeys(layers))
    return tuple(found)


def name_of(members: Sequence[int | str]) -> str:
    """A short name for file names: `0_-1`, `from1by2`; long sets become their size and a hash."""
    name = "_".join(_member_name(member) for member in members)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{len(members)}of{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _member_name(member: int | str) -> str:
    if isinstance(member, int):
        return str(member)
    start, stop, *step = member.split(":")
    parts = (("from", start), ("to", stop), ("by", step[0] if step else ""))
    return "".join(word + value for word, value in parts if value) or "all"
