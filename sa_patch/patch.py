"""Patch: the handle of one patched model, and what it tells about itself."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sa_patch import integration, kernels, shown
from sa_patch.budget import Budget
from sa_patch.forward import KINDS, is_dense, is_short, layer_budget
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern
from sa_patch.plan import Plan, brief, changes
from sa_patch.probing import layouts_of
from sa_patch.saved import config_of, write_config
from sa_patch.variants.base import CPU, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_MASK = 32_768  # tokens: a mask of 1 GiB
MASK_ROWS = 1024  # of a mask made at once
LENGTHS = (1024, 8192, 32768)  # what describe() tells about, as far as the model's positions reach
PIECES = "a prompt in one call, in chunks, or after a cached prefix gives the same"


@dataclass(eq=False, repr=False)
class Patch:
    """A model's patch. Undo it with `restore()`, or use it as a context manager.

    Leaving a `with` block puts back what the model was before this patch: bare, or an earlier patch.
    """

    model: nn.Module
    _state: integration.State
    _before: integration.State | None
    _entered: list[integration.State | None] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """What every layer runs."""
        return self._state.plan

    @property
    def variant(self) -> Variant:
        """The variant with its options, where all layers share one.

        Raises:
            ValueError: for a plan of several.
        """
        single = self.plan.single
        if single is None:
            raise ValueError("the layers of this patch run several variants: see patch.plan.variants")
        return single

    @property
    def kernel(self) -> str:
        """The kernel that was asked for."""
        return self._state.kernel

    @property
    def num_layers(self) -> int:
        """Attention layers of the model."""
        return len(self._state.layers)

    @property
    def active(self) -> bool:
        """True while this is the patch the model runs."""
        return integration.state(self.model) is self._state and self._state.overridden is None

    def restore(self) -> None:
        """Undo every patch of the model, a later one too: logits are bit-identical to before. Repeating it is fine."""
        integration.unbind(self.model)

    def __enter__(self) -> "Patch":
        held = integration.state(self.model)
        # `with apply(...)`: what was there on entry is what was there before apply.
        fresh = held is self._state and not self._entered
        self._entered.append(self._before if fresh else held)
        if held is not self._state:
            integration.attach(self.model, self._state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._entered.pop()
        if before is None:
            integration.unbind(self.model)
        elif before is not integration.state(self.model):
            integration.attach(self.model, before)

    @property
    def config(self) -> dict:
        """Everything needed to apply the same patch again, JSON-serialisable."""
        return config_of(self.plan, self.kernel)

    def save(self, path: str | Path) -> None:
        """Write `config` as JSON; `sa_patch.load(model, path)` applies it.

        Args:
            path: a file that ends in .json, or a folder (a checkpoint's), where it becomes sa_patch.json. Missing
                folders are made.

        Raises:
            ValueError: for a variant of your own, which `load` would not know, and for a gated model.
        """
        if self._state.gates is not None:
            raise ValueError("the gates are weights of the model: model.save_pretrained(folder) writes both")
        self.plan.to_config()  # refuses variants that have no name
        write_config(path, self.config)

    @property
    def calls(self) -> tuple[dict[str, int], ...]:
        """Per layer, what ran since the patch was applied, in groups of equally long sequences.

        sparse_prefill: the variant's pattern; dense_short: full attention, because the prompt is short (`dense_below`)
        or the pattern shows all of it; dense_layer: full attention, because the layer stays full; full_decode and
        sparse_decode: a generated token that read the whole cache, or its row of the pattern.
        """
        return tuple(
            {kind: layer.calls[kind] + extra for kind, extra in zip(KINDS, layer.traced.calls.tolist(), strict=True)}
            for layer in self._state.layers
        )

    @property
    def ran(self) -> Counter[str]:
        """How often each kernel ran since the patch was applied, over all layers; compiled models count none."""
        return sum((layer.ran for layer in self._state.layers), Counter())

    def mask(self, length: int, layer_idx: int = 0) -> Tensor:
        """Who sees whom in one layer while a prompt of `length` tokens is read: bool [length, length], [query, key].

        With heads="each" one mask per kv head: bool [kv_heads, length, length].

        Raises:
            ValueError: for a variant whose keys depend on the content, a layer the model lacks, or a length whose mask
                would not fit in memory (more than 32,768 tokens).
        """
        _check_length(length)
        if length > LONGEST_MASK:
            raise ValueError(
                f"a mask of {length:,} tokens would take {length**2 / 2**30:,.1f} GiB: up to {LONGEST_MASK:,} tokens "
                "it is built; sa_patch.analysis.coverage and patch.budget(length) know longer prompts without it"
            )
        if not 0 <= layer_idx < self.num_layers:
            raise ValueError(f"layer_idx={layer_idx} is out of range: the model has layers 0..{self.num_layers - 1}")
        group = Group(length, length, CPU, kv_heads=self._kv_heads)
        variant = self.plan.variants[layer_idx]
        if is_dense(variant, length, layer_idx, self.num_layers, *integration.device_and_dtype(self.model)):
            patterns: list[Pattern] = [variant.dense(group)]
        else:
            patterns = [branch.sparse_pattern(group, layer_idx, None, None) for branch in variant.branches]
        mask = torch.empty(0)
        for rows in torch.arange(length).split(MASK_ROWS):  # what visible() holds on its way is several times the mask
            seen = reduce(torch.logical_or, [pattern.visible(rows) for pattern in patterns])
            seen = seen[0] if seen.dim() == 4 else seen
            if not mask.numel():
                mask = seen.new_empty(*seen.shape[:-2], length, length)
            mask[..., rows, :] = seen
        return mask

    def plot_mask(self, length: int, layers: int | Sequence[int] = 0, ax: "Axes | None" = None) -> "Axes":
        """A picture of `mask`: queries downwards, keys to the right. With several layers, in how many of them a pair is
        visible: the darker the more.

        Args:
            layers: a layer, or several.
            ax: matplotlib axes to draw into; new ones when None.

        Raises:
            ValueError: as `mask`.
            ModuleNotFoundError: without matplotlib (pip install 'sa-patch[plots]').
        """
        from sa_patch.analysis.pictures import draw_mask

        chosen = [layers] if isinstance(layers, int) else list(layers)
        if not chosen:
            raise ValueError("layers is empty: name at least one layer")
        if self._kv_heads > 1:
            raise ValueError("heads='each' has a mask per kv head: take them from mask(length, layer)")
        total = self.mask(length, chosen[0])
        for number, layer in enumerate(chosen[1:], 1):
            total = (total.half() if number == 1 else total) + self.mask(length, layer)
        many = f"layers {', '.join(map(str, chosen))}" if len(chosen) > 1 else f"layer {chosen[0]}"
        names = " and ".join(dict.fromkeys(brief(self.plan.variants[layer]) for layer in chosen))
        return draw_mask(total, ax, f"{names}\n{many}")

    def budget(self, length: int) -> Budget:
        """What reading a prompt of `length` tokens costs, counted from the patterns: total and per layer."""
        _check_length(length)
        where, count = integration.device_and_dtype(self.model), self.num_layers
        layers = tuple(
            layer_budget(variant, length, layer, count, *where, self._kv_heads)
            for layer, variant in enumerate(self.plan.variants)
        )
        return Budget(length, self.plan.target(length), layers, over_all=self.plan.window is not None)

    @property
    def _kv_heads(self) -> int:
        """Of a layer, where heads see other keys; else 1 tells as much."""
        alike = all(variant.head_dependent == "no" for variant in self.plan.distinct)
        return 1 if alike else integration.heads_of(self.model)[1]

    def describe(self) -> str:
        """Everything about what runs where and why, for people; `print(patch)` shows what fits a screen."""
        return shown.lines([*self._facts(), *self._refused()])

    def _facts(self) -> list[tuple[str, str]]:
        plan, model = self.plan, self.model
        kind = getattr(getattr(model, "config", None), "model_type", "unknown")
        known = "verified" if kind in integration.VERIFIED else "tested" if kind in integration.TESTED else "untested"
        facts = [
            *self._what_runs(),
            ("model", f"{type(model).__name__} ({kind}, {known} architecture), {self.num_layers} layers"),
            ("prefill", self._prefill_line()),
            ("decode", self._decode_line()),
        ]
        facts += [("short", line) for variant in plan.distinct for line in self._short_line(variant)]
        facts += [("budget", self._budget_line(length)) for length in self._lengths()]
        reason = plan.whole_prompt_reason()
        facts.append(("pieces", f"the prompt must come in one call: {reason}" if reason else PIECES))
        facts += [("note", caveat) for caveat in dict.fromkeys(variant.caveat for variant in plan.distinct) if caveat]
        total = Counter()
        for layer in self.calls:
            total.update(layer)
        calls = ", ".join(f"{name} {count}" for name, count in total.items())
        return [*facts, ("calls", f"{calls} (over all layers)")]

    def _what_runs(self) -> list[tuple[str, str]]:
        """The variant with its options, or every layer's."""
        single = self.plan.single
        if single is None:
            asked = "" if self.plan.window is None else f", {self.plan.window} keys per query on average"
            title = f"a plan of {len(self.plan.distinct)} variants{asked}, {self._status()}"
            return [("patch", title), *self.plan.facts()[1:]]
        dense = sorted({layer % self.num_layers for layer in single.dense_layers})
        return [
            ("patch", f"{single.name} ({single.label}), window={single.window}, {self._status()}"),
            ("options", changes(single) or "all defaults"),
            ("layers", f"full: {dense}; all others {single.name}" if dense else f"all {single.name}"),
        ]

    def _prefill_line(self) -> str:
        if self.plan.always_dense:
            return "sdpa, plain causal"
        layouts = {layout: None for variant in self.plan.distinct for layout in layouts_of(variant)}
        return kernels.describe(
            self.kernel, [*layouts], *integration.device_and_dtype(self.model), *integration.head_shape(self.model)
        )

    def _lengths(self) -> list[int]:
        """The lengths to tell about, as far as the model's positions reach."""
        limit = getattr(getattr(self.model, "config", None), "max_position_embeddings", None) or LENGTHS[-1]
        return sorted({min(length, limit) for length in LENGTHS})

    def _refused(self) -> list[tuple[str, str]]:
        """The kernels that can't run here, and why."""
        device = integration.device(self.model)
        found = {}
        for length in reversed(self._lengths()):
            found |= kernels.refusals(length, device)
        return [("refused", f"kernel {name}: {reason}") for name, reason in found.items()]

    def _decode_line(self) -> str:
        if self.plan.decode == "full" or self.plan.always_dense:
            return "full: every generated token reads the whole cache"
        return "sparse: every generated token reads its own row of the pattern"

    def _short_line(self, variant: Variant) -> list[str]:
        where = integration.device_and_dtype(self.model)
        if not variant.dense_below or variant.always_dense:
            return []
        if isinstance(variant.dense_below, int):
            return [f"prompts up to {variant.dense_below:,} tokens stay full"]
        length = bisect_left(range(1 << 24), True, key=lambda length: not is_short(variant, length + 1, *where))
        return [f"prompts up to {length:,} tokens stay full: sparse was not measured to be faster there (crossover)"]

    def _status(self) -> str:
        if integration.state(self.model) is not self._state:
            return "restored, not running"
        other = self._state.overridden
        return f"NOT RUNNING: the attention implementation was set to {other!r} behind it" if other else "active"

    def _budget_line(self, length: int) -> str:
        """Of one variant, the first sparse layer's: counting every layer would take seconds on deep models."""
        where, count = integration.device_and_dtype(self.model), self.num_layers
        dense = [is_dense(one, length, layer, count, *where) for layer, one in enumerate(self.plan.variants)]
        sparse = [layer for layer in range(count) if not dense[layer]]
        try:
            if self.plan.single is None:
                budget = self.budget(length)
            else:
                layer = layer_budget(self.variant, length, sparse[0] if sparse else 0, count, *where, self._kv_heads)
                budget = Budget(length, self.plan.target(length), (layer,))
        except ValueError as error:
            return f"{length:,} tokens: {error}"
        bound = "" if budget.exact else "at most "
        line = f"{length:,} tokens: {bound}{budget.keys_per_query:,.1f} keys per query, density {budget.density:.1%}"
        if abs(budget.off_target) > 0.05:
            line += f" ({budget.off_target:+.0%} of the {budget.target_keys_per_query:,.1f} asked for)"
        return line + (f", in {len(sparse)} layers" if 0 < len(sparse) < count and self.plan.single else "")

    def __repr__(self) -> str:
        return shown.screen(self._facts(), "patch.describe() has all")

    def _repr_html_(self) -> str:
        return shown.html(self._facts())


def _check_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length must be a number of tokens >= 1, got {length!r}")
