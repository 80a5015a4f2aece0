"""The variants of real_model.py, and how one of them reads a text while its visible pairs are counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import sa_patch
from sa_eval.fidelity import measuring
from sa_eval.fidelity.probe import Call
from sa_eval.settings.arm import Arm
from sa_eval.settings.config import settings_from
from sa_eval.settings.plan_arms import plan_arms
from sa_patch.geometry import Group

LENGTH = 1024  # tokens of a passage
WINDOWS = {"fidelity": (256, 128, 64), "lambada": (48, 32), "piqa": (24, 16)}  # keys per query
ROUTED = {"block_size": 16, "query_block": 16}
GROUPS = {"block_size": 8, "share": "group", "query_block": 16}
# Name, mode, options of the window.
Line = tuple[str, str, Callable[[int], dict[str, Any]]]
VARIANTS: tuple[Line, ...] = (
    ("sa", "sa", lambda window: {}),
    ("random-keys", "random-keys", lambda window: {}),
    ("swa", "swa", lambda window: {}),
    ("swa + 1 sink", "swa", lambda window: {"sinks": 1}),
    ("moba k=8 + 4 sinks + local w/2", "moba", lambda window: {"top_k": 8, "sinks": 4, "local": window // 2}),
    ("routed", "routed", lambda window: {}),
)
MORE_ON_TASKS: tuple[Line, ...] = (
    ("sa+swa + 4 sinks", "sa+swa", lambda window: {"sinks": 4}),
    ("moba k=2", "moba", lambda window: {"top_k": 2}),
)
# On texts only, where they cost minutes and not hours.
MORE: tuple[Line, ...] = (
    ("sa + 4 sinks", "sa", lambda window: {"sinks": 4}),
    ("sa + 4 sinks, per head", "sa", lambda window: {"sinks": 4, "heads": "each"}),
    ("sa + 4 sinks, weighted", "sa", lambda window: {"sinks": 4, "weight": "sampled"}),
    ("sa+swa", "sa+swa", lambda window: {}),
    ("sa+swa, per head", "sa+swa", lambda window: {"heads": "each"}),
    ("sa+swa, weighted", "sa+swa", lambda window: {"weight": "sampled"}),
    ("sa+swa + 4 sinks, per head", "sa+swa", lambda window: {"sinks": 4, "heads": "each"}),
    ("sa+swa + 4 sinks, weighted", "sa+swa", lambda window: {"sinks": 4, "weight": "sampled"}),
    (
        "sa+swa + 4 sinks, weighted whole",
        "sa+swa",
        lambda window: {"sinks": 4, "weight": "sampled", "weight_power": 1},
    ),
    (
        "sa+swa + 4 sinks, per head, weighted",
        "sa+swa",
        lambda window: {"sinks": 4, "heads": "each", "weight": "sampled"},
    ),
    ("routed, blocks of 4", "routed", lambda window: {"block_size": 4}),
    ("routed, blocks of 8", "routed", lambda window: {"block_size": 8}),
    ("routed, heads pooled", "routed", lambda window: {"pool": "layer"}),
    ("routed, heads pooled, blocks of 4", "routed", lambda window: {"pool": "layer", "block_size": 4}),
    ("routed, heads pooled, blocks of 8", "routed", lambda window: {"pool": "layer", "block_size": 8}),
    ("routed, heads pooled, by the mean", "routed", lambda window: {"pool": "layer", "router": "mean"}),
    ("routed, by the mean, blocks of 8", "routed", lambda window: {"block_size": 8, "router": "mean"}),
    ("routed, Quest's bound, blocks of 8", "routed", lambda window: {"block_size": 8, "router": "minmax"}),
    ("routed, groups and 16 queries, blocks of 8", "routed", lambda window: GROUPS),
    ("routed, blocks of 16, 16 queries", "routed", lambda window: ROUTED),
    (
        "routed, XAttention's sums, blocks of 16, 16 queries",
        "routed",
        lambda window: {**ROUTED, "router": "antidiagonal"},
    ),
    ("vertical-slash", "vertical-slash", lambda window: {}),
)
# The router paid by the window: every rule at the cost of the others.
CHARGED: tuple[Line, ...] = tuple(
    (f"{name}, charged", name.split(",")[0], lambda window, options=options: {**options, "router_cost": "charged"})
    for name, options in (
        ("vertical-slash", {}),
        ("vertical-slash, 16 queries", {"probe": 16}),
        ("routed, blocks of 16", {"block_size": 16}),
        ("routed, blocks of 32", {"block_size": 32}),
        ("routed, by the mean, blocks of 16", {"block_size": 16, "router": "mean"}),
        ("routed, Quest's bound, blocks of 16", {"block_size": 16, "router": "minmax"}),
        ("routed, XAttention's sums of 4, blocks of 16, 16 queries", {**ROUTED, "router": "antidiagonal"}),
        ("routed, XAttention's sums of 8, blocks of 16, 16 queries", {**ROUTED, "router": "antidiagonal", "stride": 8}),
        ("routed, blocks of 16, 16 queries", ROUTED),
    )
)


def arms(task: str) -> Iterator[tuple[str, Arm]]:
    """Every variant at one window of the task, then at the next, each with its name in the table; what a window has no
    room for is left out."""
    lines = (*VARIANTS, *MORE_ON_TASKS, *((*MORE, *CHARGED) if task == "fidelity" else ()))
    for window in WINDOWS[task]:
        for name, mode, options in lines:
            label = re.sub("[^a-z0-9+]+", "-", name.lower()).strip("-")
            arm = Arm(f"{label}-w{window}", label, mode, window, options=options(window))
            if arm.refusal() is None and _fits(arm):
                yield name, arm


def plans(task: str, folders: Sequence[Path]) -> Iterator[tuple[str, Arm]]:
    """Plans of `sa-eval calibrate`, each with its name in the table, where the task has their window."""
    for arm in plan_arms(settings_from({"plans": [str(folder) for folder in folders]})) if folders else ():
        if arm.window in WINDOWS[task]:
            yield "plan", arm


def _fits(arm: Arm) -> bool:
    """Whether the window has room for everything at the texts' length; a router that is charged may leave none."""
    try:
        sa_patch.variant(arm.mode, arm.window or 1, **arm.options).sparse_budget(LENGTH, 0)
    except ValueError:
        return False
    return True


def read_counting(subject: measuring.Subject, arm: Arm, ids: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """Final hidden states of the patched model, its keys per query (pairs counted, mean over layers and heads), and its
    router's cost beside them, a pair being two products."""
    patch, length, pairs = arm.apply(subject.model, arm.seeds[0]), ids.shape[1], []
    router = patch.budget(length).router_cost / 2

    def count(call: Call) -> None:
        group = Group(length, length, ids.device)
        variant = patch.plan.variants[call.layer]
        pairs.append(variant.sparse_pattern(group, call.layer, call.query, call.key).count())

    try:
        states = subject.probe.read(ids, count, lambda layer, residual: None)
    finally:
        patch.restore()
    return states, sum(pairs) / len(pairs) / length, router
