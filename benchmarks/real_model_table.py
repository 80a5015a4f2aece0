"""The tables of real_model.py as markdown, the largest loss first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
KINDS = ("technical", "fiction")
TASKS = ("lambada", "piqa")
FULL = "full attention"


def render(results: dict[str, Any]) -> str:
    about = results["about"]
    tables = []
    for window in about["windows"]["fidelity"]:
        rows = [row for row in results["fidelity"] if row["window"] == window]
        tables.append(_fidelity(window, rows, about))
    for task in TASKS:
        if task in results:
            tables += [_task(task, window, results[task]) for window in about["windows"][task]]
    return "\n".join(tables)


def _fidelity(window: int, rows: Sequence[Row], about: Row) -> str:
    """One budget: a line per variant, both kinds of text side by side."""
    found = {kind: {row["variant"]: row for row in rows if row["kind"] == kind} for kind in KINDS}
    names = sorted({row["variant"] for row in rows}, key=lambda name: -_mean_kl(found, name))
    head = ["variant", *(f"KL {kind}" for kind in KINDS), *(f"agreement {kind}" for kind in KINDS), "keys per query"]
    lines = [
        [
            name,
            *(_kl(found[kind].get(name)) for kind in KINDS),
            *(_agreement(found[kind].get(name)) for kind in KINDS),
            _keys([found[kind][name] for kind in KINDS if name in found[kind]]),
        ]
        for name in names
    ]
    full = (about["length"] + 1) / 2
    lines.append([FULL, *["0"] * len(KINDS), *["100 %"] * len(KINDS), f"{full:.1f} (100 %)"])
    return f"**{window} keys per query of {about['length']:,} tokens**\n\n{_table(head, lines)}"


def _mean_kl(found: dict[str, dict[str, Row]], name: str) -> float:
    values = [found[kind][name]["kl"] for kind in KINDS if name in found[kind]]
    return sum(values) / len(values)


def _kl(row: Row | None) -> str:
    if row is None:
        return "not measured"
    interval = row["intervals"]["kl"]
    return f"{row['kl']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _agreement(row: Row | None) -> str:
    return "not measured" if row is None else f"{100 * row['agreement']:.1f} %"


def _keys(rows: Sequence[Row]) -> str:
    keys, density = (sum(row[name] for row in rows) / len(rows) for name in ("keys_per_query", "density"))
    router = f" + {rows[0]['router']:.1f}" if rows[0].get("router") else ""
    return f"{keys:.1f}{router} ({100 * density:.0f} %)"


def _task(task: str, window: int, result: Row) -> str:
    """One task at one budget: a line per variant."""
    rows = sorted((row for row in result["arms"] if row["window"] == window), key=lambda row: row["accuracy"])
    lines = [[row["variant"], _accuracy(row), _keys([row])] for row in rows]
    lines.append([FULL, _accuracy(result["full"]), "100 %"])
    what = f"{result['full']['documents']} documents of {result['tokens']['mean']:.0f} tokens on average"
    return f"**{task.upper()}, window {window}, {what}**\n\n{_table(['variant', 'accuracy', 'keys per query'], lines)}"


def _accuracy(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
