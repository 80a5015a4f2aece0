"""Writes README's first table from benchmarks/results: what each variant costs a real model, the largest loss first.

    python scripts/write_headline.py

Quality: `real-model-smollm2-135m.json` (benchmarks/real_model.py), at WINDOW keys per query on texts, at TASK_WINDOW on
LAMBADA. Speed: the last cell of that length and window in `cpu-xeon-avx512-2-cores.json` that timed the variant
(benchmarks/attention.py).
"""

from __future__ import annotations

from typing import Any

from claimed import ROOT, read

WINDOW, TASK_WINDOW, LENGTH = 128, 32, 16_384
BEGIN, END = "<!-- headline: scripts/write_headline.py -->\n", "<!-- headline ends -->"
KERNELS = ("torch", "cpp")
# What a row is called; its name in real_model_arms.py, and in arms.py.
ROWS = (
    ("`sa`", "sa", "sa"),
    ("`random-keys` (control)", "random-keys", "random-keys"),
    ("`swa`", "swa", "swa"),
    ("`moba`", "moba k=2", "moba"),
    ("`sa+swa`, 4 sinks", "sa+swa + 4 sinks", "sa+swa+sinks"),
    ("`swa`, 1 sink", "swa + 1 sink", "swa+sink"),
    ("`vertical-slash` (MInference's lines)", "vertical-slash", "vertical-slash"),
    (
        "`routed`, XAttention's sums, blocks of 16, tiles of 16 queries",
        "routed, XAttention's sums, blocks of 16, 16 queries",
        "routed+xattention",
    ),
    ("`routed`, groups and tiles of 16 queries", "routed, groups and 16 queries, blocks of 8", "routed+tiles"),
    ("`moba`, top_k 8, 4 sinks, local = window / 2", "moba k=8 + 4 sinks + local w/2", "moba+local"),
    ("`routed`, Quest's bound", "routed, Quest's bound, blocks of 8", "routed+quest"),
    ("`routed`", "routed", "routed"),
    ("`routed`, block_size 4", "routed, blocks of 4", "routed+blocks4"),
)
HEAD = (
    "variant",
    "KL technical",
    "KL fiction",
    "same next token",
    "keys + router",
    "LAMBADA",
    "times as fast as full",
)


def table() -> str:
    quality, speed = read("real-model-smollm2-135m"), read("cpu-xeon-avx512-2-cores")
    rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    rows += sorted((_row(line, quality, speed) for line in ROWS), key=lambda row: -float(row[1]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(line: tuple[str, str, str], quality: Any, speed: Any) -> tuple[str, ...]:
    title, variant, timed = line
    texts = {row["kind"]: row for row in quality["fidelity"] if (row["variant"], row["window"]) == (variant, WINDOW)}
    tasks = [arm for arm in quality["lambada"]["arms"] if (arm["variant"], arm["window"]) == (variant, TASK_WINDOW)]
    technical, fiction = texts["technical"], texts["fiction"]
    seen = (technical["keys_per_query"] + fiction["keys_per_query"]) / 2
    router = f" + {technical['router']:.0f}" if technical.get("router") else ""
    return (
        title,
        f"{technical['kl']:.3f}",
        f"{fiction['kl']:.3f}",
        f"{100 * technical['agreement']:.0f} / {100 * fiction['agreement']:.0f} %",
        f"{seen:.0f}{router}",
        f"{100 * tasks[0]['accuracy']:.1f} %" if tasks else "",
        " / ".join(_speeds(timed, speed)),
    )


def _speeds(timed: str, speed: Any) -> list[str]:
    """With every kernel that runs the variant, in the last cell that timed it."""
    cells = [cell["calls"] for cell in speed["cells"] if (cell["length"], cell["window"]) == (LENGTH, WINDOW)]
    last = next(calls for calls in reversed(cells) if f"{timed}/torch" in calls)
    return [f"{last[name]['times_full']:.1f}" for kernel in KERNELS if (name := f"{timed}/{kernel}") in last]


def page(text: str) -> str:
    """README with the present table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(page(readme.read_text("utf-8")), "utf-8")
