"""The hardware that a result was made on, without names of people or paths."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from sa_patch.kernels import rules
from sa_patch.machine import cpu_name


def hardware(device: Any) -> dict[str, str | int | float | None]:
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
