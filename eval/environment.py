"""What a result must say about where it was made: versions and hardware, without names of people or paths."""

from __future__ import annotations

import math
import os
import platform
import time
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "transformers", "lm_eval", "sa-patch", "accelerate", "datasets", "numpy", "scipy")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package.replace("-", "_")] = "not installed"
    return found


def hardware(device: Any) -> dict[str, str | int | float | None]:
    import torch

    from sa_patch.kernels import rules
    from sa_patch.machine import cpu_name

    found: dict[str, str | int | float | None] = {
        "device": str(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel_rules": rules.used(torch.device(device)),
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["gpu_count"] = torch.cuda.device_count()
        found["gpu_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def allowed_cpus() -> int:
    """CPUs this process may use: a container with a quota shows all cores, and threads beyond the quota only wait."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="utf-8") as stream:
            quota, period = stream.read().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
