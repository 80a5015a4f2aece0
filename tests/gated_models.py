"""Gated models with gates that differ by token and head: what the laws of gated attention are tested on."""

import torch
from models import make_model

import sa_patch

WINDOW = 12


def text(*shape, seed=0):
    """Token ids."""
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))


def with_random_gates(model, **options):
    """The patch of a model that was gated, its gates random numbers."""
    patch = sa_patch.gate(model, WINDOW, **options)
    source = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "gate_s" in name:
            parameter.data = torch.randn(parameter.shape, generator=source).to(parameter)
    return patch


def gated(kind="qwen3", **options):
    """A tiny gated model in eval mode, the same at every call."""
    model = make_model(kind)
    with_random_gates(model, **options)
    return model.eval()


def logits(model, tokens, **inputs):
    with torch.no_grad():
        return model(tokens, **inputs).logits
