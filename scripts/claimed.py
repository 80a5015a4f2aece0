"""What a claim of docs/claims.md is, and the files of figures it rests on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HOLDS, FAILS, PARTLY, OPEN = "holds", "does not hold", "only under a condition", "not checked"


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes:
        said: what the paper claims; checked: how, on what; found: the figures; verdict: one of the four.
    """

    said: str
    checked: str
    found: str
    verdict: str


def read(name: str) -> Any:
    """Figures kept in benchmarks/results; None where there are none."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
