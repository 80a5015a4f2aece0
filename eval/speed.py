"""Owns the latency measurement: prefill of one prompt per arm and length, interleaved so that drift hits all alike.

One row of real prompt tokens; the cache is filled and one position gets logits, as before `generate`'s first token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sa_eval.arms import Arm

REPEATS = 3


def measure_prefill(
    model: Any,
    arms: Sequence[Arm],
    prompts: dict[int, list[int]],
    *,
    repeats: int = REPEATS,
    progress: Callable[[str], None] = lambda text: None,
    refused: Callable[[Arm, Exception], None] = lambda arm, error: None,
) -> list[dict[str, Any]]:
    """Median prefill latency in ms per arm and length; an arm that fails is handed to `refused` and skipped."""
    rows = []
    for length, prompt in prompts.items():
        ids = torch.tensor([prompt], device=model.device)
        times: dict[str, list[float]] = {arm.name: [] for arm in arms}
        failed: set[str] = set()
        for turn in range(repeats + 1):  # turn 0 warms up
            for arm in arms:
                if arm.name in failed:
                    continue
                progress(arm.name)
                try:
                    latency_ms = _timed_prefill(model, arm, ids)
                except Exception as error:
                    failed.add(arm.name)
                    refused(arm, error)
                    continue
                if turn:
                    times[arm.name].append(latency_ms)
        rows += [
            {
                "arm": name,
                "length": length,
                "prompt_tokens": len(prompt),
                "prefill_ms": statistics.median(values),
                "repeats_ms": values,
            }
            for name, values in times.items()
            if values
        ]
    return rows


def _timed_prefill(model: Any, arm: Arm, ids: torch.Tensor) -> float:
    patch = arm.apply(model, arm.seeds[0])
    try:
        with torch.inference_mode():
            _synchronize(ids.device)
            start = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
            _synchronize(ids.device)
            return (time.perf_counter() - start) * 1000
    finally:
        if patch is not None:
            patch.restore()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
