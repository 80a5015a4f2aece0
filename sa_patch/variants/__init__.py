"""The table of built-in variants by name."""

from dataclasses import fields

from sa_patch.errors import unknown
from sa_patch.variants.base import Variant
from sa_patch.variants.full import Full
from sa_patch.variants.moba import Moba
from sa_patch.variants.random_keys import RandomKeys
from sa_patch.variants.sliding_window import SlidingWindow
from sa_patch.variants.stochastic import Stochastic, StochasticPlusWindow

VARIANTS: dict[str, type[Variant]] = {
    kind.name: kind for kind in (Full, SlidingWindow, Stochastic, StochasticPlusWindow, Moba, RandomKeys)
}


def variant(mode: str, window: int | float = 512, **options) -> Variant:
    """The frozen variant object of that name.

    Args:
        mode: "full", "swa", "sa", "sa+swa", "moba" or "random-keys".
        window: keys per query, the query included; a float 0 < x < 1 is a fraction of the prompt.
        **options: the variant's fields (see its class).

    Raises:
        ValueError: for an unknown mode or option, or a value that is out of range.
        NotImplementedError: for an option that is not available yet.
    """
    if not isinstance(mode, str) or mode not in VARIANTS:
        raise unknown("mode", mode, VARIANTS)
    kind = VARIANTS[mode]
    known = [item.name for item in fields(kind)]
    for name in options:
        if name not in known:
            owners = [other for other in VARIANTS if name in {item.name for item in fields(VARIANTS[other])}]
            if owners:
                raise ValueError(f"option {name!r} is for mode {' and '.join(owners)}, not {mode!r}")
            raise unknown(f"option of mode {mode!r}:", name, known)
    return kind(window=window, **options)
