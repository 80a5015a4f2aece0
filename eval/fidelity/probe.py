"""What is seen inside a model while it reads a passage: every attention call and every layer's output.

The model's attention function is wrapped for one pass and put back; what the model computes stays bit-identical. The
only file of this package that touches transformers' internals.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sa_eval.settings.values import SettingsError


@dataclass(frozen=True)
class Call:
    """One layer's attention on one passage, after position embedding.

    Attributes:
        query: [1, heads, length, head_dim]; key, value: [1, kv_heads, length, head_dim].
        output: what the model's attention made of it, before the output projection: [length, heads, head_dim].
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    output: Tensor


SeeCall = Callable[[Call], None]
SeeLayer = Callable[[int, Tensor], None]


class Probe:
    """Which modules of a model are its layers, found by letting it read a few tokens.

    Raises:
        SettingsError: when its attention does not go through transformers' AttentionInterface.
    """

    def __init__(self, model: Any, states: Callable[[Tensor], Tensor], few: Tensor) -> None:
        self.model, self._states = model, states
        attention: dict[int, nn.Module] = {}

        def see(module: nn.Module, call: Call) -> None:
            attention[call.layer] = module

        with self._wrapped(see):
            states(few)
        if list(attention) != list(range(len(attention))) or not attention:
            raise SettingsError(
                f"the attention of {type(model).__name__} does not go through transformers' AttentionInterface, "
                "layer by layer: fidelity cannot look inside"
            )
        self.num_layers = len(attention)
        self._layers = [_parent(model, module) for module in attention.values()]

    def read(self, ids: Tensor, see_call: SeeCall, see_layer: SeeLayer) -> Tensor:
        """Final hidden states [1, length, width]; every layer's attention call and residual stream are shown."""

        def hook(layer: int) -> Callable[..., None]:
            def show(module: nn.Module, args: object, output: Any) -> None:
                see_layer(layer, (output[0] if isinstance(output, tuple) else output)[0])

            return show

        handles = [module.register_forward_hook(hook(layer)) for layer, module in enumerate(self._layers)]
        try:
            with self._wrapped(lambda module, call: see_call(call)):
                return self._states(ids)
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _wrapped(self, see: Callable[[nn.Module, Call], None]) -> Iterator[None]:
        """The attention function that the model uses at this moment (a patch brings its own), with an observer."""
        name = self.model.base_model.config._attn_implementation
        original = ALL_ATTENTION_FUNCTIONS.get(name)

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
            # Eager attention is no entry of the table: it is a function of the model's own file.
            function = original or sys.modules[type(module).__module__].eager_attention_forward
            output, weights = function(module, query, key, value, mask, **options)
            scaling = options.get("scaling")
            factor = query.shape[-1] ** -0.5 if scaling is None else scaling
            see(module, Call(module.layer_idx, query, key, value, factor, output[0]))
            return output, weights

        ALL_ATTENTION_FUNCTIONS[name] = attend  # of this instance of the table, over what all instances share
        try:
            yield
        finally:
            del ALL_ATTENTION_FUNCTIONS[name]


def _parent(model: nn.Module, child: nn.Module) -> nn.Module:
    """The layer that an attention module belongs to."""
    name = next(name for name, module in model.named_modules() if module is child)
    return model.get_submodule(name.rpartition(".")[0])
