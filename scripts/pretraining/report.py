"""Tables and curves of what has been measured so far."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from sa_eval.environment import versions
from sa_eval.results.significance import holm
from sa_eval.tasks import TASKS

from .compared import Arm, Difference, arms_of, difference, finished
from .curves import draw_curves
from .measuring import contexts, evidence_distance
from .settings import Settings
from .texts import data_hashes
from .training import DONE, write_whole


def write_report(out: Path, asked: Settings | None = None) -> Path:
    """report.md, report.json and pictures in the output folder.

    Args:
        asked: whose attentions, windows and seeds are told; None: all that are finished.

    Raises:
        SystemExit: when nothing of it has been measured yet.
    """
    settings = asked or finished(out)
    held = np.load(out / "held_out.npz")
    arms = [arm for window in settings.window for arm in arms_of(settings, out, window)]
    if not arms:
        raise SystemExit(f"nothing of what was asked for has been measured in {out} yet")
    distance = evidence_distance(held["pages"])
    lines = [
        "# Trained with another attention",
        "",
        f"{settings.tokens:,} tokens per run, rows of {settings.length}, {len(held['pages'])} held-out documents "
        f"(one page each), {len(held['task'])} questions. Loss in nats per token; lower is better.",
        "",
        *_losses(arms),
        "",
        *_controls(arms),
        *_by_distance(arms, distance),
        "",
        *_by_context(arms, settings.length),
        "",
        *_questions(arms, held["task"]),
        "",
        *_gates(arms),
    ]
    draw_curves(settings, out, arms)
    write_whole(out / "report.json", json.dumps(_kept(settings, out, arms, distance), indent=1) + "\n")
    lines += ["", "![loss by position](loss-by-position.png)", "", "![learning curves](learning-curves.png)", ""]
    file = out / "report.md"
    write_whole(file, "\n".join(lines))
    return file


def _kept(settings: Settings, out: Path, arms: list[Arm], distance: np.ndarray) -> dict[str, Any]:
    """What is worth keeping of the figures: everything that the tables are made of, by document or by seed."""
    told = settings.as_dict() | {"text": [Path(name).name for name in settings.text]}
    return {
        "tokens": settings.tokens,
        "parameters": _parameters(settings, out),
        "settings": told,
        "versions": versions(),
        "sha256": data_hashes(out),
        "contexts": contexts(settings.length),
        "distances": [low for low, _ in _DISTANCES],
        "arms": [_arm_kept(arm, distance) for arm in arms],
    }


def _arm_kept(arm: Arm, distance: np.ndarray) -> dict[str, Any]:
    def short(values: np.ndarray) -> list:
        return np.where(np.isnan(values), None, np.round(values.astype(float), 4)).tolist()  # type: ignore[arg-type]

    kept = {
        "title": arm.title,
        "seeds": len(arm.losses),
        "loss": float(arm.losses.mean()),
        "loss_by_seed": [float(loss) for loss in arm.losses.mean(axis=(1, 2))],
        "loss_by_context": short(arm.context.mean(axis=(0, 1))),
        "loss_by_distance": short(_at_distances(arm, distance)),
        "loss_by_document": short(arm.by_page(arm.seeds)),
    }
    return kept | {name: short(values.mean(axis=0)) for name, values in arm.gates.items()}


def _parameters(settings: Settings, out: Path) -> int:
    """Of the first run's model, gates aside."""
    folder = next(out / run.name for run in settings.runs() if (out / run.name / DONE).exists())
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        names = [name for name in weights.keys() if "gate_s" not in name]  # noqa: SIM118 (not a mapping)
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def _losses(arms: list[Arm]) -> list[str]:
    """Every arm's loss, and its difference to the swa of its window, paired by seed and held-out document.

    full, which has no window, is held against the first swa; without any swa all are held against the first arm.
    """
    windows = {arm.title.partition("w=")[2]: arm for arm in arms if arm.title.startswith("swa w=")}
    first = next((arm for arm in arms if arm.title.startswith("swa w=")), arms[0])
    bases = {arm.title: windows.get(arm.title.partition("w=")[2], first) for arm in arms}
    found = {arm.title: difference(arm, base) for arm in arms if (base := bases[arm.title]) is not arm}
    known = {title: one for title, one in found.items() if one is not None}
    corrected = dict(zip(known, holm([one.p for one in known.values()]), strict=True))
    told = "swa of this window" if windows else first.title
    rows = [
        f"| attention | seeds | loss | lowest to highest seed | against {told} (95 % over documents) "
        "| the same, lowest to highest seed | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(arms, key=lambda arm: arm.losses.mean()):
        own = arm.losses.mean(axis=(1, 2))
        cells = [arm.title, str(len(own)), f"{own.mean():.3f}", f"{own.min():.3f} to {own.max():.3f}"]
        one = known.get(arm.title)
        cells += ["", "", ""] if one is None else [*_told(one), f"{corrected[arm.title]:.3f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


CONTROLS = (
    *(("gated", "gated-swa"), ("gated-sink", "swa-sink"), ("sa+swa", "swa-sink"), ("sa", "random-keys")),
    *(("gated-swa", "swa-scaled"), ("gated-swa", "swa-half")),
)


def _controls(arms: list[Arm]) -> list[str]:
    """What an arm gains over the one that leaves out what it is made of."""
    rows, known = [], {arm.title: arm for arm in arms}
    for title, arm in known.items():
        name, _, window = title.partition(" ")
        for one, other in CONTROLS:
            base = known.get(f"{other} {window}")
            found = difference(arm, base) if one == name and base is not None else None
            if found is not None and base is not None:
                seeds = str(len(found.by_seed))
                rows.append("| " + " | ".join([f"{title} minus {base.title}", seeds, *_told(found)]) + " |")
    if not rows:
        return []
    head = "| difference in loss | seeds | mean (95 % over documents) | lowest to highest seed |"
    return [head, "|---|---|---|---|", *rows, ""]


def _told(one: Difference) -> list[str]:
    seeds = f"{min(one.by_seed):+.3f} to {max(one.by_seed):+.3f}"
    return [f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})", seeds]


_DISTANCES = ((1, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1 << 30))


def _by_distance(arms: list[Arm], distance: np.ndarray) -> list[str]:
    edges = [f"{low} to {high - 1}" if high < 1 << 30 else f"{low} on" for low, high in _DISTANCES]
    counts = [int(((distance >= low) & (distance < high)).sum()) for low, high in _DISTANCES]
    rows = [
        "Loss by how many tokens back the same pair of tokens was last seen (first row: tokens counted):",
        "",
        "| attention | new pair | " + " | ".join(edges) + " |",
        "|---" * (len(edges) + 2) + "|",
        f"| tokens | {int((distance == 0).sum()):,} | " + " | ".join(f"{count:,}" for count in counts) + " |",
    ]
    for arm in arms:
        cells = _at_distances(arm, distance)
        rows.append(f"| {arm.title} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return rows


def _at_distances(arm: Arm, distance: np.ndarray) -> np.ndarray:
    """Mean loss of tokens in a new pair, then at the distances of the table; NaN where there is none."""
    mean = arm.losses.mean(axis=0)
    chosen = [distance == 0, *((distance >= low) & (distance < high) for low, high in _DISTANCES)]
    return np.array([mean[places].mean() if places.any() else np.nan for places in chosen])


def _by_context(arms: list[Arm], length: int) -> list[str]:
    sizes = contexts(length)
    rows = [
        "How far back is used: loss of a page's last tokens when all but so many tokens before them are another "
        "page's, minus their loss with their own page (last column: that loss):",
        "",
        "| attention | " + " | ".join(map(str, sizes[:-1])) + " | all |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for arm in arms:
        *short, whole = arm.context.mean(axis=(0, 1))
        rows.append("| " + " | ".join([arm.title, *(f"{loss - whole:+.3f}" for loss in short), f"{whole:.3f}"]) + " |")
    return rows


def _questions(arms: list[Arm], task: np.ndarray) -> list[str]:
    if not len(task):
        return []
    families = dict.fromkeys(item.family for item in TASKS.values())
    of_task = [item.family for item in TASKS.values()]
    family = np.array([of_task[number] for number in task])
    rows = [
        "Synthetic language, answers that were right throughout (teacher-forced), % (mean over seeds):",
        "",
        "| attention | " + " | ".join(families) + " |",
        "|---" * (len(families) + 1) + "|",
    ]
    for arm in arms:
        cells = [f"{100 * arm.right[:, family == name].mean():.0f}" for name in families]
        rows.append(f"| {arm.title} | " + " | ".join(cells) + " |")
    return rows


def _gates(arms: list[Arm]) -> list[str]:
    rows: list[str] = []
    for arm in arms:
        if not arm.gates:
            continue
        rows += ["", f"Gates of {arm.title}, mean over tokens and seeds, a column per head (swa / sa):", ""]
        local, random = arm.gates["gate_swa"].mean(axis=0), arm.gates["gate_sa"].mean(axis=0)
        heads = local.shape[1]
        rows += ["| layer | " + " | ".join(str(head) for head in range(heads)) + " |", "|---" * (heads + 1) + "|"]
        for layer in range(local.shape[0]):
            cells = [f"{a:.2f} / {b:.2f}" for a, b in zip(local[layer], random[layer], strict=True)]
            rows.append(f"| {layer} | " + " | ".join(cells) + " |")
    return rows
