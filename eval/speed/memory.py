"""The peak memory of a call, as torch's allocators see it, beyond what was held before. Imports torch only.

On CUDA the allocator keeps the figure itself, at no cost. On a CPU every allocation and release of torch's allocator is
recorded by its profiler, scratch inside operators included, which slows the call: never time such a call. The resident
size of the process is no measure: the C library keeps and reuses freed blocks as it likes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd import profiler

Result = TypeVar("Result")
_EVENT = "[memory]"  # the profiler's name for an allocation (positive) or a release (negative)


def is_free(device: torch.device) -> bool:
    """True where reading the peak of a call does not slow it."""
    return device.type == "cuda"


def with_peak(call: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """What `call` returns, and the most bytes it held at once beyond what was held before it.

    The peak is None on devices whose allocator tells none.
    """
    if device.type == "cpu":
        return _on_cpu(call)
    if device.type != "cuda":
        return call(), None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def _on_cpu(call: Callable[[], Result]) -> tuple[Result, int]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells the terminal whenever it starts and stops
    with profiler.profile(use_cpu=True, profile_memory=True) as profile:
        result = call()
    recorded: Any = getattr(profile, "kineto_results")  # noqa: B009 - torch's types don't know its events
    events = [event for event in recorded.events() if event.name() == _EVENT]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return result, peak


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release(device: torch.device) -> None:
    """Give back what a failed call left in the allocator, so that the next arm finds the memory it needs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
