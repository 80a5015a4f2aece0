"""The forward pass used in training: the transformers model's own weights and maths, compiled, in float32.

Faster on a CPU than the model's own forward: projections are fused, short rows go through plain matrix products (SDPA's
backward is slow there), and elementwise work is compiled. `tests` hold it to the original. Without AMX bfloat16 would
take twice as long: SDPA's backward does.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

_PLAIN_UP_TO = 320  # rows up to here: attention as plain matrix products


def hidden_states(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states of full rows without padding, load-balancing loss of the routers or zero)."""
    length = ids.shape[1]
    cosine, sine = _angles(model.config, length)
    mask = torch.full((length, length), -1e9).triu(1) if length <= _PLAIN_UP_TO else None
    return _compiled()(model, ids, cosine, sine, mask)


def _angles(config, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    half = config.head_dim // 2
    inverse = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    angle = torch.outer(torch.arange(length).float(), inverse)[:, None]
    return angle.cos(), angle.sin()


def _forward(model, ids, cosine, sine, mask):
    hidden = F.embedding(ids, model.model.embed_tokens.weight)
    balance = hidden.new_zeros(())
    for layer in model.model.layers:
        normed = _norm(hidden, layer.input_layernorm.weight)
        hidden = hidden + _attention(layer.self_attn, normed, cosine, sine, mask)
        normed = _norm(hidden, layer.post_attention_layernorm.weight)
        if hasattr(layer.mlp, "experts"):
            mixed, loss = _experts(layer.mlp, normed)
            balance = balance + loss
        else:
            mixed = _gated(normed, layer.mlp)
        hidden = hidden + mixed
    return _norm(hidden, model.model.norm.weight), balance / len(model.model.layers)


def _norm(states, weight):
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6) * weight


def _rotate(states, cosine, sine):
    one, two = states.chunk(2, -1)
    return torch.cat((one * cosine - two * sine, two * cosine + one * sine), -1)


def _attention(module, states, cosine, sine, mask):
    batch, length, _ = states.shape
    width = module.head_dim
    groups = module.num_key_value_groups
    few = module.k_proj.weight.shape[0] // width
    weight = torch.cat((module.q_proj.weight, module.k_proj.weight, module.v_proj.weight))
    joint = F.linear(states, weight).view(batch, length, -1, width)
    query, key, value = joint.split((few * groups, few, few), 2)
    query = _rotate(_norm(query, module.q_norm.weight), cosine, sine).transpose(1, 2)
    key = _rotate(_norm(key, module.k_norm.weight), cosine, sine).transpose(1, 2)
    value = value.transpose(1, 2)
    if mask is None:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        query = query.reshape(batch, few, groups * length, width)
        scores = (query @ key.transpose(2, 3)).view(batch, few, groups, length, length)
        share = torch.softmax(scores * width**-0.5 + mask, -1)
        mixed = (share.view(batch, few, groups * length, length) @ value).view(batch, few * groups, length, width)
    return F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), module.o_proj.weight)


def _gated(states, mlp):
    joint = F.linear(states, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
    gate, up = joint.chunk(2, -1)
    return F.linear(F.silu(gate) * up, mlp.down_proj.weight)


def _experts(mlp, states):
    """Every expert on every token, weighted by the router's top choices: the same sum, and no gather."""
    experts, router = mlp.experts, mlp.gate
    chance = torch.softmax(F.linear(states, router.weight), -1)
    best, chosen = chance.topk(router.top_k, -1)
    count = router.weight.shape[0]
    picked = F.one_hot(chosen, count).float()  # [..., top_k, experts]
    share = (picked * (best / best.sum(-1, keepdim=True))[..., None]).sum(-2)
    total = torch.zeros_like(states)
    for number in range(count):
        gate, up = F.linear(states, experts.gate_up_proj[number]).chunk(2, -1)
        out = F.linear(F.silu(gate) * up, experts.down_proj[number])
        total = total + share[..., number, None] * out
    balance = count * (picked.sum(-2).mean((0, 1)) / router.top_k * chance.mean((0, 1))).sum()
    return total, balance


@functools.cache
def _compiled():
    return torch.compile(_forward, dynamic=False)
