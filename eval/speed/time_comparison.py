"""Two speed results side by side: how many times as fast B is as A, arm by arm and length by length. Files only."""

from __future__ import annotations

from dataclasses import dataclass

from sa_eval.records.result_folder import check_arms
from sa_eval.records.types import plain
from sa_eval.results.text_tables import aligned, identical
from sa_eval.settings.values import SettingsError
from sa_eval.speed.beside_full import LEAST_REPEATS, quotient, told_apart
from sa_eval.speed.types import Row, SpeedResult

FIXED = ("batch_size", "cpu_time")  # settings without which two times are of two things


@dataclass(frozen=True)
class Pair:
    """An arm of each result at one length; above 1 B is faster. `apart`: the ranges of the repeats lie apart."""

    arm_a: str
    arm_b: str
    length: int
    prefill_ms_a: float
    prefill_ms_b: float
    times_as_fast: float
    apart: bool
    decode_times_as_fast: float | None
    decode_apart: bool
    peak_gib_a: float | None
    peak_gib_b: float | None
    identical: bool

    @property
    def name(self) -> str:
        return f"{self.arm_a if self.arm_a == self.arm_b else f'{self.arm_a} / {self.arm_b}'} at {self.length:,}"


def compare(one: SpeedResult, other: SpeedResult, arms: tuple[str, str] | None = None) -> list[Pair]:
    """Every arm and length that both have.

    Raises:
        SettingsError: what was timed is not the same, an arm is unknown, or nothing is left.
    """
    for name in FIXED:
        if one.settings[name] != other.settings[name]:
            raise SettingsError(
                f"{name} is {one.settings[name]} in A and {other.settings[name]} in B: these times are of two things"
            )
    check_arms(arms, [arm.name for arm in one.arms], [arm.name for arm in other.arms])
    rows = {(row.arm, row.tokens): row for row in other.rows}
    pairs = []
    for row in one.rows:
        partner = rows.get((arms[1] if arms else row.arm, row.tokens))
        if partner is not None and (arms is None or row.arm == arms[0]):
            pairs.append(_pair(row, partner))
    if not pairs:
        raise SettingsError("the two results share no arm at any length: name one of each with --arm-a and --arm-b")
    return pairs


def _pair(row: Row, partner: Row) -> Pair:
    return Pair(
        arm_a=row.arm,
        arm_b=partner.arm,
        length=row.tokens,
        prefill_ms_a=row.prefill_ms,
        prefill_ms_b=partner.prefill_ms,
        times_as_fast=row.prefill_ms / partner.prefill_ms,
        apart=told_apart(row.repeats_ms, partner.repeats_ms),
        decode_times_as_fast=quotient(partner.decode_tokens_per_s, row.decode_tokens_per_s),
        decode_apart=told_apart(row.decode_repeats, partner.decode_repeats),
        peak_gib_a=row.peak_gib,
        peak_gib_b=partner.peak_gib,
        identical={**plain(row), "arm": ""} == {**plain(partner), "arm": ""},
    )


def render(pairs: list[Pair]) -> str:
    """What differs in a table, what is identical in one line."""
    blocks, rest = identical(pairs)
    if rest:
        header = ["", "ms of A", "ms of B", "B times as fast", "tokens/s: B times as fast", "peak GiB of A", "of B"]
        blocks.append(aligned([header, *map(_row, rest)]))
        blocks.append(
            "Medians to the first token; above 1 B is faster. ~: the ranges of the repeats overlap, or there are fewer "
            f"than\n{LEAST_REPEATS} of them, so the two cannot be told apart."
        )
    return "\n\n".join(blocks)


def _row(pair: Pair) -> list[str]:
    decode = pair.decode_times_as_fast
    return [
        pair.name,
        f"{pair.prefill_ms_a:,.1f}",
        f"{pair.prefill_ms_b:,.1f}",
        f"{'' if pair.apart else '~'}{pair.times_as_fast:.2f}",
        "" if decode is None else f"{'' if pair.decode_apart else '~'}{decode:.2f}",
        "" if pair.peak_gib_a is None else f"{pair.peak_gib_a:.3g}",
        "" if pair.peak_gib_b is None else f"{pair.peak_gib_b:.3g}",
    ]
