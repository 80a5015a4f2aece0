"""What calibration has measured so far, on the disk: a run that is stopped goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Measured values by key, appended as JSON lines at once; without a file, in memory only.

    Attributes:
        seconds: what measuring all of them took, earlier sessions included.

    Raises:
        ValueError: when the file belongs to other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, object]) -> None:
        self.path, self.seconds = path, 0.0
        self._known: dict[str, Any] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read(path, settings)
        if not path.exists() or not path.stat().st_size:
            self._append({"settings": settings})

    def _read(self, path: Path, settings: Mapping[str, object]) -> None:
        whole = path.read_bytes()
        lines = whole.split(b"\n")
        if lines[-1]:  # torn: the process died while it wrote
            with path.open("r+b") as file:
                file.truncate(len(whole) - len(lines[-1]))
        for number, line in enumerate(lines[:-1]):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} is damaged in line {number + 1}: {error}") from error
            if number == 0:
                differ = sorted(name for name in settings if row.get("settings", {}).get(name) != settings[name])
                if differ:
                    raise ValueError(
                        f"{path} was measured with other settings ({', '.join(differ)}): use another folder, or "
                        "remove it"
                    )
            else:
                self._known[row["key"]] = row["value"]
                self.seconds += row["seconds"]

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of a key, measured now if it is not there; values are JSON."""
        if key not in self._known:
            start = time.monotonic()
            value = self._known[key] = measure()
            seconds = time.monotonic() - start
            self.seconds += seconds
            self._append({"key": key, "value": value, "seconds": round(seconds, 3)})
        return self._known[key]

    def _append(self, row: Mapping[str, object]) -> None:
        if self.path is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
