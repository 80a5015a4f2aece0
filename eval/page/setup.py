"""The end of the page: what failed, what was run, with what, where, and how to run it again."""

from __future__ import annotations

import json

from sa_eval.page.content import Block, Column, Folded, Pre, Section, Table, amount, columns, rows_of, text, words
from sa_eval.records.types import Facts, Json
from sa_eval.results.types import Results

MOST = 200  # failures on the page
LONGEST_ERROR = 1_000


def failures(results: Results) -> Section:
    if not results.failures:
        return Section("failures", "Failures", "None.", ())
    hidden = len(results.failures) - MOST
    more = f" The first {MOST} are here; failures.jsonl has the other {hidden:,}." if hidden > 0 else ""
    intro = f"A failed document counts as wrong; it is never dropped.{more}"
    return Section("failures", "Failures", intro, (_failed(results),))


def setup(results: Results) -> Section:
    described = "\n".join(
        f"{run.arm} seed {run.seed} ({run.seconds:.1f} s): {run.describe}" for run in results.arm_runs
    )
    intro = (
        "Save the settings as a YAML file and run sa-eval --config FILE to repeat this run. Hashes of all documents "
        "are in results.json; every arm was checked against them. figures/ holds this page's figures as PNG and SVG, "
        "and their data as CSV."
    )
    blocks: tuple[Block, ...] = (
        Pre("Effective settings", _settings(results.settings)),
        *_merged(results),
        _facts("Model", results.model),
        _facts("Versions", results.versions),
        _facts("Hardware", results.hardware),
        *([_left_out(results)] if results.left_out else []),
        _sessions(results),
        Folded("What ran in each arm", (Pre("Arms as the patch describes them", described),)),
    )
    return Section("setup", "Set-up", intro, blocks)


def _settings(found: Facts) -> str:
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in found.items() if key != "out")


def _merged(results: Results) -> list[Folded]:
    """The settings of every run that was put into this one; the first one's stand above."""
    runs = results.merged.runs if results.merged else []
    each = tuple(Pre(f"{run['directory']}, {run['started']}", _settings(run["settings"])) for run in runs)
    return [Folded(f"Put together from {len(runs)} runs: the settings of each", each)] if runs else []


def _failed(results: Results) -> Table:
    rows = [
        [words(row.arm or "all"), words(row.task or "all"), words(row.error[:LONGEST_ERROR])]
        for row in results.failures[:MOST]
    ]
    return Table(
        "What failed, and why", columns("arm", Column("task", text=True, extra=True), text("error")), rows_of(rows)
    )


def _left_out(results: Results) -> Table:
    rows = [[words(row.name), words(row.reason or "")] for row in results.left_out]
    return Table("Combinations of the settings that are no arm, and why", columns("arm", text("reason")), rows_of(rows))


def _sessions(results: Results) -> Table:
    """Every start of the run, with where it ran."""
    rows = [[words(row.started), amount(row.processes, ""), words(_plain(row.hardware))] for row in results.sessions]
    heads = columns("started", "processes", text("hardware"))
    return Table("Sessions: the first start, then every resume", heads, rows_of(rows), sortable=False)


def _facts(caption: str, found: Facts) -> Table:
    """Names and values, nested ones spelled out."""
    rows = [[words(name), words(_plain(value))] for name, value in found.items()]
    return Table(caption, columns("name", text("value")), rows_of(rows), sortable=False)


def _plain(value: Json) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
