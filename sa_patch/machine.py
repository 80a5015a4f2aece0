"""What measured figures depend on: the device's name and the versions of what runs there; and where they are kept."""

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

import sa_patch


@dataclass(frozen=True)
class Identity:
    """A device with the software on it.

    Attributes:
        versions: of the driver (GPUs), torch, triton and sa_patch.
    """

    name: str
    versions: dict[str, str]

    @property
    def slug(self) -> str:
        """The name of a file for exactly this."""
        text = repr((self.name, sorted(self.versions.items())))
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40]
        return f"{name or 'device'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def identity(device: torch.device) -> Identity:
    """Of a device that is there."""
    return _identity(device.type, device.index)


@lru_cache(maxsize=64)
def _identity(kind: str, index: int | None) -> Identity:
    versions = {"torch": torch.__version__, "triton": _installed("triton"), "sa_patch": sa_patch.__version__}
    if kind != "cuda":
        return Identity(cpu_name() if kind == "cpu" else kind, versions)
    return Identity(torch.cuda.get_device_name(index), {"driver": _driver(), **versions})


def cpu_name() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def home() -> Path:
    """The user's cache folder of sa_patch: SA_PATCH_HOME, or a folder in XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("SA_PATCH_HOME")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sa_patch"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _driver() -> str:
    """The NVIDIA driver's version, or else the newest CUDA it can run."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)+", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group() if found else f"CUDA {torch._C._cuda_getDriverVersion()}"  # pyright: ignore[reportAttributeAccessIssue]
