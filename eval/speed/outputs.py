"""Owns what `sa-eval speed` shows: the table, speed.csv and the picture, from the result's rows only. No torch."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH = 118
DASH = "\u2013"
COLUMNS = (
    *("arm", "label", "mode", "window", "decode", "length", "prompt_tokens", "batch_size"),
    *("prefill_ms", "spread", "prefill_ratio", "over_floor", "first_ms", "peak_gib"),
    *("decode_tokens_per_s", "decode_ratio", "error"),
)
HEADER = ("", "x full", "first token ms", "spread", "over none", "peak GiB", "tokens/s", "x full")
NOTES = (
    "first token: the model's own generate, from the call to the first token on the host; medians; each timed call "
    "follows an untimed one of the same arm and length. x full: times as fast as full, above 1 is faster. over none: "
    "time beyond the floor. peak: beyond the weights, cache included. tokens/s: after the first token, all rows.",
    "none: the same model with its attention removed (each token passes on its own value). A floor, not a method.",
)


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows beside full and the floor of their length.

    Adds prefill_ratio (time over full's), decode_ratio (rate over full's) and over_floor (time beyond none's, as a
    share of it); None where the other row is missing.
    """
    at = {(row["arm"], row["length"]): row for row in rows}
    found = []
    for row in rows:
        full, floor = (at.get((name, row["length"]), {}) for name in ("full", "none"))
        over_floor = _quotient(row["prefill_ms"], floor.get("prefill_ms"))
        found.append(
            {
                **row,
                "prefill_ratio": _quotient(row["prefill_ms"], full.get("prefill_ms")),
                "decode_ratio": _quotient(row["decode_tokens_per_s"], full.get("decode_tokens_per_s")),
                "over_floor": None if over_floor is None else over_floor - 1,
            }
        )
    return found


def table(result: dict[str, Any]) -> str:
    """Text for a terminal: a block per length, what is slower than full, what failed, how it was measured."""
    blocks = [_title(result), *(_block(result, length) for length in result["settings"]["lengths"])]
    failed = [f"  ! {row['arm']} at {row['length']:,}: {row['error']}" for row in result["failures"]]
    remarks = [*notes(result["rows"]), *NOTES, *result["notes"]]
    blocks.append(
        "\n".join(
            textwrap.fill(note, WIDTH, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False)
            for note in remarks
        )
    )
    return "\n\n".join([*blocks, *(["\n".join(["Failed:", *failed])] if failed else [])])


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows show that nobody should have to search for."""
    return [*_slower(rows), *_late(rows)]


def to_csv(result: dict[str, Any]) -> str:
    """One line per arm and length, failed ones with their reason."""
    arms = {arm["name"]: {**arm, "decode": arm.get("options", {}).get("decode")} for arm in result["arms"]}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in [*result["rows"], *result["failures"]]:
        first = {"first_ms": row["first_ms"][0]} if row.get("first_ms") else {}
        writer.writerow({**arms[row["arm"]], "batch_size": result["settings"]["batch_size"], **row, **first})
    return stream.getvalue()


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """speed.png and speed.svg: time to first token, decoding rate and memory over the length, a line per arm.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window system
    from matplotlib.ticker import LogLocator

    panels = [("prefill_ms", "ms to the first token", "log"), ("peak_gib", "peak GiB beyond the weights", "log")]
    if any(row["decode_tokens_per_s"] for row in result["rows"]):
        panels.insert(1, ("decode_tokens_per_s", "tokens per second after it", "linear"))
    panels = [panel for panel in panels if any(row[panel[0]] for row in result["rows"])]
    figure = Figure(figsize=(4.6 * len(panels), 4.6), layout="constrained")
    for axes, (name, label, scale) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for arm in result["arms"]:
            _line(axes, [row for row in result["rows"] if row["arm"] == arm["name"]], name, _style(result, arm))
        lengths = sorted({row["length"] for row in result["rows"]})
        axes.set(xscale="log", yscale=scale, xlabel="prompt tokens", title=label)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
        if scale == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.12g}")
        else:
            axes.set_ylim(bottom=0)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
    figure.suptitle(_title(result), fontsize=9)
    files = [folder / "speed.png", folder / "speed.svg"]
    for file in files:
        figure.savefig(file, dpi=130)
    return files


COLORS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")  # C7 is the floor's grey
MARKERS = "svD^<>pP*X"
FULL = {"color": "black", "linewidth": 2.2, "marker": "o", "zorder": 3}
FLOOR = {"color": "grey", "linestyle": "dashed", "marker": "", "zorder": 3}


