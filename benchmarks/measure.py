"""How the benchmarks measure: interleaved timing, peak memory, the machine's own limits, and what machine it was."""

import platform
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sa_patch

Call = Callable[[], Tensor]


def times(calls: dict[str, Call], rounds: int, device: str, *, cpu_time: bool = False, tick=lambda: None) -> dict:
    """Seconds of every round, the calls taken in turns so that a drifting machine hits all alike; one warm-up round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            seconds = _cuda_seconds(call) if device == "cuda" else _cpu_seconds(call, cpu_time)
            tick()
            if turn:
                taken[name].append(seconds)
    return taken


def medians(taken: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _cpu_seconds(call: Call, cpu_time: bool) -> float:
    clock = time.process_time if cpu_time else time.perf_counter
    start = clock()
    call()
    return clock() - start


def _cuda_seconds(call: Call) -> float:
    """By events around several calls, after one that warms the caches, so that launches don't count as waiting."""
    call()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    repeats = max(1, min(50, int(20 / max(start.elapsed_time(stop), 0.05))))
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / repeats / 1e3


def host_seconds(call: Call, repeats: int = 20) -> float:
    """What a call costs on the host when nobody waits for the device (CUDA)."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    taken = (time.perf_counter() - start) / repeats
    torch.cuda.synchronize()
    return taken


def peak_bytes(call: Call, device: str) -> int:
    """Most memory the call held at once beyond its inputs, its output included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Live() as live:
        call()
    return live.peak


class _Live(TorchDispatchMode):
    """Follows every storage that operators make while it lives."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {id_of(item) for item in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(item, Tensor)}
        result = function(*args, **(kwargs or {}))
        for item in torch.utils._pytree.tree_leaves(result):
            if isinstance(item, Tensor) and id_of(item) not in inputs | self.known:
                self._follow(item.untyped_storage())
        return result

    def _follow(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def id_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def limits(device: str, dtype: torch.dtype, *, cpu_time: bool = False) -> dict[str, float]:
    """What this machine reaches now: matrix products in FLOP/s, and copies in bytes/s (read plus written)."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(1 << (30 if device == "cuda" else 26), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls = {"product": lambda: left @ right, "copy": lambda: target.copy_(source)}
    taken = medians(times(calls, 5, device, cpu_time=cpu_time))
    return {"flops": 2 * size**3 / taken["product"], "bytes": 2 * source.numel() / taken["copy"]}


def environment() -> dict:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"torch": torch.__version__, "sa_patch": sa_patch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, **versions}
