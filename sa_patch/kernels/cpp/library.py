"""The C++ program of the `cpp` kernel: compiled once for this machine, and kept in the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from sa_patch import machine

SOURCE = Path(__file__).parent / "attention.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")


class Strided(ctypes.Structure):
    """A tensor [batch, heads, tokens, head_dim]: its address and strides in entries."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "head", "token")),
    )


class Call(ctypes.Structure):
    """What every function of the program is told first."""

    _fields_ = (
        *((name, Strided) for name in ("query", "key", "value", "output")),
        ("lse", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "head_dim", "first", "length")),
        *((name, ctypes.c_int64) for name in ("threads", "is_bf16", "output_is_bf16")),
        ("scaling", ctypes.c_float),
    )


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first of c++, g++ and clang++ that there is."""
    return next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if (found := _which(name))), None)


def _which(name: str | None) -> str | None:
    return shutil.which(name) if name else None


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The program, compiled where this machine has not compiled it before: takes a few seconds then.

    Raises:
        RuntimeError: it does not compile, or can't be kept or loaded; the message says why and what to do.
    """
    with_what = compiler()
    if with_what is None:
        raise RuntimeError("kernel 'cpp' needs a C++ compiler (c++, g++ or clang++, or the variable CXX)")
    made_of = repr((SOURCE.read_bytes(), with_what, FLAGS, platform.machine(), machine.cpu_name()))
    file = machine.home() / "cpp" / f"attention-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    try:
        if not file.exists():
            _compile(with_what, file)
        found = ctypes.CDLL(str(file))
    except OSError as error:
        raise RuntimeError(
            f"kernel 'cpp' can't be kept and loaded as {file}: {error}. Let SA_PATCH_HOME name a folder that may hold "
            "programs, or use kernel='torch'"
        ) from error
    for name in ("band", "runs", "chosen_runs", "selected"):
        getattr(found, name).restype = None
    return found


def _compile(with_what: str, file: Path) -> None:
    """Into another name first, so that two processes never read half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        command = [with_what, *FLAGS, str(SOURCE), "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(
                f"kernel 'cpp' could not be compiled: {' '.join(command)} said\n{run.stderr.strip()[-2000:]}\n"
                "Use kernel='torch', or another compiler in the variable CXX"
            )
        made.replace(file)
