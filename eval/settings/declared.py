"""What sa_patch's variants declare of their modes and options, without importing them, which takes torch and seconds.

declared.json holds it (scripts/write_declared.py writes it, a test compares). Where the variants are loaded anyway,
they are asked themselves, so a variant of one's own counts too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

FILE = "declared.json"


@dataclass(frozen=True)
class Mode:
    """A name under --modes.

    Attributes:
        form: whether it is a variant with some options fixed.
        role: method, baseline or control.
        seeded: whether its keys depend on a seed.
        untrained: whether it was made for training that has not happened here.
        caveat: what a reader must know about it, as a clause; empty when there is nothing.
    """

    help: str
    form: bool
    role: str
    seeded: bool
    untrained: bool
    caveat: str


@dataclass(frozen=True)
class Option:
    """An option of variants (see sa_patch.variants.options.Option); `owners` are the variants that have it."""

    name: str
    kind: str
    default: Any
    help: str
    words: tuple[str, ...]
    optional: bool
    minimum: int | None
    swept: bool
    outside_budget: bool
    owners: tuple[str, ...]
    shared: bool  # every variant has it


@dataclass(frozen=True)
class Declared:
    modes: dict[str, Mode]
    options: dict[str, Option]


def declared() -> Declared:
    """Every mode and option by name."""
    loaded = sys.modules.get("sa_patch.variants")
    return _written() if loaded is None else of_variants(loaded)


def of_variants(variants: Any) -> Declared:
    """The same, from the module sa_patch.variants."""
    modes = {
        name: Mode(
            mode.help,
            bool(mode.fixed),
            mode.variant.role,
            mode.variant.seeded,
            mode.variant.untrained,
            mode.variant.caveat,
        )
        for name, mode in variants.modes().items()
    }
    shared = {item.name for item in variants.options_of(variants.Variant)}
    taken = [item.name for item in fields(Option) if item.name not in ("owners", "shared")]
    options = {
        name: Option(
            **{field: getattr(item, field) for field in taken},
            owners=tuple(variants.owners(name)),
            shared=name in shared,
        )
        for name, item in variants.all_options().items()
    }
    return Declared(modes, options)


def to_json(found: Declared) -> str:
    return json.dumps(asdict(found), indent=1) + "\n"


@cache
def _written() -> Declared:
    found = json.loads(resources.files("sa_eval.settings").joinpath(FILE).read_text(encoding="utf-8"))
    options = {name: Option(**_without_lists(row)) for name, row in found["options"].items()}
    return Declared({name: Mode(**row) for name, row in found["modes"].items()}, options)


def _without_lists(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
