"""The only file that knows transformers: registration, binding to a model's attention modules, and undoing it.

One name is registered once for masks and for attention. Which variant and kernel a layer runs is bound to the module,
so that models differ freely; the implementation name lives in a copy of the config that only the patched model holds.
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, GenerationMixin, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from sa_patch.forward import Layer, attend
from sa_patch.geometry import Geometry
from sa_patch.kernels import crossover
from sa_patch.variants.base import Variant

NAME = "sa_patch"
_IMPLEMENTATION = "_attn_implementation_internal"  # where a config keeps the name
VERIFIED = ("qwen3", "qwen3_moe")
TESTED = ("llama", "mistral", "qwen2")
# Arguments of attention functions that change the result in ways no pattern expresses.
_FOREIGN = ("softcap", "s_aux", "position_bias", "cache", "cu_seq_lens_q", "cu_seq_lens_k")


@dataclass(eq=False)
class State:
    """One patch of one model. Its layers hold it, so every wrapper and copy of the model finds it there."""

    variant: Variant
    kernel: str
    layers: tuple[Layer, ...]
    original_config: Any = None
    patched_config: Any = None
    snapshot: dict[str, Any] = field(default_factory=dict)  # the original config's values when it was copied

    @property
    def overridden(self) -> str | None:
        """The attention implementation that somebody set behind the patch, or None."""
        found = self.patched_config._attn_implementation
        return None if found == NAME else str(found)


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The model's causal self-attention modules, by layer.

    Raises:
        ValueError: when this isn't a model that the patch can run on; the reason is in the message.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"apply needs a loaded model, got {type(model).__name__}: load it first (from_pretrained)")
    backbones = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not backbones:
        raise ValueError(
            f"{type(model).__name__} holds no transformers model: sa_patch patches transformers models only"
        )
    backbone = backbones[0]
    found = _attention_modules(model)
    reason = _refusal(backbone, found)
    if reason:
        raise ValueError(f"{type(backbone).__name__} can't be patched: {reason}")
    return found


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    marks = ("layer_idx", "is_causal", "config")
    found = [module for module in model.modules() if all(mark in module.__dict__ for mark in marks)]
    return sorted(found, key=lambda module: module.__dict__["layer_idx"])


def _refusal(backbone: PreTrainedModel, modules: list[nn.Module]) -> str | None:
    """Why this model can't be patched, or None."""
    config = backbone.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, sa_patch needs a causal decoder"
    if not getattr(config, "is_causal", True) or any(not module.is_causal for module in modules):
        return "its attention is not causal"
    if not getattr(backbone, "_supports_attention_backend", False) or not modules:
        return "its attention does not go through transformers' AttentionInterface"
    if [module.layer_idx for module in modules] != list(range(len(modules))):
        return "its attention layers are not numbered 0, 1, 2, ..."
    if any(module.config is not modules[0].config for module in modules):
        return "its layers hold different configs"
    if getattr(config, "v_head_dim", None) not in (None, getattr(config, "qk_head_dim", None)):
        return "its values are not as wide as its queries and keys"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return (
            f"it has {' and '.join(sorted(kinds))} layers; only models with full attention in every layer are supported"
        )
    if any(getattr(module, "sliding_window", None) for module in modules) or (
        getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    ):
        return "it has its own sliding window, and its cache would drop keys the patch needs; set sliding_window=None"
    return None


def state(model: nn.Module) -> State | None:
    """The patch that a model, or what a wrapper holds, carries; None when there is none."""
    return next((module.__dict__["_sa_patch"] for module in model.modules() if "_sa_patch" in module.__dict__), None)


def device(model: nn.Module) -> torch.device:
    """Where attention runs: the first device that holds weights (offloaded ones are brought to it)."""
    kinds = (parameter.device for parameter in model.parameters() if parameter.device.type != "meta")
    return next(kinds, torch.device("cpu"))


def bind(model: nn.Module, variant: Variant, kernel: str) -> State:
    """Make the model run a variant. Replaces an earlier patch; on error the model is as it was.

    Raises:
        ValueError: when the model can't be patched or the variant doesn't fit it.
        NotImplementedError: when an option isn't available on the model's device.
    """
    modules = attention_modules(model)
    count = len(modules)
    for layer in variant.dense_layers:
        if not -count <= layer < count:
            raise ValueError(f"dense_layers has {layer}, but the model has layers 0..{count - 1}")
    if variant.dense_below == "crossover":
        crossover(variant.layout, 1, device(model))
    if state(model) is None and modules[0].__dict__["config"]._attn_implementation == NAME:
        raise ValueError(
            "the model's config says it is patched, but it carries no patch (it was built from a patched model's "
            "config): set model.config._attn_implementation to 'sdpa' first"
        )
    made = State(variant, kernel, tuple(Layer(variant, kernel, layer, count) for layer in range(count)))
    attach(model, made)
    return made


