"""The variants of real_model.py, and how one of them reads a text while its visible pairs are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sa_eval.fidelity import measuring
from sa_eval.fidelity.probe import Call
from sa_eval.settings.arm import Arm
from sa_patch.geometry import Group

WINDOWS = {"fidelity": (128, 64), "lambada": (48, 32), "piqa": (24, 16)}  # keys per query
# Name, mode, options of the window.
VARIANTS: tuple[tuple[str, str, Callable[[int], dict[str, Any]]], ...] = (
    ("sa", "sa", lambda window: {}),
    ("random-keys", "random-keys", lambda window: {}),
    ("swa", "swa", lambda window: {}),
    ("swa + 1 sink", "swa", lambda window: {"sinks": 1}),
    ("sa+swa + 4 sinks", "sa+swa", lambda window: {"sinks": 4}),
    ("moba k=2", "moba", lambda window: {"top_k": 2}),
    ("moba k=4", "moba", lambda window: {"top_k": 4}),
    ("moba k=8", "moba", lambda window: {"top_k": 8}),
    ("moba k=8 + 4 sinks + local w/2", "moba", lambda window: {"top_k": 8, "sinks": 4, "local": window // 2}),
)


def arms(windows: Sequence[int]) -> Iterator[tuple[str, Arm]]:
    """Every variant at one window, then at the next, each with its name in the table."""
    for window in windows:
        for name, mode, options in VARIANTS:
            label = name.replace(" + ", "-").replace(" ", "-").replace("/", "").replace("=", "")
            yield name, Arm(f"{label}-w{window}", label, mode, window, options=options(window))


def read_counting(subject: measuring.Subject, arm: Arm, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Final hidden states of the patched model, and its keys per query: pairs counted, mean over layers and heads."""
    patch, length, pairs = arm.apply(subject.model, arm.seeds[0]), ids.shape[1], []

    def count(call: Call) -> None:
        group = Group(length, length, ids.device)
        pairs.append(patch.variant.sparse_pattern(group, call.layer, call.query, call.key).count())

    try:
        states = subject.probe.read(ids, count, lambda layer, residual: None)
    finally:
        patch.restore()
    return states, sum(pairs) / len(pairs) / length
