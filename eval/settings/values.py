"""The checks of single values that come from a flag (text) or from a file (anything). Standard library only."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sa_eval.errors import UserError
from sa_eval.messages import shown

LARGEST = 2**31 - 1  # no tensor here is longer; beyond it torch fails in places that say nothing


class SettingsError(UserError, ValueError):
    """A setting that cannot be used; the message says what was asked, what was found and what to do."""


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of an error message: the closest valid name, or all of them when they are few."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(sorted(valid))}" if len(valid) <= 40 else "see --list-tasks"


def refuse_doubles(name: str, items: Sequence[Any]) -> None:
    doubled = sorted(str(item) for item, count in Counter(items).items() if count > 1)
    if doubled:
        raise SettingsError(f"{name} holds {doubled[0][:100]} twice")


def switch(name: str, value: Any, *, as_text: bool) -> bool:
    """True or False; a flag that takes several values brings them as text."""
    if as_text and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be true or false, found {shown(value)}")
    return value


def text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise SettingsError(f"{name} must be text, found {shown(value)}")
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
