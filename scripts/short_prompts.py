"""Claims about prompts hardly longer than the window, from the figures of benchmarks/first_token.py."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from claimed import FAILS, HOLDS, OPEN, PARTLY, Claim, read

FIGURES = "first-token-smollm2-135m"
SIGNIFICANT = 0.05
BEFORE, WITHOUT, OF_SA = "sa - swa, 0 sinks", "sa without the first token - swa", "sa without the first token - sa"
TASKS = {"lambada": "LAMBADA", "piqa": "PIQA"}
UNITS = {"right": (100, "points"), "likelihood": (1, "nats")}


def small_windows() -> Claim:
    said = "training-free, sa is better than swa at small windows (LAMBADA at w = 64: 62.9 against 50.2 on Qwen3-8B)"
    found = read(FIGURES)
    if found is None:
        return _open(said)
    rows = _rows(found, "lambada", BEFORE)
    accuracy = [row for row in rows if row["measure"] == "right"]
    better, worse = _windows(accuracy, 1), _windows(accuracy, -1)
    verdict = PARTLY if better and worse else HOLDS if better else FAILS
    told = f"{_told(rows, 'right')}. {_told(rows, 'likelihood')}"
    if not better and not worse and _windows(rows, 1):
        return Claim(said, _setting(found), f"{told}. So in log-likelihood, not in accuracy", PARTLY)
    return Claim(said, _setting(found), told, verdict)


def without_the_sink() -> Claim:
    """Holds where sa beats swa, and no longer does when it may not see the first token."""
    said = "(not the paper's) what sa wins there is the first token, which it keeps by chance"
    found = read(FIGURES)
    if found is None:
        return _open(said)
    wins = _windows(_rows(found, "lambada", BEFORE), 1)
    without = [row for row in _rows(found, "lambada", WITHOUT) if row["window"] in wins]
    still = _windows(without, 1)
    taken = _rows(found, "lambada", OF_SA)
    with_sink = _rows(found, "lambada", "sa - swa, 1 sinks")
    told = (
        f"sa that never sees it, minus swa: {_told(without or _rows(found, 'lambada', WITHOUT), 'likelihood')}; minus "
        f"sa: {_told(taken, 'likelihood')}. Both with one sink, sa minus swa: {_told(with_sink, 'likelihood')}"
    )
    told += f". One sink is worth {_worth(found, 'swa')} nats to swa, {_worth(found, 'sa')} to sa"
    if not wins:
        return Claim(said, "the same run", f"{told}. Without sinks sa wins at no window: no gap to explain", OPEN)
    return Claim(said, "the same run", told, HOLDS if not still else FAILS if still == wins else PARTLY)


def _worth(found: Any, mode: str) -> str:
    """What one sink, charged, adds to the log-likelihood on LAMBADA, from the least to the most over windows."""
    nats = {row["arm"]: row["likelihood"] for row in found["arms"] if row["task"] == "lambada"}
    gains = [
        value - nats[arm[: -len("-sinks1")]] for arm, value in nats.items() if re.fullmatch(rf"{mode}-w\d+-sinks1", arm)
    ]
    return f"{min(gains):.1f} to {max(gains):.1f}" if gains else "?"


def gap_by_window() -> Claim:
    said = "the gap of sa over swa is largest at small windows"
    found = read(FIGURES)
    if found is None:
        return _open(said)
    rows = _rows(found, "lambada", BEFORE)
    accuracy = [row for row in rows if row["measure"] == "right"]
    falls = all(a["difference"] >= b["difference"] for a, b in pairwise(accuracy))
    return Claim(said, "the same run", _told(rows, "right"), HOLDS if falls and _windows(accuracy, 1) else FAILS)


def section() -> list[str]:
    """The tables behind these claims; nothing where there are no figures."""
    found = read(FIGURES)
    if found is None:
        return []
    lines = ["", "## The first token on short prompts", ""]
    lines += [
        f"SmolLM2-135M in {found['model']['dtype']}, {found['seeds']} seeds of sa, `python benchmarks/first_token.py`.",
        "Beside accuracy stands what moves before an answer flips: the log-likelihood of the right word (LAMBADA), or",
        "by how much it is above the wrong choice's (PIQA), in nats. `sa without` is sa over the tokens after the",
        "first, with at least as many pairs. Bold: p < 0.05 after Holm's correction over all comparisons of a task and",
        "measure.",
    ]
    for task, facts in found["tasks"].items():
        lines += [
            "",
            f"**{TASKS[task]}**, {facts['documents']} documents, {facts['mean_tokens']:.0f} tokens on average",
        ]
        lines += ["", *_arms(found, task), "", *_differences(found, task), "", *_excess(found, task)]
    return lines


def _arms(found: Any, task: str) -> list[str]:
    figures = {row["arm"]: row for row in found["arms"] if row["task"] == task}
    windows = sorted({row["window"] for row in found["differences"] if row["task"] == task})
    ends = sorted({arm.partition("-sinks")[2] or "0" for arm in figures if arm.startswith("sa-w")})
    titles = [f"{mode}, {end} sinks" for mode in ("swa", "sa") for end in ends]
    full = figures["full"]
    lines = [
        f"Accuracy in % and nats (full attention: {100 * full['right']:.1f}, {full['likelihood']:.2f}):",
        "",
        "| window | " + " | ".join(titles) + " | sa without |",
        "|---|" + "---:|" * (len(titles) + 1),
    ]
    for window in windows:
        names = [f"{mode}-w{window}" + ("" if end == "0" else f"-sinks{end}") for mode in ("swa", "sa") for end in ends]
        cells = [figures[name] for name in (*names, f"sa-without-first-w{window}")]
        shown = " | ".join(f"{100 * one['right']:.1f}, {one['likelihood']:.2f}" for one in cells)
        lines.append(f"| {window} | {shown} |")
    return lines


def _differences(found: Any, task: str) -> list[str]:
    rows = [row for row in found["differences"] if row["task"] == task]
    windows = sorted({row["window"] for row in rows})
    asked = list(dict.fromkeys(row["asked"] for row in rows))
    lines = ["Differences with 95 % intervals over documents:", ""]
    lines += ["| asked | measure | " + " | ".join(f"w = {window}" for window in windows) + " |"]
    lines += ["|---|---|" + "---:|" * len(windows)]
    for question in asked:
        for measure, (_, unit) in UNITS.items():
            cells = {row["window"]: row for row in rows if (row["asked"], row["measure"]) == (question, measure)}
            shown = " | ".join(_figure(cells[window]) for window in windows)
            lines.append(f"| {question} | {unit} | {shown} |")
        counts = " | ".join(f"{cells[window]['better']} : {cells[window]['worse']}" for window in windows)
        lines.append(f"| | documents with more : fewer nats | {counts} |")
    found_from = {
        row["window"]: row["detectable"] for row in rows if (row["asked"], row["measure"]) == (BEFORE, "right")
    }
    told = ", ".join(f"{100 * found_from[window]:.0f} (w = {window})" for window in windows)
    lines += [
        "",
        "A true difference in accuracy of sa and swa without sinks would have been significant in four of five",
    ]
    lines += [f"such samples from so many points on: {told}."]
    return lines


def _excess(found: Any, task: str) -> list[str]:
    """sa minus swa by how far the prompt is longer than the window."""
    rows = [row for row in found["differences"] if row["task"] == task and row["measure"] == "likelihood"]
    lines = ["In nats, by tokens of the prompt beyond the window (documents):", ""]
    spans = list(dict.fromkeys((one["from"], one["to"]) for row in rows for one in row["by_excess"]))
    spans = sorted(span for span in spans if span[0])
    titles = [f"{first} to {last}" if last else f"{first} and more" for first, last in spans]
    lines += ["| asked | window | " + " | ".join(titles) + " |", "|---|---|" + "---:|" * len(spans)]
    for row in rows:
        if row["asked"] not in (BEFORE, WITHOUT):
            continue
        groups = {(one["from"], one["to"]): one for one in row["by_excess"]}
        cells = [
            f"{groups[span]['mean']:+.2f} ({groups[span]['documents']})" if span in groups else "-" for span in spans
        ]
        lines.append(f"| {row['asked']} | {row['window']} | {' | '.join(cells)} |")
    return lines


def _figure(row: Any) -> str:
    scale, _ = UNITS[row["measure"]]
    digits = 1 if row["measure"] == "right" else 2
    low, high = row["interval"]
    text = f"{scale * row['difference']:+.{digits}f} ({scale * low:+.{digits}f} to {scale * high:+.{digits}f})"
    return f"**{text}**" if row["p_adjusted"] < SIGNIFICANT else text


def _rows(found: Any, task: str, asked: str) -> list[Any]:
    rows = [row for row in found["differences"] if (row["task"], row["asked"]) == (task, asked)]
    return sorted(rows, key=lambda row: row["window"])


def _windows(rows: list[Any], sign: int) -> list[int]:
    """Windows at which a difference of this sign is significant in either measure, and in neither the other way."""
    sure = [row for row in rows if row["p_adjusted"] < SIGNIFICANT]
    found = {row["window"] for row in sure if row["difference"] * sign > 0}
    return sorted(found - {row["window"] for row in sure if row["difference"] * sign < 0})


def _told(rows: list[Any], measure: str) -> str:
    _, unit = UNITS[measure]
    own = [row for row in rows if row["measure"] == measure]
    return f"{unit}: " + "; ".join(f"w = {row['window']}: {_figure(row)}" for row in own)


def _setting(found: Any) -> str:
    documents = found["tasks"]["lambada"]["documents"]
    return (
        f"LAMBADA, first {documents} passages, SmolLM2-135M, {found['seeds']} seeds of sa, accuracy and log-likelihood "
        "of the right word; bold: p < 0.05 after Holm (`benchmarks/first_token.py`, tables below)"
    )


def _open(said: str) -> Claim:
    return Claim(said, "`benchmarks/first_token.py`", "", OPEN)
