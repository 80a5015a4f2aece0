"""Writes the shipped rules of a GPU, sa_patch/kernels/measured/<name>.json, from figures of benchmarks/attention.py.

    python scripts/write_gpu_rules.py benchmarks/results/h200.json

The figures are medians without their scatter: kernels less than SCATTER apart count as equal. `sa-eval tune` measures
more, and on the device itself; its rules come before these.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sa_patch.kernels import KERNELS, rules
from sa_patch.tuning.arms import declared_arms
from sa_patch.tuning.choosing import FULL, Cell, Reading, chosen, crossovers, steps
from sa_patch.tuning.writing import lines

ROOT = Path(__file__).parents[1]
SCATTER = 0.15  # the same calls of two runs on that GPU were up to 12 % apart


def cells_of(held: dict[str, Any]) -> Iterator[Cell]:
    arms = {arm.name: arm for arm in declared_arms()}
    for cell in held["cells"]:
        times: dict[str, dict[str, float]] = {}
        for name, row in cell["calls"].items():
            arm, _, kernel = name.partition("/")
            if arm == FULL or (arm in arms and kernel in KERNELS):
                times.setdefault(arm, {})[kernel] = row["ms"]
        full = min(times.pop(FULL).values())
        for name, ms in times.items():
            arm = arms[name]
            read = {kernel: reading(taken) for kernel, taken in {FULL: full, **ms}.items()}
            yield Cell(name, arm.layouts, arm.kinds[-1], arm.pieces, cell["length"], cell["window"], read)


def reading(ms: float) -> Reading:
    return Reading(ms, ms * (1 - SCATTER / 2), ms * (1 + SCATTER / 2))


def choices_of(cells: list[Cell], default: rules.Choice) -> dict[tuple[str, int], str]:
    """The kernel per layout and length; where the fallback was not read, it is held against the length before."""
    found: dict[tuple[str, int], str] = {}
    for layout in {cell.layout for cell in cells}:
        before = None
        for length in sorted({cell.length for cell in cells if cell.layout == layout and not cell.pieces}):
            here = [cell for cell in cells if (cell.layout, cell.length) == (layout, length)]
            read = all(rules.FALLBACK in cell.readings for cell in here)
            usual = rules.kernel_at(default.at(layout), length, length)
            start = usual if read or before is None else before
            found |= chosen(here, list(KERNELS), lambda layout, length, start=start: start)
            before = found[layout, length]
    return found


def rules_from(held: dict[str, Any], source: str) -> dict[str, Any]:
    """The rules as a file holds them."""
    environment, head_dim, heads, kv_heads = (held[name] for name in ("environment", "head_dim", "heads", "kv_heads"))
    default = rules.choice(torch.device("cpu"), torch.float32, head_dim, heads // kv_heads)
    cells = list(cells_of(held))
    choices = choices_of(cells, default)
    kernels = {}
    for layout in sorted({layout for layout, _ in choices}):
        own = {length: name for (at, length), name in choices.items() if at == layout}
        usual = default.at(layout)
        ends = [most for most, _ in usual if most is not None]
        first = min(own)  # shorter ones were not read: as at the shortest, beyond what a mask computes
        own[max([*ends, 0]) + 1] = own[first]
        kernels[layout] = steps(own, lambda length, usual=usual: rules.kernel_at(usual, length, length), ends)
    entry = {
        "dtype": environment["dtype"],
        "head_dim": head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "kernels": kernels,
        "crossover": crossovers(cells, choices),
        "tiles": {},
    }
    return {
        "format": rules.FORMAT,
        "kind": "cuda",
        "device": environment["gpu"],
        "versions": {name: environment[name] for name in ("driver", "torch", "triton", "sa_patch")},
        "source": f"measured on an {environment['gpu']} in {environment['dtype']}",
        "how": source,
        "entries": [entry],
    }


def main() -> None:
    for file in map(Path, sys.argv[1:]):
        made = rules_from(
            json.loads(file.read_text()), f"python scripts/write_gpu_rules.py benchmarks/results/{file.name}"
        )
        path = rules.SHIPPED / f"{made['device'].lower().replace(' ', '-')}.json"
        path.write_text(lines(made))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
