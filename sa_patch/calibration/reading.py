"""How calibration reads passages: next-token distributions, what attention gets, and a pass that begins at a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sa_patch import integration
from sa_patch.calibration.strata import Passage
from sa_patch.integration.modules import attention_modules
from sa_patch.plan import Plan

ROWS = 128  # distributions held at once: 128 of 152,000 tokens are 78 MB


@dataclass(frozen=True)
class Heads:
    """What one layer's attention gets: query [1, heads, n, head_dim], key and value [1, kv_heads, n, head_dim]."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float


class Reader:
    """A model with its layers found.

    Raises:
        ValueError: for a model that can't be patched.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.attention = attention_modules(model)
        names = {module: name for name, module in model.named_modules()}
        self.layers = [model.get_submodule(names[module].rpartition(".")[0]) for module in self.attention]
        self.device = integration.device(model)

    def ids(self, passage: Passage) -> Tensor:
        return torch.tensor([passage.ids], device=self.device)

    def log_probs(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        """Log-probabilities of the next token after some positions, float32 [positions, vocabulary]."""
        keep = torch.tensor(positions, device=self.device)
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0]
        return logits.float().log_softmax(-1)

    @contextmanager
    def running(self, plan: Plan, kernel: str = "auto") -> Iterator[integration.State]:
        """The model with a plan; bare again afterwards."""
        state = integration.bind(self.model, plan, kernel)
        try:
            yield state
        finally:
            integration.unbind(self.model)

    @contextmanager
    def outputs_kept(self) -> Iterator[list[Any]]:
        """What every decoder layer returns in the passes inside, of the last one."""
        kept: list[Any] = [None] * len(self.layers)

        def keep(layer: int) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                kept[layer] = output

            return hook

        handles = [module.register_forward_hook(keep(layer)) for layer, module in enumerate(self.layers)]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def beginning_at(self, layer: int, kept: Sequence[Any]) -> Iterator[None]:
        """Passes whose earlier layers answer with what they returned before."""

        def answer(output: Any) -> Any:
            return lambda *args, **options: output

        for module, output in zip(self.layers[:layer], kept, strict=False):
            module.__dict__["forward"] = answer(output)
        try:
            yield
        finally:
            for module in self.layers[:layer]:
                module.__dict__.pop("forward", None)


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean KL(expected || found) in nats per position, of log-probabilities [positions, vocabulary]."""
    total = 0.0
    for start in range(0, expected.shape[0], ROWS):
        some, other = expected[start : start + ROWS].double(), found[start : start + ROWS].double()
        total += float((some.exp() * (some - other)).sum())
    return max(0.0, total / max(1, expected.shape[0]))


def thinned(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly."""
    step = -(-len(positions) // most)
    return list(positions[::step])
