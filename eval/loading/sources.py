"""From the name of a model to where its files are: bundled, a folder, a GGUF file, or the hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sa_eval.loading import gguf_file, hub
from sa_eval.messages import shown
from sa_eval.settings.config import Settings, SettingsError, nearest

BUNDLED = ("qwen3-tiny", "qwen3-moe-tiny")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: `path` is a folder, a hub id, or the folder of the GGUF file named in `gguf`."""

    name: str
    path: str
    local: bool
    gguf: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where a model's own files lie, as far as they are on this machine from the start."""
        return Path(self.path) if self.local and self.gguf is None else None

    @property
    def file(self) -> Path | None:
        """The GGUF file."""
        return None if self.gguf is None else Path(self.path) / self.gguf


@dataclass(frozen=True)
class Location:
    """What `from_pretrained` is asked for, everywhere the same."""

    path: str
    options: Mapping[str, str | bool]


def find(name: str) -> Source:
    """Resolve a bundled name, a folder, a GGUF file or a hub id; refuse what cannot be any of them."""
    if name in BUNDLED:
        folder = Path(str(resources.files("sa_eval"))) / "assets" / name
        if not (folder / "config.json").is_file():
            raise SettingsError(
                f"the bundled model {name} is not installed: {folder} has no config.json; reinstall the package"
            )
        return Source(name, str(folder), local=True)
    path = _path(name)
    if path is not None and path.suffix == gguf_file.ENDING and path.is_file():
        return Source(path.stem, str(path.resolve().parent), local=True, gguf=path.name)
    folder = path if path is not None and path.is_dir() else None
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise SettingsError(f"model {name!r} is a folder without config.json: point to a saved transformers model")
        return Source(folder.resolve().name, str(folder), local=True)
    if name.endswith(gguf_file.ENDING):
        raise SettingsError(f"model {shown(name)} is named like a GGUF file, but there is no such file")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise SettingsError(
            f"model {shown(name)} is neither a bundled model ({', '.join(BUNDLED)}), an existing folder, a GGUF file "
            f"nor a hub id (owner/name); {nearest(name, BUNDLED)}"
        )
    return Source(name.split("/")[-1], name, local=False)


def _path(name: str) -> Path | None:
    """What is there under this name, None when nothing is or the name cannot be a path."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, an unknown user
        return None


@contextlib.contextmanager
def location_of(source: Source, settings: Settings) -> Iterator[Location]:
    """What to ask transformers for, checked as far as it can be without reading a file of the model.

    A GGUF file is read from an empty folder: beside the file may lie an adapter or another tokenizer, which
    transformers would take as well.
    """
    if not source.local:
        with hub.reached(source.path, settings.revision) as options:
            yield Location(source.path, options)
        return
    if settings.revision is not None:
        raise SettingsError(f"revision {shown(settings.revision)} is for hub models; {source.name} is on this machine")
    if source.file is None:
        yield Location(source.path, {"local_files_only": True})
        return
    with tempfile.TemporaryDirectory() as empty:
        yield Location(empty, {"local_files_only": True, "gguf_file": str(source.file)})
