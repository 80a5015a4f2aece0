"""An arm: one variant at one budget with its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

import sa_patch
from sa_eval.settings import layer_sets
from sa_eval.settings.roles import PLAN
from sa_eval.settings.values import SettingsError
from sa_patch import kernels
from sa_patch.saved import from_config
from sa_patch.variants import make_variant

Options = dict[str, Any]  # a variant's options by name, as `make_variant` takes them


def check_kernels(arms: Sequence[Any], model: Any, device: Any = None, dtype: Any = None) -> None:
    """Refuse arms whose kernel can't run where the model is, before anything is scored.

    Args:
        arms: those that are an `Arm` are asked.
        device, dtype: where a model without weights is going to be; None: where this one is.

    Raises:
        SettingsError: which arms, and why.
    """
    asked = [arm for arm in arms if isinstance(arm, Arm) and arm.kernel != "auto"]
    if not asked:
        return
    from sa_patch import integration

    own_device, own_dtype = integration.device_and_dtype(model)
    refused: dict[str, list[str]] = {}
    for arm in asked:
        reason = arm.kernel_refusal(model, device or own_device, dtype or own_dtype)
        if reason:
            refused.setdefault(f"kernel {arm.kernel!r}: {reason}", []).append(arm.name)
    if refused:
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in refused.items())
        raise SettingsError(
            f"this cannot run on {device or own_device}: {reasons}. Use --kernel auto, or leave those modes out"
        )


class ArmFacts(TypedDict):
    """An arm as JSON holds it."""

    name: str
    label: str
    mode: str
    window: int | float | None
    dense_tail: int
    seeds: list[int]
    kernel: str
    options: Options


@dataclass(frozen=True)
class Arm:
    """One row of the comparison. `options` is what `sa_patch.apply` gets besides mode, window, seed and kernel.

    A slice in options["dense_layers"] waits for the model's depth: use `apply`. An arm of mode "plan" holds the whole
    plan in options["plan"], as its file does; the other options only repeat what all its layers share.
    """

    name: str  # unique in a run and usable in a file name
    label: str  # the name without window and dense tail: arms of one label lie on one line of a chart
    mode: str  # the sa_patch mode
    window: int | float | None  # None: full
    dense_tail: int = 0
    seeds: tuple[int, ...] = (0,)
    kernel: str = "auto"
    options: Options = field(default_factory=dict)

    def apply(self, model: Any, seed: int) -> Any:
        """Patch the model; the caller restores. The full arm runs the model's own attention and returns None."""
        if self.window is None:
            return None
        if self.mode == PLAN:
            chosen, _ = from_config(self.options["plan"], self.name)
            if isinstance(chosen, sa_patch.Plan):
                return sa_patch.apply(model, plan=chosen, kernel=cast(Any, self.kernel))
            return sa_patch.apply(model, variant=chosen, kernel=cast(Any, self.kernel))
        options = dict(self.options)
        if "dense_layers" in options:
            depth = model.config.get_text_config().num_hidden_layers
            options["dense_layers"] = layer_sets.resolve(options["dense_layers"], depth)
        return sa_patch.apply(model, variant=self._variant(seed, options), kernel=cast(Any, self.kernel))

    def _variant(self, seed: int, options: Mapping[str, Any]) -> sa_patch.Variant:
        return make_variant(self.mode, {"window": self.window or 1, **options, "seed": seed})

    def check(self) -> None:
        """Refuse an arm that no model can run, before a model is loaded."""
        if self.window is None:
            return
        try:
            kernels.check_name(self.kernel)
        except ValueError as error:
            raise SettingsError(f"arm {self.name} cannot run: {error}") from error
        reason = self.refusal()
        if reason:
            raise SettingsError(f"arm {self.name} cannot run: {reason}")

    def refusal(self) -> str | None:
        """Why the variant refuses these options, whatever the model; None when it takes them."""
        if self.mode == PLAN:  # a config that is none was refused when its arm was made
            return None
        numbers = tuple(layer for layer in self.options.get("dense_layers", ()) if isinstance(layer, int))
        options = {**self.options, "dense_layers": numbers}
        try:
            self._variant(self.seeds[0], options)
        except (ValueError, NotImplementedError) as error:
            return str(error)
        return None

    def kernel_refusal(self, model: Any, device: Any, dtype: Any) -> str | None:
        """Why the kernel that was asked for can't run this arm on a model there; None when it can."""
        if self.window is None or self.kernel == "auto":
            return None
        from sa_patch import integration, probing

        heads = integration.heads_of(model)
        reasons = (probing.refusal(self.kernel, variant, device, dtype, *heads) for variant in self._variants())
        return next(filter(None, reasons), None)

    def _variants(self) -> tuple[sa_patch.Variant, ...]:
        """What its layers run, each once; slices of dense layers, which wait for a model, aside."""
        if self.mode == PLAN:
            chosen, _ = from_config(self.options["plan"], self.name)
            return chosen.distinct if isinstance(chosen, sa_patch.Plan) else (chosen,)
        numbers = tuple(layer for layer in self.options.get("dense_layers", ()) if isinstance(layer, int))
        return (self._variant(self.seeds[0], {**self.options, "dense_layers": numbers}),)

    def to_dict(self) -> ArmFacts:
        return {
            "name": self.name,
            "label": self.label,
            "mode": self.mode,
            "window": self.window,
            "dense_tail": self.dense_tail,
            "seeds": list(self.seeds),
            "kernel": self.kernel,
            "options": self.options,
        }
