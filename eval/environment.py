"""What a result must say about where it was made: versions and hardware, without names of people or paths."""

from __future__ import annotations

import math
import os
import platform
import time
from importlib import metadata

PACKAGES = ("torch", "transformers", "lm_eval", "sa-patch", "accelerate", "datasets", "numpy", "scipy")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package.replace("-", "_")] = "not installed"
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
