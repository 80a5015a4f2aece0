"""The tiny architectures, their initial weights, and predicting single places of a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_data import Batch
from tiny_fast import hidden_states
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

Forward = Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # last states, load-balancing loss
POSITIONS = 4096
_SHAPE = dict(
    hidden_size=128,
    num_hidden_layers=6,
    head_dim=32,
    max_position_embeddings=POSITIONS,
    tie_word_embeddings=True,
    attn_implementation="sdpa",
)
FEW, MORE = (4, 2), (8, 4)  # query heads and key/value heads: to begin with, and once retrieval is learned
_INNER = 384
BALANCE = 0.01  # weight of the routers' load-balancing loss
_ROPE = 1e5
_SHARPNESS = 1.5  # initial weight of q- and k-norm: retrieval among thousands of keys needs large scores


def new_dense(vocab_size: int, end: int, heads: tuple[int, int] = FEW) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        **_SHAPE,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        vocab_size=vocab_size,
        intermediate_size=_INNER,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE},
        initializer_range=0.04,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.constant_(parameter, _SHARPNESS)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


def grown(small: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """The same function with more heads: new ones begin at random, and their output projection at zero.

    Values of two kv heads leave room for one retrieved word, not for telling several summed words apart.
    """
    model = new_dense(small.config.vocab_size, small.config.eos_token_id, MORE)
    old = small.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith("o_proj.weight"):
                weight.zero_()
            weight[tuple(map(slice, old[name].shape))] = old[name]
    return model


def upcycled(dense: Qwen3ForCausalLM) -> Qwen3MoeForCausalLM:
    """Sparse upcycling (arXiv 2212.05055): every expert begins as a copy of the dense MLP, the router at random.

    With renormalised top-2 weights the new model computes what the dense one does; training then parts the experts.
    """
    config = Qwen3MoeConfig(
        **_SHAPE,
        num_attention_heads=dense.config.num_attention_heads,
        num_key_value_heads=dense.config.num_key_value_heads,
        vocab_size=dense.config.vocab_size,
        intermediate_size=_INNER,
        moe_intermediate_size=_INNER,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        rope_parameters=dict(dense.config.rope_parameters),
        initializer_range=0.04,
        router_aux_loss_coef=BALANCE,
        eos_token_id=dense.config.eos_token_id,
        pad_token_id=dense.config.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3MoeForCausalLM(config)
    model.load_state_dict({k: v for k, v in dense.state_dict().items() if ".mlp." not in k}, strict=False)
    for layer, origin in zip(model.model.layers, dense.model.layers, strict=True):
        joint = torch.cat((origin.mlp.gate_proj.weight, origin.mlp.up_proj.weight))
        layer.mlp.experts.gate_up_proj.data.copy_(joint.expand(4, -1, -1))
        layer.mlp.experts.down_proj.data.copy_(origin.mlp.down_proj.weight.expand(4, -1, -1))
        nn.init.normal_(layer.mlp.gate.weight, std=0.04)
    model.tie_weights()
    return model


def score(model: nn.Module, batch: Batch, forward: Forward = hidden_states) -> tuple[torch.Tensor, list[bool]]:
    """(loss over the places to be predicted, whether each question was answered rightly throughout)."""
    hidden, balance = forward(model, batch.ids)
    logits = F.linear(hidden[batch.row, batch.column - 1], model.lm_head.weight)
    one, two, three = batch.fine.T
    chance = logits.log_softmax(-1).gather(1, batch.fine)
    again = torch.stack((one != one, two == one, (three == one) | (three == two)), 1)
    loss = -chance.masked_fill(again, -torch.inf).logsumexp(1)  # any of the ids that are right will do
    loss = (loss * batch.weight).sum() / batch.weight.sum()
    loss = loss + BALANCE * balance
    guess = logits.argmax(-1)
    right = (guess[:, None] == batch.fine).any(1)
    wrong = set(batch.question[~right].tolist())
    return loss, [number not in wrong for number in range(len(batch.tasks))]
