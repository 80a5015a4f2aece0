"""Plan: another variant per layer, with one budget over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sa_patch import shown
from sa_patch.counting import window_pairs
from sa_patch.variants import VARIANTS, Variant, make_variant


@dataclass(frozen=True, repr=False)
class Plan:
    """What every layer of a model runs.

    Attributes:
        variants: one per layer, any of them `full`.
        window: the budget that was asked for: keys per query as `swa` has them at this window, the mean over all
            layers, full ones included. None: nothing was asked for, the plan's own mean is its budget.

    Raises:
        ValueError: for variants that one model can't hold side by side.
    """

    variants: tuple[Variant, ...]
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.variants or not all(isinstance(variant, Variant) for variant in self.variants):
            raise ValueError("a plan needs one sa_patch Variant per layer: see sa_patch.variant(...)")
        object.__setattr__(self, "variants", tuple(self.variants))
        if self.single is not None:
            return
        decodes = sorted({variant.decode for variant in self.variants if not variant.always_dense})
        if len(decodes) > 1:
            raise ValueError(
                f"the layers of a plan read generated tokens in one way, found decode={decodes}: set one of them"
            )
        named = next((variant for variant in self.variants if variant.dense_layers), None)
        if named is not None:
            raise ValueError(
                f"dense_layers={named.dense_layers} has no meaning in a plan: give those layers "
                "sa_patch.variant('full')"
            )

    @cached_property
    def single(self) -> Variant | None:
        """The variant that all layers share; None where they differ."""
        return self.variants[0] if len(self.distinct) == 1 else None

    @cached_property
    def distinct(self) -> tuple[Variant, ...]:
        """Every variant once, in the order of the layers."""
        return tuple(dict.fromkeys(self.variants))

    @property
    def always_dense(self) -> bool:
        """True where no layer is sparse."""
        return all(variant.always_dense for variant in self.variants)

    @property
    def decode(self) -> str:
        """How generated tokens read: "full" or "sparse"."""
        return next((variant.decode for variant in self.variants if not variant.always_dense), "full")

    def whole_prompt_reason(self) -> str | None:
        """As `Variant.whole_prompt_reason`: of the first layer that has one."""
        return next(filter(None, (variant.whole_prompt_reason() for variant in self.distinct)), None)

    def piece_reason(self, first: int) -> str | None:
        """As `Variant.piece_reason`: of the first layer that has one."""
        return next(filter(None, (variant.piece_reason(first) for variant in self.distinct)), None)

    def target(self, length: int) -> float:
        """Keys per query that were asked for at this length: per sparse layer, or as the mean over a plan's layers."""
        sparse = [variant.window_at(length) for variant in self.variants if not variant.always_dense] or [length]
        windows = sparse if self.window is None else [self.window]
        return sum(window_pairs(length, window) for window in windows) / len(windows) / length

    def groups(self) -> list[tuple[str, Variant]]:
        """Every variant once with the layers that have it, as text: ("0-3, 7", variant)."""
        return [
            (shown.ranges(layer for layer, other in enumerate(self.variants) if other == variant), variant)
            for variant in self.distinct
        ]

    def facts(self) -> list[shown.Fact]:
        """What the plan is, and every variant with its layers, as (name, text)."""
        count = len(self.distinct)
        asked = "" if self.window is None else f", {self.window} keys per query asked for on average"
        title = f"{count} variant{'s' * (count > 1)} over {len(self.variants)} layers{asked}"
        return [("plan", title), *shown.folded(map(brief, self.variants))]

    def __repr__(self) -> str:
        return shown.screen(self.facts(), "plan.groups() has all")

    def _repr_html_(self) -> str:
        return shown.html(self.facts())

    def to_config(self) -> dict[str, object]:
        """Everything the plan holds, JSON-serialisable.

        Raises:
            ValueError: for a variant of your own, which could not be made from its name.
        """
        for variant in self.distinct:
            if VARIANTS.get(variant.name) is not type(variant):
                raise ValueError(
                    f"{type(variant).__name__} is no built-in variant, so its config can't be loaded by name: keep the "
                    "code that makes it, or add it to sa_patch.VARIANTS"
                )
        numbers = {variant: number for number, variant in enumerate(self.distinct)}
        return {
            "window": self.window,
            "variants": [{"mode": variant.name, **variant.options()} for variant in self.distinct],
            "layers": [numbers[variant] for variant in self.variants],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Plan:
        """The plan that `to_config` wrote.

        Raises:
            ValueError: when it is no plan.
        """
        variants, layers, window = (config.get(name) for name in ("variants", "layers", "window"))
        if not isinstance(variants, list) or not isinstance(layers, list) or not layers:
            raise ValueError("a plan needs `variants` (modes with options) and `layers` (which layer has which)")
        if not (window is None or (isinstance(window, int) and not isinstance(window, bool) and window > 0)):
            raise ValueError(f"the window of a plan must be a number of keys per query or null, got {window!r}")
        made = []
        for item in variants:
            if not isinstance(item, dict) or "mode" not in item:
                raise ValueError(f"a plan's variant needs a mode, found {item!r}")
            options = {name: value for name, value in item.items() if name != "mode"}
            made.append(make_variant(item["mode"], options))
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(made):
                raise ValueError(f"a plan's layers must number its {len(made)} variants from 0, found {layer!r}")
        return cls(tuple(made[layer] for layer in layers), window)


def changes(variant: Variant) -> str:
    """The options that are not what the variant takes by itself, as text; the window aside."""
    return ", ".join(f"{name}={value!r}" for name, value in variant.changed().items())


def brief(variant: Variant) -> str:
    """A variant with its options in one line."""
    window = "" if variant.always_dense else f"window={variant.window}"
    return ", ".join(filter(None, [variant.name, window, changes(variant)]))
