"""Tiny, randomly initialised models: what every law about models is tested on."""

import torch
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
UNCHUNKED = {"num_local_experts": 2, "intermediate_size_mlp": 64}  # for Llama 4 with full attention in every layer


def make_model(kind: str = "qwen3", **changes):
    """A tiny model of an architecture, float32, in eval mode, the same at every call."""
    torch.manual_seed(0)
    shape = {**SHAPE, **changes}
    full = ["full_attention"] * shape["num_hidden_layers"]
    no_head_dim = {name: value for name, value in shape.items() if name != "head_dim"}
    model = {
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**EXPERTS, **shape})),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**{"sliding_window": None, **shape})),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**no_head_dim)),
        "qwen2_moe": lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(**{**EXPERTS, "shared_expert_intermediate_size": 32, **no_head_dim})
        ),
        "llama4_text": lambda: Llama4ForCausalLM(Llama4TextConfig(**{**UNCHUNKED, "layer_types": full, **shape})),
    }[kind]()
    return model.eval()
