"""`gate`: stochastic and sliding-window attention with trainable gates between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from sa_patch import integration, kernels
from sa_patch.errors import unknown
from sa_patch.patch import Patch
from sa_patch.variants.gated import Gated
from sa_patch.variants.options import options_of

if TYPE_CHECKING:
    from sa_patch.signature import KernelName


def gate(
    model: nn.Module,
    window: int | float = 512,
    *,
    seed: int = 0,
    resample: Literal["step", "never"] = "step",
    initial: float = 0.5,
    kernel: KernelName = "auto",
    **options: Any,
) -> Patch:
    """Give every attention layer a sliding window and stochastic attention, and two gates that weigh them, in place.

    A layer computes sigmoid(gate_swa(x)) * swa(q, k, v) + sigmoid(gate_sa(x)) * sa(q, k, v), with x what the layer
    reads and one gate per token and head (the gated SA + SWA of arXiv 2604.00754). The gates are parameters of the
    model, `...self_attn.gate_swa` and `...self_attn.gate_sa`: train it as any other. `model.save_pretrained(folder)`
    and `sa_patch.from_pretrained(folder)` keep them; `restore()` removes them and leaves the other weights as they are.

    Args:
        model: a loaded or freshly initialised transformers model, before it is compiled, wrapped or dispatched.
        window: keys per query of both branches together, half of it each.
        seed: of the random keys.
        resample: "step": other permutations in every training step (a forward pass in training mode, counted in the
            model's state_dict), those of the seed in evaluation; "never": always those of the seed.
        initial: the gates' value at first, 0 < x < 1. At 1/2 a layer begins as the mean of both branches.
        kernel: "auto" or the name of one; training needs one with gradients.
        **options: horizon, form and circular of the stochastic branch; sinks, charged within each half; dense_layers,
            which stay full and have no gates; budget.

    Returns:
        the Patch, as `sa_patch.apply` does.

    Raises:
        ValueError: for a bad argument, a model that can't be patched, or one that is patched already.
    """
    if isinstance(initial, bool) or not isinstance(initial, (int, float)) or not 0 < initial < 1:
        raise ValueError(f"initial must be a gate's value between 0 and 1, both excluded, got {initial!r}")
    kernels.check_name(kernel)
    names = [item.name for item in options_of(Gated)]
    strange = next((name for name in options if name not in names), None)
    if strange is not None:
        raise unknown("option of gated attention:", strange, names)
    variant = Gated(window=window, seed=seed, resample=resample, **options)
    return Patch(model, integration.bind(model, variant, kernel, float(initial)), None)
