"""Two runs side by side as text: what differs about them, then a block per pair of arms."""

from __future__ import annotations

import textwrap

from sa_eval.results import comparison, table
from sa_eval.results.comparison import Comparison, Row, ScoredDocument
from sa_eval.results.text_tables import aligned, columns, sides


def render(found: Comparison, documents: int = 0) -> str:
    """Plain text: what differs about the runs, then a block per pair of arms."""
    if found.identical:
        arms, answers = len(found.documents), sum(found.rows_of(pair)[0].documents for pair in found.documents)
        return (
            f"{found.b} is as {found.a}: {arms} arms, {answers:,} answers scored alike; same versions, code, machine."
        )
    width = columns()
    blocks = [sides(found.a, found.b, found.different)]
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


def _named(documents: list[ScoredDocument], most: int) -> list[str]:
    if most <= 0:
        return []
    lines = []
    for word, rows in (("lost", comparison.lost(documents)), ("won", comparison.won(documents))):
        lines += [
            f"  {word} {row.task} #{row.index} ({row.score_a:.2f} to {row.score_b:.2f}) {row.hash}"
            for row in rows[:most]
        ]
    return lines
