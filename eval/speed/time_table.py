"""What `sa-eval speed` prints, and speed.csv, from the result only. No torch."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence

from sa_eval.records.types import FULL, plain
from sa_eval.results.result_gates import Gate, complete, lines
from sa_eval.results.text_tables import DASH, aligned, columns
from sa_eval.speed.beside_full import FLOOR, LEAST_REPEATS, apart, told_apart
from sa_eval.speed.time_headline import sentences
from sa_eval.speed.types import Row, SpeedResult

SENTENCES = 5  # the page has all of them
WIDE = 0.25  # repeats that scatter by more than this share of their median
COLUMNS = (
    *("arm", "label", "mode", "window", "decode", "length", "prompt_tokens", "batch_size"),
    *("prefill_ms", "spread", "times_as_fast", "over_floor", "first_ms", "peak_gib"),
    *("decode_tokens_per_s", "decode_times_as_fast", "kernels"),
    *("best_kernel", "best_kernel_ms", "worst_kernel", "worst_kernel_ms", "error"),
)
HEADER = (
    *("times as fast", "first token ms", "spread", "over none", "peak GiB"),
    *("tokens/s", "times as fast"),
)
EVERY_KERNEL = ("best kernel, ms", "worst kernel, ms")
NOTES = (
    "first token: the model's own generate, from the call to the first token on the host; medians; each timed call "
    "follows an untimed one of the same arm and length. times as fast: as full, above 1 is faster. over none: time "
    "beyond the floor. peak: beyond the weights, cache included. tokens/s: after the first token, all rows.",
    "none: the same model with its attention removed (each token passes on its own value). A floor, not a method.",
)
RAN = "kernel: the one that ran. --kernels all times every kernel that can run here, for the best and the worst one."
ALL = (
    "kernel: the one that ran; best and worst: of all that can run the arm on this device (the reference aside), timed "
    "in the same turns, ms to the first token."
)


def table(result: SpeedResult) -> str:
    """Text for a terminal: what it says, what it rests on, a block per length, what is slower, what failed."""
    said, width = sentences(result), columns()
    hidden = len(said) - SENTENCES
    blocks = ["\n".join(textwrap.fill(sentence, width, break_on_hyphens=False) for sentence in said[:SENTENCES])]
    blocks += [f"... and {hidden} more arms: the report has them"] if hidden > 0 else []
    blocks += [lines(gates(result), width), title(result), *(_block(result, length) for length in result.lengths)]
    remarks = [*notes(result.rows), *NOTES, ALL if result.all_kernels else RAN, *result.notes]
    blocks.append(
        "\n".join(
            textwrap.fill(note, width, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False)
            for note in remarks
        )
    )
    return "\n\n".join(block for block in blocks if block)


def gates(result: SpeedResult) -> list[Gate]:
    """What the numbers rest on."""
    return [complete(result, failed(result)), _repeats(result), _scatter(result)]


def failed(result: SpeedResult) -> list[str]:
    return [f"{row.arm} at {row.length:,}: {row.error}" for row in result.failures]


def _repeats(result: SpeedResult) -> Gate:
    least = min((len(row.repeats_ms) for row in result.rows), default=0)
    if least < LEAST_REPEATS:
        text = f"Fewer than {LEAST_REPEATS} repeats cannot tell two arms apart: ask for more (--repeats)."
        return Gate("repeats", "warning", text)
    return Gate("repeats", "passed", f"Every time is the median of {least} repeats or more.")


def _scatter(result: SpeedResult) -> Gate:
    wide = [f"{row.arm} at {row.tokens:,}: {100 * row.spread:.0f}\u00a0%" for row in result.rows if row.spread > WIDE]
    if wide:
        text = f"Repeats scatter by more than {100 * WIDE:.0f}\u00a0%: something else kept the machine busy."
        return Gate("spread", "warning", text, wide)
    return Gate("spread", "passed", f"All repeats lie within {100 * WIDE:.0f}\u00a0% of their median.")


def notes(rows: Sequence[Row]) -> list[str]:
    """What the rows show that nobody should have to search for."""
    return [*_slower(rows), *_late(rows), *_faster_kernels(rows)]


def to_csv(result: SpeedResult) -> str:
    """One line per arm and length, failed ones with their reason."""
    arms = {arm.name: {**plain(arm), "decode": arm.options.get("decode")} for arm in result.arms}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in [*result.rows, *result.failures]:
        first = {"first_ms": row.first_ms[0]} if isinstance(row, Row) and row.first_ms else {}
        ran = {"kernels": "+".join(row.kernels), **_best_and_worst(row)} if isinstance(row, Row) else {}
        writer.writerow({**arms[row.arm], "batch_size": result.settings["batch_size"], **plain(row), **first, **ran})
    return stream.getvalue()


def title(result: SpeedResult) -> str:
    model, rows = result.model, result.settings["batch_size"]
    weights = " (random weights)" if model["weights"] == "random" else ""
    return f"{model['name']}{weights}, {model['dtype']}, {rows} row{'s' if rows > 1 else ''}, {result.machine}"


def _best_and_worst(row: Row) -> dict[str, str | float | None]:
    ranked = {"best_kernel": row.best_kernel, "worst_kernel": row.worst_kernel}
    found: dict[str, str | float | None] = {}
    for name, one in ranked.items():
        found |= {name: one.kernel, f"{name}_ms": one.prefill_ms} if one else {}
    return found


def _block(result: SpeedResult, length: int) -> str:
    errors = {row.arm for row in result.failures if row.length == length}
    rows = result.at(length)
    every = result.all_kernels
    found: list[tuple[str, ...]] = [("", "kernel", *(EVERY_KERNEL if every else ()), *HEADER)]
    for arm in result.arms:
        if arm.name in rows:
            found.append((arm.name, *_kernels(rows[arm.name], every), *_fields(rows[arm.name])))
        elif arm.name in errors:
            found.append((arm.name, *[DASH] * (len(found[0]) - 2), "failed"))
    return f"{length:,} tokens\n{aligned(found)}"


def _kernels(row: Row, every: bool) -> tuple[str, ...]:
    """What ran, and the best and the worst kernel with their times."""
    ranked = (row.best_kernel, row.worst_kernel) if every else ()
    return (
        "+".join(row.kernels) or DASH,
        *(f"{one.kernel} {_shown(one.prefill_ms, ',.1f')}" if one else DASH for one in ranked),
    )


def _fields(row: Row) -> tuple[str, ...]:
    return (
        _shown(row.times_as_fast, ".2f"),
        f"{row.prefill_ms:,.1f}",
        f"{row.spread:.0%}",
        _shown(row.over_floor, "+.0%"),
        _shown(row.peak_gib, ".3g"),
        _shown(row.decode_tokens_per_s, ",.1f"),
        _shown(row.decode_times_as_fast, ".2f"),
    )


def _shown(value: float | None, form: str) -> str:
    return DASH if value is None else f"{value:{form}}"


def _slower(rows: Sequence[Row]) -> list[str]:
    """What is slower than full, to its first token and after it; `~` where the repeats of both overlap."""
    full = {row.length: row for row in rows if row.arm == FULL}
    first: dict[str, list[str]] = {}
    later: dict[str, list[str]] = {}
    for row in rows:
        base = full.get(row.length)
        if base is None or row.arm in (FULL, FLOOR):
            continue
        if row.times_as_fast is not None and row.times_as_fast < 1:
            unsure = "" if apart(row.repeats_ms, base.repeats_ms) else "~"
            first.setdefault(row.arm, []).append(f"{unsure}{row.times_as_fast:.2f}x at {row.tokens:,}")
        if row.decode_times_as_fast is not None and row.decode_times_as_fast < 1:
            unsure = "" if apart(row.decode_repeats, base.decode_repeats) else "~"
            later.setdefault(row.arm, []).append(f"{unsure}{row.decode_times_as_fast:.2f}x at {row.tokens:,}")
    if not (first or later):
        return ["Nothing is slower than full."] if full else []
    mark = " (~: the repeats of both overlap)"
    found = []
    for where, slow in (("to the first token", first), ("after it", later)):
        listed = "; ".join(f"{arm} {', '.join(lengths)}" for arm, lengths in slow.items())
        found += [f"Slower than full {where}{mark}: {listed}."] if slow else []
    return found


def _late(rows: Sequence[Row], least: float = 1.5) -> list[str]:
    """Where the very first call took clearly longer than those timed: compilation, orders, plans."""
    late = [
        f"{row.arm} at {row.tokens:,}: {row.first_ms[0]:,.0f} ms"
        for row in rows
        if row.first_ms and row.first_ms[0] > least * row.prefill_ms
    ]
    return [f"The first call of all took over {least} times as long: {', '.join(late)}."] if late else []


def _faster_kernels(rows: Sequence[Row]) -> list[str]:
    """Where another kernel was faster than the one that ran, and the repeats of both lie apart."""
    found = []
    for row in rows:
        best = row.best_kernel
        if best is None or not best.prefill_ms or best.prefill_ms >= row.prefill_ms or [best.kernel] == row.kernels:
            continue
        if told_apart(best.repeats_ms, row.repeats_ms):
            times = f"{row.prefill_ms / best.prefill_ms:.2f} times as fast as {'+'.join(row.kernels) or FULL}"
            found.append(f"{best.kernel} for {row.arm} at {row.tokens:,} ({times})")
    return [f"A faster kernel than the one that ran: {'; '.join(found)}."] if found else []
