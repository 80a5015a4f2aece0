"""The C++ program of the `cpp` kernel: compiled once for this machine, and kept in the user's cache folder."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from sa_patch import machine

SOURCE = Path(__file__).parent / "attention.cpp"
NO_COMPILER = "it needs a C++ compiler (c++, g++ or clang++, or the variable CXX)"
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


def compiler() -> list[str] | None:
    """The C++ compiler, with its own arguments: what CXX names, or else the first of c++, g++ and clang++."""
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH"))


@lru_cache(maxsize=8)
def _compiler(given: str, path: str | None) -> list[str] | None:
    """Looked for once: every layer of every forward pass asks."""
    known = [shlex.split(given)] if given else [["c++"], ["g++"], ["clang++"]]
    return next((command for command in known if shutil.which(command[0], path=path)), None)


def missing() -> str | None:
    """Which compiler is missing, and that it is needed; None when there is one."""
    if compiler():
        return None
    given = os.environ.get("CXX")
    return f"the C++ compiler that CXX names, {given!r}, is not there" if given else NO_COMPILER


@lru_cache(maxsize=1)
def is_compiled() -> bool:
    """Whether this machine keeps the program, by the present compiler: true from the kernel's first use on."""
    if not (machine.home() / "cpp").is_dir() or (command := compiler()) is None:
        return False
    try:
        return _file(command).exists()
    except RuntimeError:  # not even asked for its version does that compiler run
        return False


def _file(command: list[str]) -> Path:
    """Where the program lies that this compiler makes for this processor."""
    # All that the compiler knows of itself and of this processor: a home may be shared by several machines.
    known = _said([*command, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull])
    name = hashlib.sha256(repr((SOURCE.read_bytes(), command, FLAGS, known)).encode()).hexdigest()[:16]
    return machine.home() / "cpp" / f"attention-{name}.so"


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The program, compiled where this machine has not compiled it before: takes a few seconds then.

    Raises:
        RuntimeError: it does not compile, or can't be kept or loaded; the message says why and what to do.
    """
    command = compiler()
    if command is None:
        raise RuntimeError(f"kernel 'cpp' can't be compiled: {missing()}")
    file = _file(command)
    try:
        if not file.exists():
            _compile(command, file)
            is_compiled.cache_clear()
        found = ctypes.CDLL(str(file))
    except OSError as error:
        raise RuntimeError(
            f"kernel 'cpp' can't be kept and loaded as {file}: {error}. Delete that file, let SA_PATCH_HOME name a "
            "folder that may hold programs, or use kernel='torch'"
        ) from error
    for name in ("band", "runs", "chosen_runs", "selected", "largest"):
        getattr(found, name).restype = ctypes.c_int32
    return found


def _compile(command: list[str], file: Path) -> None:
    """Into another name first, so that two processes never read half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        _said([*command, *FLAGS, str(SOURCE), "-o", str(made)])
        made.replace(file)


def _said(command: list[str]) -> str:
    """What a compiler prints."""
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode:
        raise RuntimeError(
            f"kernel 'cpp' could not be compiled: {' '.join(command)} said\n{run.stderr.strip()[-2000:]}\n"
            "Use kernel='torch', or another compiler in the variable CXX"
        )
    return run.stdout
