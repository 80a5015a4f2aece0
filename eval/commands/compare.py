"""`sa-eval compare`: two runs side by side, from their files alone."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sa_eval.commands import load
from sa_eval.commands.parser import Parser
from sa_eval.messages import one_line
from sa_eval.results.text_tables import aligned, columns
from sa_eval.settings.values import SettingsError

if TYPE_CHECKING:
    from sa_eval.records.types import Facts
    from sa_eval.results.comparison import Comparison, Row, ScoredDocument

HELP = "set two runs side by side: differences on the same documents, which were lost and won"
DETAILS = """\
examples
  sa-eval compare runs/before runs/after                     every arm that both have
  sa-eval compare runs/qwen3-8b runs/qwen3-8b --arm-a swa-w64 --arm-b sa-w64
  sa-eval compare runs/qwen3-8b runs/llama-8b --documents 10 --json difference.json

what it does
  Pairs the two runs' documents by hash (they have to be the same) and prints B minus A overall, per family and per
  task: interval, p-value, Holm's correction over everything printed, documents lost and won. Models, versions and
  machines may differ and are named. Runs that are alike in all of it are one line. Nothing is loaded or evaluated.
  Two folders of `sa-eval fidelity` (on the same passages) or of `sa-eval speed`: every arm and length that both have;
  what is identical is one line.

exit status
  0 done   2 the runs cannot be compared
"""
NAMED = 8  # differences of versions and the like that are printed; --json has all


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    if (namespace.arm_a is None) != (namespace.arm_b is None):
        raise SettingsError("--arm-a and --arm-b go together: one arm of each run")
    from sa_eval.records.result_folder import RUN, one_kind

    arms = (namespace.arm_a, namespace.arm_b) if namespace.arm_a else None
    kind = one_kind([namespace.a, namespace.b])
    if kind != RUN:
        text, found = _results(kind, namespace, arms)
    else:
        from sa_eval.records import opening
        from sa_eval.results import comparison

        one, other = (comparison.Side.of(*opening.open_run(path)) for path in (namespace.a, namespace.b))
        compared = comparison.compare(one, other, arms)
        text, found = render(compared, namespace.documents), compared.plain()
    print(text)
    if namespace.json:
        try:
            Path(namespace.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json {namespace.json} cannot be written: {one_line(error)}") from error
    return 0


def _results(kind: str, namespace: argparse.Namespace, arms: tuple[str, str] | None) -> tuple[str, Facts]:
    """Two results of fidelity or speed, as text and as plain values."""
    if namespace.documents:
        raise SettingsError(f"--documents names documents of runs; results of `sa-eval {kind}` have none")
    text, rows, different = load(kind).compare((namespace.a, namespace.b), arms)
    head = "\n".join([f"A  {namespace.a}", f"B  {namespace.b}", *_different(different, columns())])
    return f"{head}\n\n{text}", {"a": namespace.a, "b": namespace.b, "different": different, "rows": rows}


def build_parser() -> Parser:
    parser = Parser("sa-eval compare", "Set two runs side by side.", DETAILS)
    parser.add_argument("a", metavar="A", help="run directory")
    parser.add_argument("b", metavar="B", help="run directory; differences are B minus A")
    parser.add_argument("--arm-a", metavar="NAME", help="an arm of A (default: every arm that both runs have)")
    parser.add_argument("--arm-b", metavar="NAME", help="the arm of B to set against it")
    parser.add_argument("--documents", metavar="N", type=int, default=0, help="name the first N lost and won documents")
    parser.add_argument("--json", metavar="FILE", help="write everything to a file")
    return parser


def render(found: Comparison, documents: int = 0) -> str:
    """Plain text: what differs about the runs, then a block per pair of arms."""
    from sa_eval.results import table

    if found.identical:
        arms, answers = len(found.documents), sum(found.rows_of(pair)[0].documents for pair in found.documents)
        return (
            f"{found.b} is as {found.a}: {arms} arms, {answers:,} answers scored alike; same versions, code, machine."
        )
    width = columns()
    blocks = ["\n".join([f"A  {found.a}", f"B  {found.b}", *_different(found.different, width)])]
    for pair in found.documents:
        rows = found.rows_of(pair)
        if rows:
            first, second = rows[0].arm_a, rows[0].arm_b
            title = first if first == second else f"A: {first}, B: {second}"
            title += "".join(f" ({text})" for text in found.arms.get(pair, ()))
            blocks.append(_block(title, rows, found.documents[pair], documents))
    blocks.append(
        textwrap.fill(
            "Differences are B minus A in points on documents that both answered, with their intervals at the level of "
            f"Holm's correction over {found.family.tests} tests; {table.MARK} significant: p < 0.05 after it. det.: "
            "detectable with power 0.8.",
            width,
        )
    )
    return "\n\n".join(blocks)


def _block(title: str, rows: list[Row], differing: list[ScoredDocument], documents: int) -> str:
    if not differing:
        return f"{title}: {rows[0].documents:,} documents, all scored alike"
    return "\n".join([title, aligned([_HEADER, *map(_row, rows)]), *_named(differing, documents)])


_HEADER = ["", "documents", "A", "B", "B - A", "p", "p Holm", "lost", "won", "det."]


def _row(row: Row) -> list[str]:
    from sa_eval.results import table

    found = row.difference
    length = "" if row.length == "all" else f" at {row.length}"
    return [
        f"{'  ' * ('overall', 'family', 'task').index(row.scope)}{row.name}{length}",
        str(row.documents),
        f"{100 * row.accuracy_a:.1f}",
        f"{100 * row.accuracy_b:.1f}",
        table.difference(found),
        _p(found.p_value),
        _p(found.p_adjusted),
        str(found.lost),
        str(found.won),
        "" if found.detectable is None else f"{100 * found.detectable:.1f}",
    ]


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _different(texts: list[str], width: int) -> list[str]:
    if not texts:
        return ["   alike in model, versions, code and machine"]
    hidden = len(texts) - NAMED
    lines = [f"differ in {text}" for text in texts[:NAMED]] + ([f"... and {hidden} more"] if hidden > 0 else [])
    return [textwrap.fill(line, width, initial_indent="   ", subsequent_indent="     ") for line in lines]


def _named(documents: list[ScoredDocument], most: int) -> list[str]:
    from sa_eval.results import comparison

    if most <= 0:
        return []
    lines = []
    for word, rows in (("lost", comparison.lost(documents)), ("won", comparison.won(documents))):
        lines += [
            f"  {word} {row.task} #{row.index} ({row.score_a:.2f} to {row.score_b:.2f}) {row.hash}"
            for row in rows[:most]
        ]
    return lines
