"""The table of built-in variants, the names under `mode=`, and the options that exist: all read from the classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sa_patch.errors import unknown
from sa_patch.variants.base import Variant
from sa_patch.variants.full import Full
from sa_patch.variants.moba import Moba
from sa_patch.variants.options import Option, options_of
from sa_patch.variants.random_keys import RandomKeys
from sa_patch.variants.routed import Routed
from sa_patch.variants.sliding_window import SlidingWindow
from sa_patch.variants.stochastic import Stochastic, StochasticPlusWindow
from sa_patch.variants.vertical_slash import VerticalSlash

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sa_patch.signature import Mode, Options

VARIANTS: dict[str, type[Variant]] = {
    kind.name: kind
    for kind in (Full, SlidingWindow, Stochastic, StochasticPlusWindow, Moba, Routed, VerticalSlash, RandomKeys)
}


@dataclass(frozen=True)
class NamedMode:
    """What a name under `mode=` stands for: a variant, the options that the name fixes, and a line of help."""

    variant: type[Variant]
    fixed: Mapping[str, Any]
    help: str


def modes() -> dict[str, NamedMode]:
    """Every name under `mode=`: each variant's own, followed by those of its forms."""
    found: dict[str, NamedMode] = {}
    for name, variant in VARIANTS.items():
        found[name] = NamedMode(variant, {}, variant.help)
        for form_name, form in variant.__dict__.get("forms", {}).items():
            found[form_name] = NamedMode(variant, form.options, form.help)
    return found


def all_options() -> dict[str, Option]:
    """Every option of any variant by name: those that all share, then each variant's own."""
    return {item.name: item for variant in (Variant, *VARIANTS.values()) for item in options_of(variant)}


def owners(option: str) -> list[str]:
    """The variants in the table that have an option."""
    return [name for name, kind in VARIANTS.items() if option in {item.name for item in options_of(kind)}]


def variant(mode: Mode, window: int | float = 512, **options: Unpack[Options]) -> Variant:
    """The frozen variant object of that name.

    Args:
        mode: a name in `modes()`; "sa-bucket" is "sa" with form="bucket".
        window: keys per query, the query included; a float 0 < x < 1 is a fraction of the prompt.
        **options: see `sa_patch.signature.Options` and the variant's class.

    Raises:
        ValueError: for an unknown mode or option, an option that the mode's name fixes, or a value out of range.
    """
    return make_variant(mode, {"window": window, **options})


def make_variant(mode: str, options: Mapping[str, Any]) -> Variant:
    """`variant` for a mode and options that are data; window is one of them."""
    known = modes()
    if not isinstance(mode, str) or mode not in known:
        raise unknown("mode", mode, known)
    kind, fixed = known[mode].variant, known[mode].fixed
    names = [item.name for item in options_of(kind)]
    for name, value in options.items():
        if name in fixed:
            raise ValueError(
                f"mode {mode!r} is mode {kind.name!r} with {name}={fixed[name]!r}: leave {name}={value!r} out, or use "
                f"mode {kind.name!r}"
            )
        if name not in names:
            if owners(name):
                raise ValueError(f"option {name!r} is for mode {' and '.join(owners(name))}, not {mode!r}")
            raise unknown(f"option of mode {mode!r}:", name, names)
    return kind(**fixed, **options)


def show_options(function: Callable[..., Any]) -> None:
    """Give `help()` and notebooks the options of a function's **options by name, with their defaults."""
    signature = inspect.signature(function)
    *named, _ = signature.parameters.values()
    options = [item for item in all_options().values() if item.name not in signature.parameters]
    shown = [inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default) for item in options]
    function.__signature__ = signature.replace(parameters=[*named, *shown])  # pyright: ignore[reportFunctionMemberAccess]


show_options(variant)
