"""Owns --dry-run: what would run, at which budgets, and a rough estimate of time and memory. Loads no weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sa_eval import models
from sa_eval.arms import Arm, arms_from
from sa_eval.budgets import measured_budget
from sa_eval.config import Settings

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


def render(settings: Settings) -> str:
    """The plan as text."""
    from sa_eval import prepare

    source = models.find(settings.model)
    prepare.check_tasks(settings)
    arms = arms_from(settings)
    for arm in arms:
        arm.check()
    model = models.empty_model(source, settings)
    prepare.check_lengths(settings, models.max_tokens(model))
    device = models.pick_device(settings)
    shape = _shape(model, models.pick_dtype(settings, device))
    lines = [
        f"model    {settings.model}: {shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers, on {device}"
    ]
    lines += [
        "",
        f"{'arm':<24}{'seeds':<10}"
        + "".join(f"{f'keys/q at {length}':>18}{'density':>9}" for length in settings.lengths),
    ]
    lines += [_arm_line(model, arm, settings.lengths) for arm in arms]
    documents, cost = _documents(settings)
    lines += ["", *documents]
    runs = sum(len(arm.seeds) for arm in arms)
    seconds = runs * _seconds(shape, cost, settings, device)
    if cost:
        lines.append(
            f"{runs} passes (arms and seeds): about {_duration(seconds)} on this machine, within a factor of three"
        )
    lines += ["", *_memory(shape, settings, models.pick_batch_size(settings, device))]
    return "\n".join(lines)


def _arm_line(model: Any, arm: Arm, lengths: tuple[int, ...]) -> str:
    patch = arm.apply(model, arm.seeds[0])
    try:
        text = f"{arm.name:<24}{','.join(map(str, arm.seeds)):<10}"
        for length in lengths:
            budget = measured_budget(patch, [length])
            text += f"{budget['keys_per_query']:>18,.1f}{budget['density']:>9.3f}"
        return text
    finally:
        if patch is not None:
            patch.restore()


def _documents(settings: Settings) -> tuple[list[str], list[tuple[int, int]]]:
    """Lines about the tasks, and (prompt tokens, new tokens) of every offline document batch member."""
    from sa_eval import lm_tasks
    from sa_eval.tasks import TASKS

    offline, other = lm_tasks.split_names(settings)
    lines, cost = [], []
    if offline:
        lines.append(
            f"tasks    {', '.join(offline)}: {settings.num_samples} documents each at {len(settings.lengths)} length(s)"
        )
    for name in offline:
        task = TASKS[name]
        for length in settings.lengths:
            new_tokens = task.max_new_tokens if task.output == "generate" else 0
            cost += [(length, new_tokens)] * int(settings.num_samples)
    lines += [
        f"tasks    {name} (lm-eval): up to {settings.num_samples} documents each, not in the estimate of time"
        for name in other
    ]
    return lines, cost


def _shape(model: Any, dtype: str) -> Shape:
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


def _seconds(shape: Shape, cost: list[tuple[int, int]], settings: Settings, device: str) -> float:
    """One pass over all documents: two operations per active parameter and token, and an overhead per decoding step."""
    if not cost:
        return 0.0
    operations = sum(2 * shape.active * (prompt + new) for prompt, new in cost)
    batch = min(models.pick_batch_size(settings, device), int(settings.num_samples))
    steps = sum(new for _, new in cost) / batch
    return operations / (REACHED * _operations_per_second(device)) + steps * shape.layers * STEP_OVERHEAD_MS / 1000


def _operations_per_second(device: str) -> float:
    """Speed of one large matrix product here and now."""
    import torch

    cuda = torch.device(device).type == "cuda"
    size, dtype = (4096, torch.bfloat16) if cuda else (768, torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    matrix @ matrix
    start, turns = time.perf_counter(), 5
    for _ in range(turns):
        matrix @ matrix
    if cuda:
        torch.cuda.synchronize()
    return turns * 2 * size**3 / (time.perf_counter() - start)


def _memory(shape: Shape, settings: Settings, batch_size: int) -> list[str]:
    tokens = batch_size * max(settings.lengths)
    weights = shape.parameters * shape.element_bytes
    cache = 2 * shape.layers * shape.kv_width * tokens * shape.element_bytes
    working = tokens * shape.widest * shape.element_bytes * 4 + batch_size * shape.vocabulary * 8
    parts = {"weights": weights, "cache": cache, "working": working}
    text = ", ".join(f"{name} {_size(value)}" for name, value in parts.items())
    return [f"memory   about {_size(sum(parts.values()))} at batch size {batch_size}: {text}"]


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
