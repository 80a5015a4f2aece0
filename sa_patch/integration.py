"""The only file that knows transformers: registration, binding to a model's attention modules, and undoing it.

One name is registered once for masks and for attention. Which variant and kernel a layer runs is bound to the module,
so that models differ freely; the implementation name lives in a copy of the config that only the patched model holds.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from sa_patch.forward import Layer, attend_cached, attend_prompt
from sa_patch.geometry import Geometry
from sa_patch.variants.base import Variant

NAME = "sa_patch"
VERIFIED = ("qwen3", "qwen3_moe")
TESTED = ("llama", "mistral", "qwen2")
# Arguments of attention functions that change the result in ways no pattern expresses.
_FOREIGN = ("softcap", "s_aux", "position_bias", "cache", "cu_seq_lens_q", "cu_seq_lens_k")


@dataclass(eq=False)
class State:
    """What `unbind` needs; lives on the model."""

    variant: Variant
    kernel: str
    original_config: object
    patched_config: object


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
    found = [module for module in model.modules() if _is_attention(module)]
    found.sort(key=lambda module: module.__dict__["layer_idx"])
    reason = _refusal(backbone, found)
    if reason:
        raise ValueError(f"{type(backbone).__name__} can't be patched: {reason}")
    return found


def _is_attention(module: nn.Module) -> bool:
    return all(name in module.__dict__ for name in ("layer_idx", "is_causal", "config"))


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


def num_layers(model: nn.Module) -> int:
    """Number of attention layers of a model that can be patched."""
    return len(attention_modules(model))


def state(model: nn.Module) -> State | None:
    """The patch a model carries, or None."""
    return model.__dict__.get("_sa_patch")


def layers(model: nn.Module) -> list[Layer]:
    """What a patched model runs, layer by layer; empty when it is not patched."""
    if state(model) is None:
        return []
    return [module.__dict__["_sa_patch_layer"] for module in attention_modules(model)]


def bind(model: nn.Module, variant: Variant, kernel: str) -> None:
    """Make the model run a variant. Replaces an earlier patch; on error the model is as it was.

    Raises:
        ValueError: when the model can't be patched or the variant doesn't fit it.
    """
    modules = attention_modules(model)
    for layer in variant.dense_layers:
        if not -len(modules) <= layer < len(modules):
            raise ValueError(f"dense_layers has {layer}, but the model has layers 0..{len(modules) - 1}")
    unbind(model)
    original = modules[0].__dict__["config"]
    patched = copy.deepcopy(original)
    patched._attn_implementation = NAME
    _swap_config(model, original, patched)
    for module in modules:
        module.__dict__["_sa_patch_layer"] = Layer(variant, kernel, module.__dict__["layer_idx"], len(modules))
    model.__dict__["_sa_patch"] = State(variant, kernel, original, patched)


def unbind(model: nn.Module) -> None:
    """Undo `bind`; nothing happens when the model is not patched."""
    held = state(model)
    if held is None:
        return
    _swap_config(model, held.patched_config, held.original_config)
    for module in model.modules():
        module.__dict__.pop("_sa_patch_layer", None)
    del model.__dict__["_sa_patch"]


def _swap_config(model: nn.Module, old: object, new: object) -> None:
    for module in model.modules():
        if module.__dict__.get("config") is old:
            module.__dict__["config"] = new


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
            "packed rows (position_ids that restart) and custom mask functions are not supported by sa_patch: "
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
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    columns = attention_mask.columns
    run = attend_cached if columns.query_len < columns.length else attend_prompt
    output = run(query, key, value, attention_mask, layer, factor)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
