"""Owns the checks of single values: numbers, amounts, text, choices, lists. Imports nothing but the standard library.

A value comes from a flag (text) or from YAML (anything); what leaves here is what it means, or a SettingsError.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sa_eval.messages import shown

LARGEST = 2**31 - 1  # no tensor here is longer; beyond it torch fails in places that say nothing
WORDS = {"samples": "all", "dense_below": "crossover"}  # kinds of number that a word may stand for


class SettingsError(ValueError):
    """A setting that cannot be used; the message says what was asked, what was found and what to do."""


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of an error message: the closest valid name, or all of them when they are few."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(sorted(valid))}" if len(valid) <= 40 else "see --list-tasks"


def checked_list(name: str, value: Any, rule: Mapping[str, Any]) -> tuple[Any, ...]:
    """The items of a list, of text with commas, or the single value itself; none of them twice."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    items = [part for entry in parts for part in (entry.split(",") if isinstance(entry, str) else [entry])]
    result = tuple(
        checked_item(name, item.strip() if isinstance(item, str) else item, rule) for item in items if item != ""
    )
    if not result:
        raise SettingsError(f"{name} is an empty list: give at least one value")
    refuse_doubles(name, result)
    return result


def refuse_doubles(name: str, items: Sequence[Any]) -> None:
    doubled = sorted(str(item) for item, count in Counter(items).items() if count > 1)
    if doubled:
        raise SettingsError(f"{name} holds {doubled[0][:100]} twice")


def checked_item(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    """One value by its rule: kind, minimum, maximum, choices."""
    kind = rule.get("kind", str)
    if kind is bool:
        return _boolean(name, value)
    if kind is str:
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{name} must be text, found {shown(value)}")
    elif kind in WORDS and value == WORDS[kind]:
        return value
    else:
        value = number(name, value, fraction=kind == "amount")
        minimum = rule.get("minimum", 0)
        if minimum is not None and value < minimum and not (kind == "amount" and 0 < value < 1):
            raise SettingsError(f"{name} must be at least {minimum}, found {shown(value)}")
        maximum = rule.get("maximum", LARGEST)
        if abs(value) > maximum:
            raise SettingsError(f"{name} must be at most {maximum:,}, found {shown(value)}")
    if "choices" in rule and value not in rule["choices"]:
        raise SettingsError(f"{name} {shown(value)} is not known: {nearest(str(value), rule['choices'])}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be true or false, found {shown(value)}")
    return value


def number(name: str, value: Any, *, fraction: bool) -> int | float:
    """A whole number, or where `fraction` allows it a float between 0 and 1."""
    wanted = "a whole number, or a fraction between 0 and 1" if fraction else "a whole number"
    if isinstance(value, str):
        try:
            value = float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            raise SettingsError(f"{name} must be {wanted}, found {shown(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{name} must be {wanted}, found {shown(value)}")
    if isinstance(value, float):
        if fraction and 0 < value < 1:
            return value
        if fraction or not value.is_integer():  # is 1.0 one key or all of them? ask
            raise SettingsError(f"{name} must be {wanted}, found {value}")
        value = int(value)
    return value
