"""What results of benchmarks/attention.py say: targets beside figures, and the fastest kernels.

    python benchmarks/gpu_report.py attention.json short.json

A target is met or not; "-" is what was not measured. `scripts/write_gpu_rules.py` makes rules of committed figures.
"""

import argparse
import json
from pathlib import Path

# Times as fast as full at w=512 (bf16, 32 heads, 8 kv heads, head_dim 128), by length.
TIMES_FULL = {
    32_768: {"sa": 10, "sa-bucket": 16, "swa": 14, "moba": 6, "routed+tiles32": 8},
    131_072: {"sa": 40, "sa-bucket": 60, "swa": 50, "moba": 20},
}
OF_PRODUCTS = {"sa-bucket": 0.40, "swa": 0.40, "sa": 0.25}  # of the measured rate of matrix products, over needed pairs
SA_OVER_SWA, HOST_US = 1.35, 30
# The paper's own ratios of FlexAttention full over sa: d=1024 in 16 heads, w=256.
PAPER = {2048: 1.5, 8192: 6.6, 32_768: 28}


def best(cell: dict, arm: str) -> tuple[str, dict] | None:
    """The fastest kernel of an arm and its figures."""
    rows = {
        name: row for name, row in cell["calls"].items() if name.split("/")[0] == arm and not name.endswith("masked")
    }
    return min(rows.items(), key=lambda item: item[1]["ms"]) if rows else None


def line(what: str, found: float | None, target: float, *, most: bool = False, unit: str = "x") -> str:
    if found is None:
        return f"  {what:<44}{'-':>10}   target {target}{unit}"
    met = found <= target if most else found >= target
    return f"  {what:<44}{found:>9.2f}{unit}   target {target}{unit}   {'met' if met else 'MISSED'}"


def targets(cells: list[dict]) -> list[str]:
    by_shape = {(cell["length"], cell["window"]): cell for cell in cells}
    lines = []
    for length, wanted in TIMES_FULL.items():
        cell = by_shape.get((length, 512), {"calls": {}})
        found = {arm: best(cell, arm) for arm in wanted}
        for arm, target in wanted.items():
            name, row = found[arm] or (arm, None)
            lines.append(line(f"n={length:,} {name}, times full", row and row["times_full"], target))
        for arm, target in OF_PRODUCTS.items():
            name, row = found[arm] or (arm, None)
            lines.append(line(f"n={length:,} {name}, of matrix products", row and row["of_products"], target, unit=""))
        for arm in ("sa", "sa-bucket", "swa"):
            name, row = found[arm] or (arm, None)
            host = row and row.get("host_us")
            lines.append(line(f"n={length:,} {name}, host", host, HOST_US, most=True, unit=" us"))
        pair = found["sa"], found["swa"]
        over = pair[0][1]["ms"] / pair[1][1]["ms"] if pair[0] and pair[1] else None
        lines.append(line(f"n={length:,} time of sa over swa", over, SA_OVER_SWA, most=True))
    return lines


def paper(cells: list[dict]) -> list[str]:
    lines = []
    for cell in cells:
        full, found = cell["calls"].get("full/flex"), best(cell, "sa")
        if cell["window"] == 256 and cell["length"] in PAPER and full and found:
            ratio = full["ms"] / found[1]["ms"]
            lines.append(line(f"n={cell['length']:,} flex full over {found[0]}", ratio, PAPER[cell["length"]]))
    return lines


def fastest(cells: list[dict]) -> list[str]:
    lines = []
    arms = sorted({name.split("/")[0] for cell in cells for name in cell["calls"]} - {"full"})
    for arm in arms:
        rows = sorted(
            ((cell["window"], cell["length"], best(cell, arm)) for cell in cells if best(cell, arm)),
            key=lambda row: row[:2],
        )
        for window, length, found in rows:
            assert found is not None
            name, row = found
            lines.append(f"  {arm} w={window} n={length:,}: {name.split('/')[1]}, {row['times_full']:.2f} times full")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON of benchmarks/attention.py --out")
    files = [path for path in parser.parse_args().results if path.exists()]
    cells = [cell for path in files for cell in json.loads(path.read_text())["cells"]]
    print("targets", *targets(cells), sep="\n")
    print("the paper's comparison", *paper(cells), sep="\n")
    print("fastest kernels", *fastest(cells), sep="\n")


if __name__ == "__main__":
    main()
