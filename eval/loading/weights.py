"""What tells weights on disk from others: one sha256 over all of them, or a fingerprint where that takes long.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

HASH_LIMIT_BYTES = 2 * 1024**3  # hashing 16 GB of weights takes longer than a smoke run
HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own
BLOCK_BYTES = 4096  # read of every tensor
BLOCKS_PER_PICKLE = 4096
CHARACTERS = 32


def files_of(folder: Path) -> list[Path]:
    """A folder's weight files in name order."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def identity(files: list[Path]) -> dict[str, str | None]:
    """`weights_sha256` of the files one after another; None for large ones, which have `weights_fingerprint`."""
    if sum(file.stat().st_size for file in files) > HASH_LIMIT_BYTES:
        return {"weights_sha256": None, "weights_fingerprint": fingerprint(files)}
    return {"weights_sha256": _sha256(files) if files else None}


def fingerprint(files: list[Path]) -> str:
    """Names, sizes, headers, and a block of every tensor: tells any checkpoints apart, but not single bytes.

    Returns:
        "sampled-" and 32 hexadecimal digits, so that nobody takes it for the hash of the files.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            header, starts = _header(stream.read(8), size), _evenly(size)
            if header:
                text = stream.read(header)
                digest.update(text)
                starts = _middles(text, 8 + header)
            for start in starts:
                stream.seek(start)
                digest.update(stream.read(BLOCK_BYTES))
    return f"sampled-{digest.hexdigest()[:CHARACTERS]}"


def _header(start: bytes, size: int) -> int:
    """Bytes of a safetensors header; 0 for files of another kind."""
    length = int.from_bytes(start, "little")
    return length if len(start) == 8 and length <= min(size - 8, HEADER_LIMIT_BYTES) else 0


def _middles(header: bytes, start: int) -> Iterator[int]:
    """Where the middle block of every tensor begins."""
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            yield start + max(first, (first + last - BLOCK_BYTES) // 2)


def _evenly(size: int) -> Iterator[int]:
    return iter(range(0, size, max(BLOCK_BYTES, size // BLOCKS_PER_PICKLE)))


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
