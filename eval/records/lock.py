"""Who works in a run directory: a lock that the kernel holds for a process and drops however the process ends.

The file says who holds it; only the lock on it counts, so a killed holder leaves nothing to clean up. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sa_eval import environment
from sa_eval.records.jsonl import StorageError

_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child (RULER's generator) shares the lock; it may outlive us, so it must not keep it."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock on this file.

    Raises:
        StorageError: another process holds it (and which), or the file system knows no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(handle, path)
        _held.add(handle)
        os.ftruncate(handle, 0)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": environment.now()}
        os.write(handle, json.dumps(about).encode())
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock on this file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _take(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"{path.parent} is in use by {_holder(handle)}: two runs never share a directory; wait for that process or "
            "end it, then `sa-eval resume` continues"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{path.parent} is on a file system without locks ({error.strerror}), where two runs could mix: put the "
            "run directory on another disk (--out)"
        ) from error


def _holder(handle: int) -> str:
    try:
        about = json.loads(os.pread(handle, 4096, 0))
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
