"""Owns the end of the page: what failed, what was run, with what, where, and how to run it again."""

from __future__ import annotations

import json
from typing import Any

from sa_eval.page.parts import Folded, Pre, Section, Table, amount, rows_of, words

MOST = 200  # failures on the page
LONGEST_ERROR = 1_000

Results = dict[str, Any]


def failures(results: Results) -> Section:
    if not results["failures"]:
        return Section("failures", "Failures", "None.", ())
    hidden = len(results["failures"]) - MOST
    more = f" The first {MOST} are here; failures.jsonl has the other {hidden:,}." if hidden > 0 else ""
    intro = f"A failed document counts as wrong; it is never dropped.{more}"
    return Section("failures", "Failures", intro, (_failed(results),))


def setup(results: Results) -> Section:
    described = "\n".join(
        f"{run['arm']} seed {run['seed']} ({run['seconds']:.1f} s): {run['describe']}" for run in results["arm_runs"]
    )
    intro = (
        "Save the settings as a YAML file and run sa-eval --config FILE to repeat this run. Hashes of all documents "
        "are in results.json; every arm was checked against them. figures/ holds this page's figures as PNG and SVG, "
        "and their data as CSV."
    )
    parts = (
        Pre("Effective settings", _settings(results["settings"])),
        *_merged(results),
        _facts("Model", results["model"]),
        _facts("Versions", results["versions"]),
        _facts("Hardware", results["hardware"]),
        *([_left_out(results)] if results["left_out"] else []),
        _sessions(results),
        Folded("What ran in each arm", (Pre("Arms as the patch describes them", described),)),
    )
    return Section("setup", "Set-up", intro, parts)


def _settings(found: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in found.items() if key != "out")


def _merged(results: Results) -> list[Folded]:
    """The settings of every run that was put into this one; the first one's stand above."""
    runs = results["merged"]["runs"] if "merged" in results else ()
    parts = tuple(Pre(f"{run['directory']}, {run['started']}", _settings(run["settings"])) for run in runs)
    return [Folded(f"Put together from {len(runs)} runs: the settings of each", parts)] if runs else []


def _failed(results: Results) -> Table:
    rows = [
        [words(row["arm"] or "all"), words(row["task"] or "all"), words(row["error"][:LONGEST_ERROR])]
        for row in results["failures"][:MOST]
    ]
    return Table("What failed, and why", ("arm", "text:task", "text:error"), rows_of(rows))


def _left_out(results: Results) -> Table:
    rows = [[words(row["name"]), words(row["reason"])] for row in results["left_out"]]
    return Table("Combinations of the settings that are no arm, and why", ("arm", "text:reason"), rows_of(rows))


def _sessions(results: Results) -> Table:
    """Every start of the run, with where it ran."""
    rows = [
        [words(row["started"]), amount(row["processes"], ""), words(_plain(row["hardware"]))]
        for row in results["sessions"]
    ]
    columns = ("started", "processes", "text:hardware")
    return Table("Sessions: the first start, then every resume", columns, rows_of(rows), sortable=False)


def _facts(caption: str, found: dict[str, Any]) -> Table:
    """Names and values, nested ones spelled out."""
    rows = [[words(name), words(_plain(value))] for name, value in found.items()]
    return Table(caption, ("name", "text:value"), rows_of(rows), sortable=False)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
