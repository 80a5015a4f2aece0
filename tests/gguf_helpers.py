"""Tiny random models as real GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from eval_helpers import tiny_tokenizer
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768, "norm_topk_prob": True}
FAMILIES = {  # 128 and 768 are the sizes of the published models: transformers takes them, whatever the file says
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 16}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 128}),
    "qwen3moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {"head_dim": 16, **EXPERTS}),
}


def random_model(architecture: str, seed: int = 0, **changes: Any) -> Any:
    model_class, config_class, more = FAMILIES[architecture]
    torch.manual_seed(seed)
    return model_class(config_class(vocab_size=len(tiny_tokenizer()), **{**SIZES, **more, **changes})).eval()


def write(
    file: Path,
    model: Any,
    architecture: str,
    *,
    quantized: bool = False,
    facts: dict[str, str | float] | None = None,
    more: dict[str, Tensor] | None = None,
) -> Path:
    """Save a model; `facts` are metadata and `more` tensors besides what its family has."""
    writer = gguf.GGUFWriter(file, architecture)
    _describe(writer, model.config, architecture)
    for key, value in (facts or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"{architecture}.{key}", value)
    _add_tokenizer(writer)
    for name, tensor in {**_tensors(model, architecture), **(more or {})}.items():
        values = tensor.detach().float().numpy()
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _describe(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if architecture.startswith("qwen3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    model = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    control = gguf.TokenType.CONTROL, gguf.TokenType.CONTROL  # <pad> and <end>
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([*control, *[gguf.TokenType.NORMAL] * (len(tokens) - 2)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def _tensors(model: Any, architecture: str) -> dict[str, Tensor]:
    """The model's weights under GGUF's names."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    found = {}
    for key, tensor in model.state_dict().items():
        if ".experts." in key:
            found |= _experts(key, tensor)
            continue
        name, _, suffix = key.rpartition(".")
        if architecture == "llama" and name.endswith(("q_proj", "k_proj")):
            tensor = _interleaved(tensor, model.config.head_dim)
        found[f"{names.get_name(name)}.{suffix}"] = tensor
    return found


def _experts(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """All experts of a layer in one tensor, gate and up apart."""
    block = f"blk.{key.split('.')[2]}"
    if key.endswith("down_proj"):
        return {f"{block}.ffn_down_exps.weight": tensor}
    gate, up = tensor.chunk(2, dim=1)
    return {f"{block}.ffn_gate_exps.weight": gate.contiguous(), f"{block}.ffn_up_exps.weight": up.contiguous()}


def _interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """llama.cpp rotates neighbours, transformers halves: rows of a head in the other order."""
    return tensor.view(-1, 2, head_dim // 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()