def attach(model: nn.Module, patch: State) -> None:
    """Make the model run a patch that was bound to it before; its counters go on."""
    unbind(model)
    modules = attention_modules(model)
    patch.original_config = modules[0].__dict__["config"]
    patch.snapshot = copy.deepcopy(patch.original_config.__dict__)
    patch.patched_config = copy.deepcopy(patch.original_config)
    patch.patched_config._attn_implementation = NAME
    _swap_config(model, patch.original_config, patch.patched_config)
    for module, layer in zip(modules, patch.layers, strict=True):
        module.__dict__.update(_sa_patch=patch, _sa_patch_layer=layer)
    for module in model.modules():
        if isinstance(module, GenerationMixin):
            module.__dict__["_validate_generation_mode"] = partial(_check_generation, module)


def unbind(model: nn.Module) -> None:
    """Undo `bind`; nothing happens when the model is not patched. Other edits of the config are kept."""
    held = state(model)
    if held is None:
        return
    for name, value in held.patched_config.__dict__.items():
        if name != _IMPLEMENTATION and (name not in held.snapshot or held.snapshot[name] != value):
            held.original_config.__dict__[name] = value
    # A wrapper outside `model` may still hold the copy: let it say what the original says.
    held.patched_config._attn_implementation = held.original_config._attn_implementation
    _swap_config(model, held.patched_config, held.original_config)
    for module in model.modules():
        for name in ("_sa_patch", "_sa_patch_layer", "_validate_generation_mode"):
            module.__dict__.pop(name, None)


def _swap_config(model: nn.Module, old: object, new: object) -> None:
    for module in model.modules():
        if module.__dict__.get("config") is old:
            module.__dict__["config"] = new


def _check_generation(model: Any, mode: Any, config: Any, options: Any) -> None:
    """`generate`'s own check, and ours: some modes look like a prompt or like decoding from inside a layer."""
    held = state(model)
    if held is not None and held.overridden is None and not held.variant.continues:
        name = getattr(mode, "value", mode)
        if name in ("assisted_generation", "dola_generation"):
            raise NotImplementedError(
                f"{name} (assistant models, prompt lookup) is not supported with mode {held.variant.name!r}: it reads "
                "guesses as part of the prompt. Generate without it, or restore the patch"
            )
        if getattr(config, "prefill_chunk_size", None):
            raise NotImplementedError(
                f"prefill_chunk_size={config.prefill_chunk_size} is not supported with mode {held.variant.name!r}: the "
                "whole prompt must come in one call. Leave it out, or restore the patch"
            )
    type(model)._validate_generation_mode(model, mode, config, options)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: object,
) -> Geometry:
    """transformers' mask factory: called once per forward, what it returns reaches every layer unchanged."""
    if mask_function is not causal_mask_function or use_vmap:
        raise NotImplementedError(
            "packed documents (position_ids that restart) and custom mask functions are not supported by sa_patch: "
            "run one document per row with padding and an attention_mask, or restore the patch"
        )
    if isinstance(q_offset, Tensor) or kv_offset or kv_length != q_offset + q_length:
        raise NotImplementedError(
            f"this cache shows {kv_length} keys for {q_offset} cached and {q_length} new tokens; sa_patch supports "
            "DynamicCache (generate's default) or no cache, not static, sliding or pre-filled ones"
        )
    return Geometry.build(batch_size, q_length, kv_length, attention_mask, torch.device(device))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, H, Q, D], key, value [B, Hkv, N, D] -> ([B, Q, H, D], None)."""
    layer: Layer | None = module.__dict__.get("_sa_patch_layer")
    if layer is None:
        raise RuntimeError(
            "this layer has no sa_patch layer bound: set attn_implementation through sa_patch.apply only"
        )
    if not isinstance(attention_mask, Geometry):
        raise NotImplementedError(
            f"sa_patch got a ready-made attention mask ({type(attention_mask).__name__}): pass a 2D attention_mask "
            "[batch, tokens], or restore the patch"
        )
    if dropout:
        raise NotImplementedError(f"attention dropout {dropout} is not supported: call model.eval(), or set it to 0")
    if kwargs.get("output_attentions"):
        raise NotImplementedError("output_attentions=True is not supported: sparse kernels never hold the weights")
    foreign = [name for name in _FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise NotImplementedError(f"the model or caller passes {', '.join(foreign)}, which sa_patch can't honour")
    if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        raise NotImplementedError(f"keys {tuple(key.shape)} and values {tuple(value.shape)} must have one shape")
    if layer.layer_idx == 0:
        _refuse_restarts(kwargs.get("position_ids"), attention_mask)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, layer, factor).transpose(1, 2).contiguous(), None


def _refuse_restarts(position_ids: object, geometry: Geometry) -> None:
    """Packed documents restart their positions; transformers itself sees them only without mask and cache."""
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or geometry.columns.query_len == 1:
        return
    if geometry.parts is None or geometry.key_mask is None:
        runs = [position_ids]
    else:
        position_ids = position_ids.expand(geometry.key_mask.shape[0], -1)
        runs = [position_ids[part.rows[:, None], part.query_index] for part in geometry.parts]
    if not all(bool((run.diff(dim=1) == 1).all()) for run in runs):
        raise NotImplementedError(
            "position_ids restart or skip inside a row (packed documents): not supported by sa_patch. Run one document "
            "per row with padding and an attention_mask, or restore the patch"
        )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
