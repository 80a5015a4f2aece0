"""Rules as a file that people can read."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from sa_patch import machine
from sa_patch.kernels import rules
from sa_patch.tuning.choosing import Cell, Reading, crossovers, steps
from sa_patch.tuning.search import Search

SHAPE = ("dtype", "head_dim", "heads", "kv_heads")


class Figure(TypedDict):
    """A cell as the file holds it: [median, fastest, slowest] in ms by kernel."""

    arm: str
    tokens: int
    window: int
    ms: dict[str, list[float]]


class Entry(TypedDict):
    """The rules of one kind of tensors as the file holds them (`rules.Entry` is how they are read)."""

    dtype: str
    head_dim: int
    heads: int
    kv_heads: int
    kernels: dict[str, rules.Steps]
    crossover: dict[str, tuple[int, int]]
    tiles: dict[str, tuple[int, ...]]
    wrong: dict[str, str]
    left_out: list[str]
    figures: list[Figure]


def entry(search: Search) -> Entry:
    """What was found for the tensors of a search, with its figures."""
    shape, choices = search.shape, search.choices(strict=True)
    default = rules.default_choice(shape.device, shape.dtype, shape.head_dim, shape.group)
    found = {}
    for layout in sorted({layout for layout, _ in choices}):
        own = {length: name for (at, length), name in choices.items() if at == layout}
        ends = [most for most, _ in default.at(layout) if most is not None]
        found[layout] = steps(own, lambda length, layout=layout: search.default_at(layout, length), ends)
    return {
        "dtype": str(shape.dtype).removeprefix("torch."),
        "head_dim": shape.head_dim,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "kernels": found,
        "crossover": crossovers(search.cells, choices),
        "tiles": search.tiles,
        "wrong": search.wrong(),
        "left_out": search.left_out,
        "figures": [figure(cell) for cell in search.cells],
    }


def figure(cell: Cell) -> Figure:
    """A cell: milliseconds by kernel, the median, the fastest and the slowest."""
    ms = {name: [_short(reading.ms), _short(reading.low), _short(reading.high)] for name, reading in
          cell.readings.items()}  # fmt: skip
    return {"arm": cell.arm, "tokens": cell.length, "window": cell.window, "ms": ms}


def save(search: Search, spent: float, path: Path) -> Path:
    """Write the rules; what the file holds for other tensors of the same device and versions stays.

    Raises:
        OSError: the file can't be written.
    """
    now = machine.identity(search.shape.device)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    made = {
        "format": rules.FORMAT,
        "kind": search.shape.device.type,
        "device": now.name,
        "versions": now.versions,
        "source": f"measured here by tune on {day} in {spent:.0f} s",
        "entries": [entry(search), *_others(path, now, search)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(lines(made), encoding="utf-8")
    beside.replace(path)
    return path


def _others(path: Path, now: machine.Identity, search: Search) -> list[object]:
    try:
        text = path.read_text(encoding="utf-8")
        known = rules.parse(text)
    except (OSError, ValueError):
        return []  # none, or nothing that anybody could use
    if (known.device, dict(known.versions)) != (now.name, now.versions):
        return []
    shape = search.shape
    mine = str(shape.dtype).removeprefix("torch."), shape.head_dim, shape.heads, shape.kv_heads
    return [held for held in json.loads(text)["entries"] if tuple(held[name] for name in SHAPE) != mine]


def lines(held: Mapping[str, object]) -> str:
    """JSON whose innermost lists and objects are a line each."""
    text = json.dumps(held, indent=1)
    for _ in range(2):  # [median, low, high], and then the object of kernels that holds them
        text = re.sub(r"[\[{][^\[\]{}\n]*\n[^\[\]{}]*[\]}]", lambda found: " ".join(found.group().split()), text)
    return text + "\n"


def _short(ms: float) -> float:
    return float(f"{ms:.4g}")


def read_cells(figures: Sequence[Figure]) -> dict[tuple[str, int, int], dict[str, Reading]]:
    """(arm, tokens, window) -> readings, from what `figure` gives."""
    return {
        (held["arm"], held["tokens"], held["window"]): {name: Reading(*ms) for name, ms in held["ms"].items()}
        for held in figures
    }
