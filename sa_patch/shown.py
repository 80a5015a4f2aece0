"""What objects show of themselves: facts (a name and a text) as lines that fit a screen, or as a notebook's table."""

import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape

SCREEN = 80  # columns
SCREEN_LINES = 24
LAYERS = "layers"  # the name of the facts that are folded where a screen is too small for all
_MARGIN = 11

Fact = tuple[str, str]


def lines(facts: Iterable[Fact]) -> str:
    """One line per fact, however long."""
    return "\n".join(_line(*fact) for fact in facts)


def screen(facts: Sequence[Fact], everything: str) -> str:
    """Facts wrapped to a screen; of the layers only as many kinds as fit, and how many more there are.

    Args:
        everything: what shows all of them, named where some are left out.
    """
    wrap = partial(textwrap.fill, width=SCREEN, subsequent_indent=" " * _MARGIN, break_on_hyphens=False)
    wrapped = [(name, wrap(_line(name, text))) for name, text in facts]
    sizes = [text.count("\n") + 1 for _, text in wrapped]
    folded = [index for index, (name, _) in enumerate(wrapped) if name == LAYERS]
    if sum(sizes) <= SCREEN_LINES or not folded:
        return "\n".join(text for _, text in wrapped)
    room = SCREEN_LINES - 1 - sum(size for index, size in enumerate(sizes) if index not in folded)
    kept: list[int] = []
    for index in folded:
        room -= sizes[index]
        if room < 0:
            break
        kept.append(index)
    hidden = set(folded) - set(kept)
    rest = _line(LAYERS, f"and {len(hidden)} kinds more: {everything}")
    shown = {index: text for index, (_, text) in enumerate(wrapped) if index not in hidden} | {min(hidden): rest}
    return "\n".join(shown[index] for index in sorted(shown))


def html(facts: Iterable[Fact]) -> str:
    """The facts as a table without borders, every text escaped."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
    return f'<table style="text-align:left">{rows}</table>'


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as text: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def folded(kinds: Iterable[str]) -> list[Fact]:
    """Every kind of layer once, with the layers that are of it: ("layers", "0-1, 35: dense")."""
    found: dict[str, list[int]] = {}
    for layer, kind in enumerate(kinds):
        found.setdefault(kind, []).append(layer)
    return [(LAYERS, f"{ranges(layers)}: {kind}") for kind, layers in found.items()]


def _line(name: str, text: str) -> str:
    return f"{name:<{_MARGIN - 1}} {text}"
