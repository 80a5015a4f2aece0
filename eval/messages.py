"""Foreign values and errors in a message: one short line, whatever they are. Imports nothing."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 300
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A value from a file or a flag, cut to size; YAML aliases can make one endless."""
    try:
        return _short.repr(value)
    except ValueError:  # Python refuses to print a number of thousands of digits
        return "a number of thousands of digits"


def one_line(error: BaseException) -> str:
    """Why something failed; the type speaks where the message may be only a key or a number."""
    text = " ".join(str(error).split())[:LONGEST]
    return text if isinstance(error, (OSError, ValueError)) and text else f"{type(error).__name__}: {text}"
