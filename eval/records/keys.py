"""A record's key: a hash of everything that decides its score, so that only equals are ever put together.

Two records belong to one run when model, arm, seed, task, document, code, versions and dtype are the same; machines,
batch sizes and the number of processes may differ. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import util
from pathlib import Path
from typing import Any

from sa_eval import environment
from sa_eval.records.types import Facts
from sa_eval.settings.arm import Arm

PACKAGES = ("torch", "transformers", "lm_eval")  # their versions can change a score
BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".py", ".txt")
KEY_CHARACTERS = 24


class Keys:
    """Makes the keys of one run; `parts` is kept in the manifest, so that a difference can be named."""

    def __init__(self, parts: Facts) -> None:
        self.parts = parts
        self._start = json.dumps(parts, sort_keys=True, default=str)

    def of(self, arm: Arm, seed: int, task: str, document_hash: str) -> str:
        """The key of a record."""
        about = {**arm.to_dict(), "name": None, "label": None, "seeds": seed, "task": task, "document": document_hash}
        text = self._start + json.dumps(about, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARACTERS]


def parts_of(loaded: Any, device: str) -> Facts:
    """What all records of a run share: the model, the code, the versions of what computes, dtype, kind of device.

    Args:
        loaded: a `loading.models.Loaded`; this folder stands below loading and does not import it.
        device: cpu, cuda, ...
    """
    versions = environment.versions()
    return {
        "model": model_identity(loaded),
        "code": code_hash(),
        "versions": {name: versions[name] for name in PACKAGES},
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": device,
    }


def model_identity(loaded: Any) -> Facts:
    """Hub id and revision, or hashes of a folder's weights and of the files beside them (config, tokenizer, code)."""
    identity, folder = loaded.identity, loaded.source.folder
    if not loaded.source.local:
        return {name: getattr(identity, name) for name in ("name", "hub_id", "revision", "parameters")}
    found: Facts = {"weights": identity.weights_sha256 or identity.weights_fingerprint}
    if folder is not None:  # a GGUF file holds its config and tokenizer itself
        found["files"] = contents_hash(_files(folder, BESIDE_WEIGHTS), folder)
    return found


def code_hash() -> str:
    """One hash over the installed sources of sa_patch and sa_eval."""
    digest = hashlib.sha256()
    for package in ("sa_patch", "sa_eval"):
        spec = util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        digest.update(contents_hash(sorted(folder.rglob("*.py")), folder).encode())
    return digest.hexdigest()[:KEY_CHARACTERS]


def contents_hash(files: Iterable[Path], folder: Path) -> str:
    """Names and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:KEY_CHARACTERS]


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in endings and file.is_file())
