"""The public functions: apply, restore, load, from_pretrained, is_patched, attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sa_patch import integration, kernels
from sa_patch.compiled import trace_function
from sa_patch.forward import Layer, attend_sequences
from sa_patch.gating import gate
from sa_patch.geometry import Geometry
from sa_patch.patch import Patch
from sa_patch.plan import Plan
from sa_patch.saved import config_file, from_config, read_config
from sa_patch.tracing import values_are_hidden
from sa_patch.variants import make_variant, show_options
from sa_patch.variants.base import Variant
from sa_patch.variants.gated import Gated

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sa_patch.signature import KernelName, Mode, Options


def apply(
    model: nn.Module,
    mode: Mode = "sa",
    window: int | float = 512,
    *,
    variant: Variant | None = None,
    plan: Plan | None = None,
    kernel: KernelName = "auto",
    **options: Unpack[Options],
) -> Patch:
    """Replace the attention of a loaded causal language model, in place.

    The default mode "sa" takes a prompt in one call and refuses a second chat turn: mode="sa-dyadic" is its form that
    chats; "swa" and "moba" chat too.

    Weights, tokenizer, cache and generation stay as they are. Prompts are read with the variant's keys (prefill);
    generated tokens read the whole cache. Applying to a patched model replaces the patch.

    Args:
        model: a transformers model whose attention goes through AttentionInterface (Qwen3 and Qwen3-MoE are verified).
        mode: "full", "swa", "sa", "sa+swa", "moba", "routed", "vertical-slash", "random-keys", or a form of one of
            them like "sa-bucket".
        window: keys per query, the query included; 0 < x < 1 is a fraction of the prompt. All modes have the same
            number of (query, key) pairs at the same window (budget="pairs"). "gated" is for training: `sa_patch.gate`.
        variant: a variant object (`sa_patch.variant(...)` or your own) instead of mode, window and options.
        plan: a `Plan`, another variant per layer, instead of mode, variant, window and options.
        kernel: "auto" or the name of one. An explicit one never falls back.
        **options: `sa_patch.signature.Options` says what each does. Every mode takes seed, budget, dense_tail, sinks,
            local, dense_layers, dense_below and decode; docs/variants.md lists those of single modes.

    Returns:
        the Patch: `.restore()`, `.describe()`, `.budget(length)`, `.mask(length)`, `.config`; also a context manager.

    Raises:
        ValueError: for a bad argument or a model that can't be patched; the model is as it was.
        NotImplementedError: for an option that is not available yet.
    """
    if plan is not None and not isinstance(plan, Plan):
        raise ValueError(f"plan must be a sa_patch.Plan, got {type(plan).__name__}")
    if variant is not None:
        _check_variant(variant)
    whole = "plan" if plan is not None else "variant" if variant is not None else ""
    beside = {"mode": mode != "sa", "window": window != 512, **dict.fromkeys(options, True)}
    beside["variant"] = plan is not None and variant is not None
    if whole and any(beside.values()):
        ignored = ", ".join(name for name, given in beside.items() if given)
        raise ValueError(f"{whole}= already holds its options; {ignored} would be ignored: set them on the variant")
    if not whole and mode == Gated.name:
        return gate(model, window, kernel=kernel, **options)
    chosen = plan or variant or make_variant(mode, {"window": window, **options})
    kernels.check_name(kernel)
    before = integration.state(model) if isinstance(model, nn.Module) else None
    return Patch(model, integration.bind(model, chosen, kernel), before)


show_options(apply)


def restore(model: nn.Module) -> None:
    """Undo every patch of a model. Logits are bit-identical to before; an unpatched model is left alone."""
    integration.unbind(model)


def is_patched(model: nn.Module) -> bool:
    """True while the model runs a patch; False too when its attention implementation was set behind the patch."""
    held = integration.state(model)
    return held is not None and held.overridden is None


def load(model: nn.Module, path: str | Path, *, kernel: KernelName | None = None) -> Patch:
    """Apply a patch saved with `Patch.save`.

    Args:
        path: the file, or the folder of the checkpoint it lies beside (sa_patch.json).
        kernel: instead of the one that was saved, which another device may not have.

    Raises:
        ValueError: when there is no such file, it is no patch config, or one that this release does not know; the
            model is as it was.
    """
    chosen, saved = from_config(read_config(path), config_file(path))
    used = kernel or cast("KernelName", saved)
    if isinstance(chosen, Plan):
        return apply(model, plan=chosen, kernel=used)
    return apply(model, variant=chosen, kernel=used)


def from_pretrained(path: str | Path, *, kernel: KernelName | None = None, **kwargs: Any) -> nn.Module:
    """Load a model together with the patch that was saved beside it, gates and all.

    Args:
        path: a folder that a gated model's `save_pretrained` wrote, a checkpoint with `Patch.save` beside it, or such
            a repository on the hub.
        kernel: instead of the one that was saved, which another device may not have.
        **kwargs: for transformers' own `from_pretrained`: dtype, device_map, ...

    Returns:
        the model, patched, in eval mode: a gated one of the class it was saved from, others for causal language
        modelling.

    Raises:
        ValueError: for a checkpoint without patch config, or whose weights don't fit.
    """
    hub = {name: kwargs[name] for name in ("revision", "cache_dir", "token", "local_files_only") if name in kwargs}
    folder = integration.local_folder(path, **hub)
    config = read_config(folder)
    gated = config.get("mode") == Gated.name
    if gated and not integration.is_gated(folder):
        raise ValueError(
            f"{path} holds a plain model beside the {config_file(folder).name} of a gated one that was saved there "
            "before: remove that file, or load the model with AutoModelForCausalLM.from_pretrained"
        )
    model = integration.load_model(folder, **kwargs)
    if not gated:
        load(model, folder, kernel=kernel)
        return model
    options = {name: value for name, value in config.items() if name not in ("version", "mode", "kernel")}
    gate(model, **options, kernel=kernel or config.get("kernel", "auto"))
    integration.load_gates(model, folder)
    return model


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    variant: Variant,
    *,
    layer_idx: int = 0,
    num_layers: int | None = None,
    kernel: str = "auto",
    scaling: float | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """A variant's attention as a function, for prompts or the last queries of them.

    Args:
        query: [batch, heads, query_len, head_dim], after position embedding; the last query_len positions.
        key, value: [batch, kv_heads, length, head_dim]; heads is a multiple of kv_heads.
        variant: see `sa_patch.variant`.
        layer_idx: chooses the permutation of the stochastic variants, and whether the layer is a dense one.
        num_layers: what negative `dense_layers` count from; needed only for those.
        scaling: factor on the scores, head_dim ** -0.5 when None.
        attention_mask: [batch, length], True or 1 at real tokens; rows are computed as if padding did not exist.

    Returns:
        [batch, heads, query_len, head_dim]; 0 at padded queries.

    Raises:
        ValueError: for shapes that don't fit together.
        NotImplementedError: when the kernel can't run the variant.
    """
    _check_variant(variant)
    if num_layers is None and any(layer < 0 for layer in variant.dense_layers):
        raise ValueError(f"dense_layers={variant.dense_layers} counts from the end: pass num_layers")
    _check_shapes(query, key, value)
    kernels.check_name(kernel)
    mask = None if attention_mask is None else attention_mask.to(device=query.device, dtype=torch.bool)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    numbers = layer_idx, num_layers or layer_idx + 1
    if values_are_hidden(query, mask):
        return trace_function(query, key, value, mask, variant, *numbers, kernel, factor)
    geometry = Geometry.build(query.shape[0], query.shape[2], key.shape[2], mask, query.device)
    return attend_sequences(query, key, value, geometry, Layer(variant, kernel, *numbers), factor)


def _check_variant(variant: object) -> None:
    if not isinstance(variant, Variant):
        raise ValueError(f"variant must be a sa_patch Variant, got {type(variant).__name__}: see sa_patch.variant(...)")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = tuple(query.shape), tuple(key.shape), tuple(value.shape)
    fits = (
        query.dim() == 4
        and key.shape == value.shape
        and key.dim() == 4
        and min(query.shape[:2] + key.shape[:2]) > 0
        and query.shape[0] == key.shape[0]
        and query.shape[3] == key.shape[3]
        and 0 < query.shape[2] <= key.shape[2]
        and query.shape[1] % key.shape[1] == 0
    )
    if not fits:
        raise ValueError(
            "attention needs query [B, H, Q, D] and key, value [B, Hkv, N, D] with 0 < Q <= N and H a multiple of Hkv, "
            f"got {shapes[0]}, {shapes[1]}, {shapes[2]}"
        )
    if not query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled(query.device.type):
        raise ValueError(
            f"query, key and value must have one dtype, got {query.dtype}, {key.dtype} and {value.dtype}: convert them"
        )
