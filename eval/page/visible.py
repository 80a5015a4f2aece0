"""How text from outside is shown: nothing in it moves a cursor or turns the reading direction."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

# Control characters, overrides of the reading direction and halves of surrogate pairs: shown, never obeyed.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(value: Any) -> Any:
    """Text with every unseen character written out; markup and anything else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value.replace("\r\n", "\n"))
