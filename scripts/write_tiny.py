"""Writes the tables of docs/tiny-model.md from benchmarks/results/qwen3-tiny.json, and keeps new runs' figures there.

  sa-eval --config example --threads 1 --out runs/example
  python scripts/suite_text.py suite.txt
  sa-eval calibrate --model qwen3-tiny --text suite.txt --window 128 --lengths 1024,2048 --swaps 6 --out plans/tiny
  sa-eval --plan plans/tiny --modes swa,routed --block-size 4,8 --window 128 --lengths 2048 --num-samples 20 \
      --seeds 0 --out runs/plan
  python scripts/write_tiny.py --example runs/example --plan runs/plan plans/tiny
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from claimed import RESULTS, ROOT

from sa_eval.results.scores import FAMILIES

KEPT = RESULTS / "qwen3-tiny.json"
PAGE, EXAMPLE = ROOT / "docs" / "tiny-model.md", ROOT / "docs" / "example"
LENGTH = 2048
_CELL = ("arm", "length", "scope", "name", "documents", "accuracy", "difference", "corrected_low", "corrected_high")
_DIFFERENCE = ("arm", "base", "name", "difference", "difference_low", "difference_high", "p_adjusted", "significant")
_RUN = ("model", "versions", "hardware", "budgets")
_TAIL = "-tail64"


def of_run(folder: Path) -> dict[str, Any]:
    """What the page's tables take from a run's results.json."""
    whole = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    cells = [{name: cell.get(name) for name in _CELL} for cell in whole["cells"] if cell["scope"] != "task"]
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    differences = [  # each pair stands there twice
        {name: pair[name] for name in (*_DIFFERENCE, "corrected_low", "corrected_high")}
        for pair in whole["comparisons"]
        if pair["scope"] != "task" and arms.index(pair["base"]) < arms.index(pair["arm"])
    ]
    return {name: whole[name] for name in _RUN} | {"cells": cells, "differences": differences}


def of_plan(folder: Path) -> dict[str, Any]:
    """The plan, and what it and its rivals lose on the passages that decided nothing."""
    found = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))["found"]
    strata = {
        one["name"]: {part["stratum"]: round(part["divergence"], 4) for part in one["strata"]}
        for one in found["outcomes"]
    }
    return {name: found[name] for name in ("sentence", "recipe", "layers")} | {"strata": strata}


def example_table(run: dict[str, Any]) -> str:
    """Accuracies with sparse and with dense tails, in %."""
    arms = [arm for arm in dict.fromkeys(cell["arm"] for cell in run["cells"]) if not arm.endswith(_TAIL)]
    head = ["", "keys per query", *FAMILIES, *(f"{family}, dense tail" for family in FAMILIES)]
    rows = []
    for arm in arms:
        tail = [_share(run, arm + _TAIL, family) for family in FAMILIES]
        rows.append([_title(arm), _keys(run, arm), *(_share(run, arm, family) for family in FAMILIES), *tail])
    return _table(head, rows)


def plan_table(run: dict[str, Any]) -> str:
    """Accuracies in % with a decimal, and what each arm loses against full."""
    head = ["", "keys per query", *FAMILIES, "overall", "against full, points"]
    rows = []
    for arm in dict.fromkeys(cell["arm"] for cell in run["cells"]):
        shares = [_share(run, arm, family, 1) for family in (*FAMILIES, "overall")]
        cell = _cell(run, arm, "overall")
        lost = ""
        if cell["difference"] is not None:
            low, high = 100 * cell["corrected_low"], 100 * cell["corrected_high"]
            lost = f"{100 * cell['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append([_title(arm), _keys(run, arm), *shares, lost])
    return _table(head, rows)


def _title(arm: str) -> str:
    return "plan" if arm.startswith("plan-") else arm.replace("-w128", "").replace("-block", ", blocks of ")


def _cell(run: dict[str, Any], arm: str, name: str) -> dict[str, Any] | None:
    cells = run["cells"]
    return next((c for c in cells if (c["arm"], c["length"], c["name"]) == (arm, LENGTH, name)), None)


def _share(run: dict[str, Any], arm: str, name: str, digits: int = 0) -> str:
    cell = _cell(run, arm, name)
    return "" if cell is None else f"{100 * cell['accuracy']:.{digits}f}"


def _keys(run: dict[str, Any], arm: str) -> str:
    return next(f"{b['keys_per_query']:,.0f}" for b in run["budgets"] if (b["arm"], b["length"]) == (arm, LENGTH))


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def page(text: str, kept: dict[str, Any]) -> str:
    """The page with the present tables."""
    tables = {"example": example_table, "plan": plan_table}
    for name, table in ((name, tables[name](kept[name])) for name in tables if name in kept):
        begin, end = f"<!-- {name}: scripts/write_tiny.py -->\n", f"<!-- {name} ends -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}{table}{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", type=Path, metavar="RUN", help="run of configs/example.yaml to keep")
    parser.add_argument(
        "--plan", type=Path, nargs=2, metavar=("RUN", "PLAN"), help="run with a plan, and the plan's folder"
    )
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    if options.example:
        kept["example"] = of_run(options.example)
        shutil.copy(options.example / "report.html", EXAMPLE)
        for name in (f"accuracy-family-{LENGTH}.png", "documents.csv"):
            shutil.copy(options.example / "figures" / name, EXAMPLE / "figures")
    if options.plan:
        kept["plan"] = of_run(options.plan[0]) | of_plan(options.plan[1])
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")


if __name__ == "__main__":
    main()
