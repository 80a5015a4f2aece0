"""The wording of errors that name what was asked, what exists and the nearest valid name."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, asked: object, known: Iterable[str]) -> ValueError:
    """A ValueError for a name that isn't in a closed set."""
    known = list(known)
    near = get_close_matches(str(asked), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {asked!r}: choose from {', '.join(known)}{hint}")
