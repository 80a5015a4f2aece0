"""Patch: the handle of one patched model, and what it tells about itself."""

import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import TracebackType

from torch import Tensor, nn

from sa_patch import integration, kernels
from sa_patch.budget import Budget
from sa_patch.geometry import Group
from sa_patch.patterns import window_pairs
from sa_patch.variants.base import CPU, Variant

CONFIG_VERSION = 1


@dataclass(eq=False, repr=False)
class Patch:
    """A model's patch. Undo it with `restore()`, or use it as a context manager.

    Leaving a `with` block puts back what the model was before this patch: bare, or an earlier patch.
    """

    model: nn.Module
    variant: Variant
    kernel: str
    num_layers: int
    _before: tuple[Variant, str] | None = field(default=None)

    @property
    def active(self) -> bool:
        """True while this is the patch the model runs."""
        held = integration.state(self.model)
        return held is not None and held.variant is self.variant and held.kernel == self.kernel

    def restore(self) -> None:
        """Undo every patch of the model; logits are bit-identical to before. Calling it again does nothing."""
        integration.unbind(self.model)

    def __enter__(self) -> "Patch":
        if not self.active:
            held = integration.state(self.model)
            self._before = None if held is None else (held.variant, held.kernel)
            integration.bind(self.model, self.variant, self.kernel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        integration.unbind(self.model)
        if self._before is not None:
            integration.bind(self.model, *self._before)

    @property
    def config(self) -> dict:
        """Everything needed to apply the same patch again, JSON-serialisable."""
        return {"version": CONFIG_VERSION, "mode": self.variant.name, "kernel": self.kernel, **self.variant.options()}

    def save(self, path: str | Path) -> None:
        """Write `config` as JSON; `sa_patch.load(model, path)` applies it."""
        Path(path).write_text(json.dumps(self.config, indent=2) + "\n")

    @property
    def calls(self) -> tuple[dict[str, int], ...]:
        """Per layer, how often it ran since the patch was applied: sparse_prefill, dense_prefill, decode."""
        kinds = ("sparse_prefill", "dense_prefill", "decode")
        counts = [layer.calls for layer in integration.layers(self.model)] if self.active else []
        return tuple({kind: count[kind] for kind in kinds} for count in counts)

    def mask(self, length: int, layer_idx: int = 0) -> Tensor:
        """Who sees whom in one layer while a prompt of `length` tokens is read: bool [length, length], [query, key].

        Raises:
            ValueError: for a variant whose keys depend on the content, or a layer the model lacks.
        """
        _check_length(length)
        if not 0 <= layer_idx < self.num_layers:
            raise ValueError(f"layer_idx={layer_idx} is out of range: the model has layers 0..{self.num_layers - 1}")
        group = Group(length, length, CPU)
        if self.variant.is_dense(length, layer_idx, self.num_layers, next(self.model.parameters()).device):
            return self.variant.dense(group).visible()
        return self.variant.sparse_pattern(group, layer_idx, None, None).visible()

    def budget(self, length: int) -> Budget:
        """What reading a prompt of `length` tokens costs, counted from the patterns: total and per layer."""
        _check_length(length)
        window = self.variant.sizes(length).window
        device = next(self.model.parameters()).device
        layers = tuple(self.variant.count(length, layer, self.num_layers, device) for layer in range(self.num_layers))
        return Budget(length, window_pairs(length, window) / length, layers)

    def describe(self) -> str:
        """What runs where and why, for people."""
        return "\n".join(f"{name:<10} {text}" for name, text in self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        model, variant = self.model, self.variant
        status = "active" if self.active else "restored, not running"
        kind = getattr(getattr(model, "config", None), "model_type", "unknown")
        known = "verified" if kind in integration.VERIFIED else "tested" if kind in integration.TESTED else "untested"
        defaults = type(variant)().options()
        changed = {name: value for name, value in variant.options().items() if value != defaults[name]}
        changed.pop("window", None)
        dense = sorted({layer % self.num_layers for layer in variant.dense_layers})
        facts = [
            ("patch", f"{variant.name} ({variant.label}), window={variant.window}, {status}"),
            ("options", ", ".join(f"{name}={value!r}" for name, value in changed.items()) or "all defaults"),
            ("model", f"{type(model).__name__} ({kind}, {known} architecture), {self.num_layers} layers"),
            ("layers", f"full: {dense}; all others {variant.name}" if dense else f"all {variant.name}"),
            ("prefill", kernels.describe(self.kernel)),
            ("decode", "full: every generated token reads the whole cache"),
        ]
        facts += [("budget", self._budget_line(length)) for length in (1024, 8192, 32768)]
        if variant.note():
            facts.append(("note", variant.note()))
        total = {kind: sum(layer[kind] for layer in self.calls) for kind in (self.calls[0] if self.calls else ())}
        if total:
            facts.append(
                ("calls", ", ".join(f"{kind} {count}" for kind, count in total.items()) + " (over all layers)")
            )
        return facts

    def _budget_line(self, length: int) -> str:
        try:
            budget = self.budget(length)
        except ValueError as error:
            return f"{length:,} tokens: {error}"
        bound = "" if budget.exact else "at most "
        line = f"{length:,} tokens: {bound}{budget.keys_per_query:,.1f} keys per query, density {budget.density:.1%}"
        if abs(budget.off_target) > 0.05:
            line += f" ({budget.off_target:+.0%} of the {budget.target_keys_per_query:,.1f} asked for)"
        return line

    def __repr__(self) -> str:
        return self.describe()

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._facts())
        return f'<table style="text-align:left">{rows}</table>'


def _check_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length must be a number of tokens >= 1, got {length!r}")
