"""Rough estimates of a run's time and memory, from a model's shape alone. Loads no weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from sa_eval.loading import models
from sa_eval.settings.config import Settings

ROUGH = "within a factor of three"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
REACHED = 0.25  # share of a large matrix product's speed that small models reach end to end
STEP_OVERHEAD_MS = 1.2  # per layer and generated token: Python and launches, whatever the batch


@dataclass(frozen=True)
class Shape:
    """What an estimate needs to know about a model."""

    parameters: int
    active: int
    layers: int
    kv_width: int
    vocabulary: int
    widest: int
    element_bytes: int


def shape_of(model: Any, dtype: str) -> Shape:
    config = model.config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    experts, chosen = getattr(config, "num_experts", 0) or 0, getattr(config, "num_experts_per_tok", 0) or 0
    inside = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    active = parameters - inside + (inside * chosen // experts if experts else 0)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = str(model.dtype if dtype == "auto" else dtype).removeprefix("torch.")
    widest = max(config.hidden_size * 4, getattr(config, "intermediate_size", 0) or 0)
    return Shape(
        parameters,
        active,
        config.num_hidden_layers,
        config.num_key_value_heads * head,
        config.vocab_size,
        widest,
        BYTES.get(dtype, 4),
    )


def seconds(shape: Shape, cost: list[tuple[int, int]], settings: Settings, device: str) -> float:
    """One pass over all documents: two operations per active parameter and token, and an overhead per decoding step."""
    if not cost:
        return 0.0
    batch = min(models.pick_batch_size(settings, device, max(settings.lengths)), len(cost))
    steps = sum(new for _, new in cost) / batch
    return call_seconds(shape, sum(prompt + new for prompt, new in cost), steps, device)


def call_seconds(shape: Shape, tokens: float, calls: float, device: str) -> float:
    """So many tokens through the model in so many calls."""
    operations = 2 * shape.active * tokens
    return operations / (REACHED * _operations_per_second(device)) + calls * shape.layers * STEP_OVERHEAD_MS / 1000


def _operations_per_second(device: str) -> float:
    """Speed of one large matrix product here and now."""
    cuda = torch.device(device).type == "cuda"
    size, dtype = (4096, torch.bfloat16) if cuda else (768, torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    _ = matrix @ matrix
    start, turns = time.perf_counter(), 5
    for _ in range(turns):
        _ = matrix @ matrix
    if cuda:
        torch.cuda.synchronize()
    return turns * 2 * size**3 / (time.perf_counter() - start)


def memory(shape: Shape, settings: Settings, batch_size: int) -> list[str]:
    tokens = batch_size * max(settings.lengths)
    weights = shape.parameters * shape.element_bytes
    cache = 2 * shape.layers * shape.kv_width * tokens * shape.element_bytes
    working = tokens * shape.widest * shape.element_bytes * 4 + batch_size * shape.vocabulary * 8
    parts = {"weights": weights, "cache": cache, "working": working}
    text = ", ".join(f"{name} {_size(value)}" for name, value in parts.items())
    return [f"memory   about {_size(sum(parts.values()))} at batch size {batch_size}: {text}"]


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
