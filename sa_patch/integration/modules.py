"""Which modules of a model are its causal attention layers, and why a model can't be patched."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

VERIFIED = ("qwen3", "qwen3_moe")
TESTED = ("llama", "mistral", "qwen2", "qwen2_moe")


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


def device(model: nn.Module) -> torch.device:
    """Where attention runs: the first device that holds weights (offloaded ones are brought to it)."""
    kinds = (parameter.device for parameter in model.parameters() if parameter.device.type != "meta")
    return next(kinds, torch.device("cpu"))


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where attention runs, and in which dtype."""
    floating = (parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point)
    return device(model), next(floating, torch.float32)


def heads_of(model: nn.Module) -> tuple[int, int, int]:
    """Query heads, kv heads and head_dim of a layer.

    Raises:
        ValueError: for a model that does not say.
    """
    backbone = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    config = None if backbone is None else backbone.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise ValueError(f"{type(model).__name__} does not say how many attention heads it has")
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads


def kv_heads_here(module: nn.Module, total: int) -> tuple[int, int]:
    """The number of an attention module's first kv head in this process, and how many are here.

    Args:
        total: kv heads of the layer.

    Raises:
        NotImplementedError: where its weights are split in another way than the keys' rows over one group of processes.
    """
    split = [weight for weight in module.parameters() if isinstance(weight, DTensor)]
    split = [weight for weight in split if any(not place.is_replicate() for place in weight.placements)]
    if not split:
        return 0, total
    weight = getattr(getattr(module, "k_proj", None), "weight", None)
    places = list(weight.placements) if isinstance(weight, DTensor) else []
    axes = [axis for axis, place in enumerate(places) if not place.is_replicate()]
    if isinstance(weight, DTensor) and len(axes) == 1 and places[axes[0]] == Shard(0):
        parts = weight.device_mesh.size(axes[0])
        if total % parts == 0:
            return weight.device_mesh.get_local_rank(axes[0]) * (total // parts), total // parts
    raise NotImplementedError(
        f"which of a layer's {total} kv heads are in this process can't be told: its weights are split, but not the "
        "rows of k_proj evenly over one group of processes. Use heads='shared', pool='head'"
    )


def is_placed(model: nn.Module) -> bool:
    """Whether the model has weights on a device; a skeleton has none, and may be put anywhere."""
    return any(parameter.device.type != "meta" for parameter in model.parameters())


def head_shape(model: nn.Module) -> tuple[int, int]:
    """head_dim, and query heads per kv head."""
    heads, kv_heads, head_dim = heads_of(model)
    return head_dim, heads // kv_heads
