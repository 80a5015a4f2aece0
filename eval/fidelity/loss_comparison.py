"""Two fidelity results side by side: B minus A of every arm at every length, on the same passages. Reads files only."""

from __future__ import annotations

from dataclasses import dataclass

from sa_eval.fidelity.loss_headline import LEAST_PASSAGES, difference, number
from sa_eval.fidelity.types import Cell, Fidelity, Interval, PassageRow
from sa_eval.records.result_folder import check_arms
from sa_eval.records.types import plain
from sa_eval.results.text_tables import aligned, identical
from sa_eval.settings.values import SettingsError


@dataclass(frozen=True)
class Pair:
    """An arm of each result at one length; `interval` is that of the difference in KL, None with few passages."""

    arm_a: str
    arm_b: str
    length: int
    kl_a: float
    kl_b: float
    difference: float
    interval: Interval | None
    agreement: float
    keys_a: float
    keys_b: float
    identical: bool

    @property
    def name(self) -> str:
        return f"{self.arm_a if self.arm_a == self.arm_b else f'{self.arm_a} / {self.arm_b}'} at {self.length:,}"


def compare(one: Fidelity, other: Fidelity, arms: tuple[str, str] | None = None) -> list[Pair]:
    """Every arm and length that both have.

    Raises:
        SettingsError: an arm is unknown, passages differ, or nothing is left.
    """
    cells = {(cell.arm, cell.length): cell for cell in other.cells}
    check_arms(arms, [arm.name for arm in one.arms], [arm.name for arm in other.arms])
    pairs = []
    for cell in one.cells:
        partner = cells.get((arms[1] if arms else cell.arm, cell.length))
        if partner is None or (arms and cell.arm != arms[0]):
            continue
        _check_passages(one, other, cell, partner)
        pairs.append(_pair(cell, partner))
    if not pairs:
        raise SettingsError("the two results share no arm at any length: name one of each with --arm-a and --arm-b")
    return pairs


def _check_passages(one: Fidelity, other: Fidelity, cell: Cell, partner: Cell) -> None:
    """A difference means something on the same passages only."""
    texts = [{row.name: row.sha256 for row in result.texts if row.length == cell.length} for result in (one, other)]
    if texts[0] != texts[1]:
        odd = sorted(set(texts[0].items()) ^ set(texts[1].items()))[0][0]
        raise SettingsError(
            f"the texts differ at {cell.length:,} tokens ({odd}): only the same passages can be compared"
        )
    if [_identity(row) for row in cell.by_passage] != [_identity(row) for row in partner.by_passage]:
        raise SettingsError(
            f"the passages differ at {cell.length:,} tokens: read as many of each text, with the same tokenizer"
        )


def _identity(row: PassageRow) -> tuple[str, int, int, int]:
    return row.text, row.index, row.tokens, row.predictions


def _pair(cell: Cell, partner: Cell) -> Pair:
    few = cell.passages < LEAST_PASSAGES
    return Pair(
        arm_a=cell.arm,
        arm_b=partner.arm,
        length=cell.length,
        kl_a=cell.overall.kl,
        kl_b=partner.overall.kl,
        difference=partner.overall.kl - cell.overall.kl,
        interval=None if few else difference(partner, cell),
        agreement=partner.overall.agreement - cell.overall.agreement,
        keys_a=cell.budget.keys_per_query,
        keys_b=partner.budget.keys_per_query,
        identical={**plain(cell), "arm": ""} == {**plain(partner), "arm": ""},
    )


def render(pairs: list[Pair]) -> str:
    """What differs in a table, what is identical in one line."""
    blocks, rest = identical(pairs)
    if rest:
        rows = [["", "KL of A", "KL of B", "B - A", "same top-1", "keys/q A", "keys/q B"], *map(_row, rest)]
        blocks.append(aligned(rows))
        blocks.append(
            "KL(full || arm) in nats; B - A below 0: B is closer to its full model. In brackets the 95\u00a0%\n"
            f"interval over passages, drawn in pairs ({LEAST_PASSAGES} passages at least). Same top-1: B - A in points."
        )
    return "\n\n".join(blocks)


def _row(pair: Pair) -> list[str]:
    edges = "" if pair.interval is None else f" [{pair.interval[0]:+.3g}, {pair.interval[1]:+.3g}]"
    return [
        pair.name,
        number(pair.kl_a),
        number(pair.kl_b),
        f"{pair.difference:+.3g}{edges}",
        f"{100 * pair.agreement:+.1f}",
        f"{pair.keys_a:,.0f}",
        f"{pair.keys_b:,.0f}",
    ]
