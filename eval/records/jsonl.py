"""Files of one JSON object per line: appended in one write and flushed to disk; a damaged line is named by its number.

A line counts when its newline is there. What a killed process left behind it (a torn last line) is passed over when
reading and cut off before the next append; a damaged line anywhere else is an error, never skipped. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sa_eval.errors import UserError
from sa_eval.records import types

Row = TypeVar("Row")
BLOCK_BYTES = 1 << 16


class StorageError(UserError):
    """A file of a run directory that cannot be written or read; nothing else can go on, so no arm is blamed for it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the operating system refuses becomes one message: the file, the reason, the way on."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "make room" if full else "mend that"
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; what was finished is kept: {advice}, then continue the "
            "run with `sa-eval resume`"
        ) from error


def append(path: Path, rows: Iterable[Any]) -> None:
    """All rows (dataclasses) in one write, on the disk when this returns; a write that fails leaves the file as it was.

    Raises:
        StorageError: the disk is full, the file cannot be written.
    """
    text = "".join(json.dumps(types.plain(row), ensure_ascii=False, default=str) + "\n" for row in rows)
    if not text:
        return
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes \udXXX, which is JSON too
    with writing(path):
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _write(handle, data, _cut_torn_line(handle))
        finally:
            os.close(handle)
        if new:
            sync_folder(path.parent)


def read(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Every finished line as an object of this kind; a file that is not there holds none.

    Raises:
        StorageError: a line is damaged; says which.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                yield _parsed(path, number, line, kind)


def sync_folder(folder: Path) -> None:
    """A new file's name is on the disk too, where folders can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(handle: int, data: bytes, start: int) -> None:
    try:
        written = 0
        while written < len(data):  # once, but for a disk that fills up on the way
            written += os.write(handle, data[written:])
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, start)
        raise


def _cut_torn_line(handle: int) -> int:
    """Where the next line starts, after what no newline ended is gone."""
    size = end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)
    return end


def _parsed(path: Path, number: int, line: bytes, kind: type[Row]) -> Row:
    try:
        return types.read(kind, line)
    except ValueError as error:
        raise StorageError(
            f"{path}, line {number} is damaged ({str(error)[:120]}), so this run's records cannot be trusted: delete "
            f"that line (sed -i {number}d {path}), and `sa-eval resume {_run_of(path)}` does what it held again"
        ) from error


def _run_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "records" else path.parent
