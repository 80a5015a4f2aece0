"""The page of a speed result: times as fast as full, then times, rates and memory over the prompt's length."""

from __future__ import annotations

from collections.abc import Sequence

from sa_eval.page import result_page
from sa_eval.page.content import (
    Field,
    Folded,
    Heading,
    Section,
    Table,
    Text,
    amount,
    columns,
    extra,
    rows_of,
    text,
    words,
)
from sa_eval.page.drawing import looks
from sa_eval.page.result_panels import Dots, Lines, Series, styles
from sa_eval.page.result_panels import Row as DotRow
from sa_eval.page.result_plots import Picture
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import FULL
from sa_eval.speed.beside_full import FLOOR, LEAST_REPEATS, told_apart
from sa_eval.speed.time_headline import sentences
from sa_eval.speed.time_table import ALL, NOTES, RAN, gates, notes, title
from sa_eval.speed.types import Row, SpeedResult

PANELS = (
    ("prefill_ms", "repeats_ms", "ms to the first token", True),
    ("decode_tokens_per_s", "decode_repeats", "tokens per second after it", False),
    ("peak_gib", "", "peak GiB beyond the weights", True),
)


def write(directory: RunDirectory, result: SpeedResult) -> None:
    """report.html and figures/."""
    pictures = [_against_full(result), _over_length(result)] if result.rows else []
    parts = [part for length in result.lengths if result.at(length) for part in _length(result, length)]
    sections = [
        Section("times", "Beside full attention", _intro(), (*(picture.charts() for picture in pictures[:1]), *parts)),
        *([Section("lengths", "Over the prompt's length", LENGTHS, (pictures[1].charts(),))] if pictures else []),
        result_page.setup(result, "sa-eval speed", (Text(f"Protocol: {result.protocol}. Clock: {result.clock}."),)),
    ]
    page = result_page.Page(
        question=f"What time does sparse attention save {result.model['name']}?",
        answer=sentences(result),
        gates=gates(result),
        notes=[*notes(result.rows), *NOTES[1:], ALL if result.all_kernels else RAN, *result.notes],
        facts={**result_page.about(result), "Measured as": title(result)},
        sections=sections,
        pictures=pictures,
    )
    result_page.write(directory, page)


LENGTHS = "Medians, with a thin bar from the fastest to the slowest repeat. Dashed grey: no attention at all, a floor."


def _intro() -> str:
    return (
        "Times as fast as full: full's median time to the first token over the arm's, above 1 is faster; tokens per "
        "second likewise. Thin lines: from the slowest repeat to the fastest. \u25b2 and \u25bc: the ranges of both "
        f"lie apart, from {LEAST_REPEATS} repeats on."
    )


def _against_full(result: SpeedResult) -> Picture:
    look, panels = styles(result.arms), []
    for length in result.lengths:
        rows = result.at(length)
        if FULL not in rows:
            continue
        full = rows[FULL].prefill_ms
        ordered = sorted((row for name, row in rows.items() if name != FULL), key=lambda row: row.times_as_fast or 0.0)
        dots = tuple(
            DotRow(
                row.arm,
                look[row.arm],
                row.times_as_fast or 0.0,
                full / max(row.repeats_ms),
                full / min(row.repeats_ms),
            )
            for row in ordered
        )
        panels.append(Dots(f"{length:,} tokens", "times as fast as full to the first token", dots, 1.0, log=True))
    return Picture("times_as_fast", f"Times as fast as full: {title(result)}", tuple(panels), _places(result))


def _over_length(result: SpeedResult) -> Picture:
    look, panels = styles(result.arms), []
    ticks = tuple((float(length), f"{length:,}") for length in sorted({row.tokens for row in result.rows}))
    for name, repeats, heading, log in PANELS:
        series = []
        for arm in result.arms:
            rows = sorted((row for row in result.rows if row.arm == arm.name), key=lambda row: row.tokens)
            points = tuple(_point(row, name, repeats) for row in rows if getattr(row, name))
            series += [Series(arm.name, look[arm.name], points)] if points else []
        if series:
            panels.append(Lines(heading, "prompt tokens", tuple(series), ticks, x_log=True, y_log=log))
    return Picture("speed", title(result), tuple(panels), _places(result))


def _point(row: Row, name: str, repeats: str) -> tuple[float, float, float, float]:
    value = getattr(row, name)
    found = getattr(row, repeats) if repeats else [value]
    return float(row.tokens), value, min(found), max(found)


def _length(result: SpeedResult, length: int) -> Sequence[Heading | Table | Folded]:
    rows = result.at(length)
    full = rows.get(FULL)
    found = [_fields(rows[arm.name], full) for arm in result.arms if arm.name in rows]
    found += [
        [words(failure.arm), Field("failed", failure.error, style="absent")] + [Field("")] * 7
        for failure in result.failures
        if failure.length == length
    ]
    names = ("first call, ms", "over none", "peak, GiB", "tokens per s", "tokens: times as fast")
    caption = f"Time to the first token, memory and rate at {length:,} tokens"
    heads = columns("arm", "times as fast", "first token, ms", *map(extra, names), text("kernel"))
    parts = Heading(f"{length:,} tokens"), Table(caption, heads, rows_of(found))
    return (*parts, *([Folded("Every kernel", (_every_kernel(result, length),))] if result.all_kernels else []))


def _every_kernel(result: SpeedResult, length: int) -> Table:
    """What each kernel took for each arm, or why it did not run."""
    rows = [
        [
            words(row.arm),
            words(one.kernel),
            amount(one.prefill_ms, ",.1f", _span(one.repeats_ms)),
            words(one.error or ""),
        ]
        for row in result.at(length).values()
        for one in row.by_kernel
    ]
    heads = columns("arm", text("kernel"), "first token, ms", text("why it did not run"))
    return Table(f"Every kernel at {length:,} tokens", heads, rows_of(rows))


def _span(repeats: Sequence[float]) -> str:
    return f"{min(repeats):,.1f}\u2013{max(repeats):,.1f}" if repeats else ""


def _kernels(row: Row) -> Field:
    """What ran, over the best and the worst kernel where all were timed."""
    ranked = [("best", row.best_kernel), ("worst", row.worst_kernel)]
    times = [f"{word} {one.kernel} {one.prefill_ms:,.1f}\u00a0ms" for word, one in ranked if one]
    return Field("+".join(row.kernels), ", ".join(times))


def _fields(row: Row, full: Row | None) -> list[Field]:
    other = row.arm not in (FULL, FLOOR) and full is not None
    first = _style(row.times_as_fast, other and full is not None and told_apart(row.repeats_ms, full.repeats_ms))
    later = _style(
        row.decode_times_as_fast, other and full is not None and told_apart(row.decode_repeats, full.decode_repeats)
    )
    return [
        words(row.arm),
        _styled(amount(row.times_as_fast, ".2f"), first),
        amount(row.prefill_ms, ",.1f", _span(row.repeats_ms)),
        amount(row.first_ms[0] if row.first_ms else None, ",.1f"),
        amount(row.over_floor, "+.0%"),
        amount(row.peak_gib, ",.3g"),
        amount(row.decode_tokens_per_s, ",.1f"),
        _styled(amount(row.decode_times_as_fast, ".2f"), later),
        _kernels(row),
    ]


def _style(times: float | None, apart: bool) -> str:
    return "" if times is None or not apart else "better" if times > 1 else "worse"


def _styled(cell: Field, style: str) -> Field:
    return Field(cell.text, cell.small, cell.value, style or cell.style)


def _places(result: SpeedResult) -> dict[str, int]:
    return looks(arm.label for arm in result.arms if arm.name != FLOOR)