def _style(result: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    """A colour per label, a marker per window, dots where decoding is sparse."""
    if arm["name"] in ("full", "none"):
        return {"label": "full", **FULL} if arm["name"] == "full" else {"label": "none (floor)", **FLOOR}
    labels = list(dict.fromkeys(_hue(other) for other in result["arms"] if other["name"] not in ("full", "none")))
    windows = list(dict.fromkeys(other["window"] for other in result["arms"] if other.get("window") is not None))
    return {
        "label": arm["name"],
        "color": COLORS[labels.index(_hue(arm)) % len(COLORS)],
        "marker": MARKERS[windows.index(arm["window"]) % len(MARKERS)],
        "linestyle": "dotted" if arm["options"].get("decode") == "sparse" else "solid",
    }


def _hue(arm: dict[str, Any]) -> str:
    """Arms of one hue differ in window, dense tail and decoding only."""
    return arm["label"].replace("-decode_sparse", "")


def _line(axes: Any, rows: Sequence[dict[str, Any]], name: str, style: dict[str, Any]) -> None:
    """One arm: its medians, with a thin bar from the fastest to the slowest repeat where there are repeats."""
    points = sorted((row["length"], position) for position, row in enumerate(rows) if row[name] is not None)
    if not points:
        return
    lengths, found = [length for length, _ in points], [rows[position] for _, position in points]
    axes.plot(lengths, [row[name] for row in found], markersize=5, **style)
    repeats = {"prefill_ms": "repeats_ms", "decode_tokens_per_s": "decode_repeats"}.get(name)
    if repeats:
        lows, highs = [min(row[repeats]) for row in found], [max(row[repeats]) for row in found]
        axes.vlines(lengths, lows, highs, color=style["color"], linewidth=1, alpha=0.6)


def _title(result: dict[str, Any]) -> str:
    model, hardware = result["model"], result["hardware"]
    threads = hardware["threads"]
    place = hardware.get("gpu") or f"{hardware['cpu']}, {threads} thread{'s' if threads > 1 else ''}"
    weights = " (random weights)" if model["weights"] == "random" else ""
    rows = result["settings"]["batch_size"]
    return f"{model['name']}{weights}, {model['dtype']}, {rows} row{'s' if rows > 1 else ''}, {place}"


def _block(result: dict[str, Any], length: int) -> str:
    errors = {row["arm"] for row in result["failures"] if row["length"] == length}
    rows = {row["arm"]: row for row in result["rows"] if row["length"] == length}
    lines = [HEADER]
    for arm in result["arms"]:
        name = arm["name"]
        if name in rows:
            lines.append((name, *_cells(rows[name])))
        elif name in errors:
            lines.append((name, *[DASH] * 6, "failed"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    shown = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([f"{length:,} tokens", *shown])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    times_full = _quotient(1, row["prefill_ratio"])
    return (
        DASH if times_full is None else f"{times_full:.2f}",
        f"{row['prefill_ms']:,.1f}",
        f"{row['spread']:.0%}",
        DASH if row["over_floor"] is None else f"{row['over_floor']:+.0%}",
        DASH if row["peak_gib"] is None else f"{row['peak_gib']:.3g}",
        DASH if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:,.1f}",
        DASH if row["decode_ratio"] is None else f"{row['decode_ratio']:.2f}",
    )


def _slower(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is slower than full, to its first token and after it; `~` where the repeats of both overlap."""
    full = {row["length"]: row for row in rows if row["arm"] == "full"}
    first, later = {}, {}
    for row in rows:
        base = full.get(row["length"])
        if base is None or row["arm"] in ("full", "none"):
            continue
        if row["prefill_ratio"] > 1:
            unsure = "~" if min(row["repeats_ms"]) <= max(base["repeats_ms"]) else ""
            first.setdefault(row["arm"], []).append(f"{unsure}{1 / row['prefill_ratio']:.2f}x at {row['length']:,}")
        if row["decode_ratio"] is not None and row["decode_ratio"] < 1:
            unsure = "~" if max(row["decode_repeats"]) >= min(base["decode_repeats"]) else ""
            later.setdefault(row["arm"], []).append(f"{unsure}{row['decode_ratio']:.2f}x at {row['length']:,}")
    found = [("to the first token", first), ("after it", later)]
    if not (first or later):
        return ["Nothing is slower than full."] if full else []
    listed = {where: "; ".join(f"{arm} {', '.join(places)}" for arm, places in slow.items()) for where, slow in found}
    mark = " (~: the repeats of both overlap)"
    return [f"Slower than full {where}{mark}: {arms}." for where, arms in listed.items() if arms]


def _late(rows: Sequence[dict[str, Any]], least: float = 1.5) -> list[str]:
    """Where the very first call took clearly longer than those timed: compilation, orders, plans."""
    late = [
        f"{row['arm']} at {row['length']:,}: {row['first_ms'][0]:,.0f} ms"
        for row in rows
        if row["first_ms"] and row["first_ms"][0] > least * row["prefill_ms"]
    ]
    return [f"The first call of all took over {least} times as long: {', '.join(late)}."] if late else []


def _quotient(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by
