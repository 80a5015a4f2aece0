"""Times of calls, taken in turns; and full attention, the fastest there is."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sa_patch.kernels.dense import causal, fused
from sa_patch.tuning.choosing import FULL, Reading

Call = Callable[[], Tensor]

_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
_ENOUGH = 0.004  # seconds of calls per reading: shorter ones are repeated
_MOST_CALLS = 50
ROUNDS = 5  # ranges of 5 and 5 readings lie apart by chance once in 126 times
HOPELESS = 3  # what takes so many times as long as the fastest needs no more readings
_LEAST = 2  # rounds, whatever the time left


def full_calls(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Call]:
    """Full causal attention, through every backend there is for it."""
    scaling = query.shape[-1] ** -0.5
    if query.device.type != "cuda":
        return {FULL: lambda: causal(query, key, value, scaling)}

    def through(backend: SDPBackend) -> Call:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return fused(query, key, value, scaling, causal=True)

        return call

    calls: dict[str, Call] = {}
    for name, backend in _BACKENDS.items():
        try:
            through(backend)()
        except RuntimeError:
            continue  # not for these tensors
        calls[f"{FULL}/{name}"] = through(backend)
    return calls or {FULL: lambda: causal(query, key, value, scaling)}


def fastest_full(query: Tensor, key: Tensor, value: Tensor) -> Call:
    """The backend that is fastest here, by one reading each."""
    calls = full_calls(query, key, value)
    if len(calls) == 1:
        return next(iter(calls.values()))
    return min(calls.values(), key=lambda call: seconds(call, query.device))


def seconds(call: Call, device: torch.device) -> float:
    """Seconds per call, of as many as a reading needs."""
    return _cuda_seconds(call) if device.type == "cuda" else _host_seconds(call)


def once(call: Call, device: torch.device) -> float:
    """Seconds of a single call on the host's clock, the device's work and any compilation included."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _host_seconds(call: Call) -> float:
    start, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        taken = time.perf_counter() - start
        if taken > _ENOUGH:
            return taken / count


def _cuda_seconds(call: Call) -> float:
    """By events around several calls, after one that warms the caches, so that launches don't count as waiting."""
    first = once(call, torch.device("cuda"))
    repeats = max(1, min(_MOST_CALLS, int(_ENOUGH / max(first, 1e-6))))
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / repeats / 1e3


def single(taken: float) -> Reading:
    """The reading of what was called once, in seconds."""
    return Reading(1e3 * taken, 1e3 * taken, 1e3 * taken)


def in_turns(calls: Mapping[str, Call], device: torch.device, may_go_on: Callable[[], bool]) -> dict[str, Reading]:
    """Every call read in turns with the others, so that a drifting machine hits all alike.

    Args:
        may_go_on: asked before every round but the first ones; when it says no, the readings so far count.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS):
        if turn >= _LEAST and not may_go_on():
            break
        for name, call in calls.items():
            taken[name].append(1e3 * seconds(call, device))
    return {name: Reading(statistics.median(found), min(found), max(found)) for name, found in taken.items()}
