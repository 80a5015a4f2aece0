"""How a variant declares its options, what can be read from a declaration, and the check of one value.

    form: Literal["sliding", "bucket"] = option("sliding", "what it means, for people")

The annotation says what the option takes, `option` its default and everything else. Whatever shows, sweeps or checks
options (signatures, flags, settings files, the names of arms, documentation) reads them here and lists none itself.
Imports no torch.
"""

import sys
from dataclasses import dataclass, field, fields
from functools import lru_cache
from inspect import get_annotations
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sa_patch.errors import unknown

# True or False; an integer; an integer or a fraction between 0 and 1; one of some words; any text; layer numbers.
Kind = Literal["switch", "integer", "amount", "choice", "text", "layers"]


@dataclass(frozen=True)
class Option:
    """One option as it was declared.

    Attributes:
        words: what a choice can be, or the words that stand beside numbers (dense_below="crossover").
        optional: None is a value: the variant chooses.
        minimum: the least integer; None: any.
        swept: several values can be compared in one run; False where the runs would not be comparable.
        outside_budget: it changes how many keys are read without being charged to the window.
        told: how the name of an arm tells a value that is not the default: `sinks{}`.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    words: tuple[str, ...] = ()
    optional: bool = False
    minimum: int | None = None
    swept: bool = True
    outside_budget: bool = False
    told: str = "{}"

    def check(self, value: object) -> None:
        """Raise ValueError for a value that is not of this kind, or out of range."""
        if value is None and self.optional:
            return
        if self.kind == "choice":
            if not isinstance(value, str) or value not in self.words:
                raise unknown(self.name, value, self.words)
        elif self.kind == "switch":
            if not isinstance(value, bool):
                raise ValueError(f"{self.name} must be True or False, got {value!r}")
        elif self.kind == "text":
            if not isinstance(value, str):
                raise ValueError(f"{self.name} must be text, got {value!r}")
        elif self.kind == "layers":
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"{self.name} must be a list of layer numbers, got {value!r}")
            for layer in value:
                check_integer(self.name, layer)
        elif self.kind == "amount" and isinstance(value, float):
            if not 0 < value < 1:
                raise ValueError(f"{self.name}={value!r} is no fraction: give 0 < x < 1, or an integer")
        elif not (isinstance(value, str) and value in self.words):
            others = ["a fraction 0 < x < 1"] if self.kind == "amount" else [repr(word) for word in self.words]
            check_integer(self.name, value, self.minimum, " or ".join(others))


def check_integer(name: str, value: object, at_least: int | None = None, otherwise: str = "") -> None:
    """Raise ValueError unless `value` is an int (no bool) and large enough."""
    wanted = " or ".join(filter(None, ["an integer" + ("" if at_least is None else f" >= {at_least}"), otherwise]))
    if isinstance(value, bool) or not isinstance(value, int) or (at_least is not None and value < at_least):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def option(
    default: Any,
    help: str,
    *,
    minimum: int | None = 0,
    swept: bool = True,
    outside_budget: bool = False,
    told: str | None = None,
    optional: bool = False,
) -> Any:
    """A dataclass field that is an option; the arguments are those of `Option`. `told` is the name before the value
    where it is not given, and the value alone for a choice. `optional` where the annotation has no None, because the
    variant puts its own value in its place (see `Variant.defaults`)."""
    rule = {"help": help, "minimum": minimum, "swept": swept, "outside_budget": outside_budget, "told": told}
    rule["optional"] = optional
    return field(default=default, metadata={"option": rule})


@lru_cache(maxsize=256)
def options_of(variant: type) -> tuple[Option, ...]:
    """The options of a variant class in the order of their declaration, those of its base classes first."""
    return tuple(_read(variant, item) for item in fields(variant) if "option" in item.metadata)


def _read(variant: type, item: Any) -> Option:
    kind, words, optional = meaning(_annotation(variant, item))
    rule = dict(item.metadata["option"])
    name = item.name.replace("_", "")
    told = rule.pop("told") or {"choice": "{}", "switch": name}.get(kind, name + "{}")
    optional = rule.pop("optional") or optional
    return Option(item.name, kind, item.default, words=words, optional=optional, told=told, **rule)


def _annotation(variant: type, item: Any) -> Any:
    """The field's type; under `from __future__ import annotations` it is text in the terms of its module."""
    if not isinstance(item.type, str):
        return item.type
    owner = next(kind for kind in variant.__mro__ if item.name in get_annotations(kind))
    return eval(item.type, dict(vars(sys.modules[owner.__module__])))


def meaning(annotation: Any) -> tuple[Kind, tuple[str, ...], bool]:
    """(kind, words, whether None is a value) of what an annotation allows."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    types = {part for part in parts if get_origin(part) is not Literal and part is not NoneType}
    kinds: dict[frozenset, Kind] = {
        frozenset({bool}): "switch",
        frozenset({int}): "integer",
        frozenset({str}): "text",
        frozenset({int, float}): "amount",
        frozenset({tuple[int, ...]}): "layers",
        frozenset(): "choice",
    }
    if frozenset(types) not in kinds:
        raise TypeError(
            f"an option can't be {annotation}: use bool, int, int | float, str, tuple[int, ...], a Literal of words, "
            "int | a Literal, or one of these | None"
        )
    return kinds[frozenset(types)], words, NoneType in parts
