"""What adapt_tiny.py found, as a table: answers before and after, and paired differences after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pretraining.report import CONTROLS
from pretraining.settings import ATTENTION

from sa_eval.results.significance import holm, paired_test
from sa_eval.results.stats import Stratum
from sa_eval.tasks import TASKS

ARMS = tuple(name for name in ATTENTION if name not in ("swa-scaled", "swa-half"))  # controls of untrained weights
_LAST = 50  # steps whose loss is told: every scene is new, and the same for all attentions of a seed
FAMILIES = tuple(dict.fromkeys(task.family for task in TASKS.values()))


@dataclass(frozen=True)
class Arm:
    """The runs of one attention: seed -> what adapt_tiny wrote."""

    name: str
    runs: dict[int, dict]

    def share(self, when: str, tasks: Sequence[str]) -> float:
        """Of right answers, tasks weighted alike."""
        return float(np.mean([np.mean(run[when][task]) for run in self.runs.values() for task in tasks]))

    def losses(self, seeds: Sequence[int]) -> np.ndarray:
        """Training loss of answers in the last steps: [seeds]."""
        return np.array([np.mean(self.runs[seed]["losses"][-_LAST:]) for seed in seeds])

    def points(self, task: str, seeds: Sequence[int]) -> np.ndarray:
        """After training: [seeds, questions]."""
        return np.array([self.runs[seed]["after"][task] for seed in seeds], dtype=float)


@dataclass(frozen=True)
class Difference:
    """One arm minus another after training, in shares of right answers, over the seeds that both have.

    Attributes:
        low, high: 95 % interval of the mean over questions, drawn anew within each task.
        by_seed: the mean of every seed.
        p: two-sided, of the questions' differences.
        loss_by_seed: the difference in the loss of answers in the last steps.
    """

    name: str
    base: str
    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    p: float
    loss_by_seed: tuple[float, ...]


def write_report(out: Path, settings: dict) -> str:
    """report.md and report.json of all runs in the folder; returns the former."""
    runs = [json.loads(file.read_text()) for file in sorted(out.glob("*-seed*.json"))]
    of_name = {name: {run["seed"]: run for run in runs if run["attention"] == name} for name in ARMS}
    arms = {name: Arm(name, found) for name, found in of_name.items() if found}
    pairs = [(name, "swa") for name in arms if name != "swa"] + [*CONTROLS, ("sa+swa", "moba")]
    asked = [difference(arms[one], arms[base]) for one, base in pairs if one in arms and base in arms]
    found = [one for one in asked if one is not None]
    text = "\n".join([_settings(settings), "", *_table(arms), "", *_differences(found)]) + "\n"
    (out / "report.md").write_text(text)
    kept = [
        {"attention": arm.name, "seeds": list(arm.runs), "keys": _keys(arm)}
        | {"loss_by_seed": [round(float(loss), 4) for loss in arm.losses(list(arm.runs))]}
        | {when: {task: round(arm.share(when, [task]), 4) for task in TASKS} for when in ("before", "after")}
        for arm in arms.values()
    ]
    differences = [one.__dict__ for one in found]
    (out / "report.json").write_text(
        json.dumps({**settings, "arms": kept, "differences": differences}, indent=1) + "\n"
    )
    return text


def difference(arm: Arm, base: Arm) -> Difference | None:
    """None where no seed has both."""
    seeds = sorted(arm.runs.keys() & base.runs.keys())
    if not seeds:
        return None
    strata, draws, by_seed = [], [], []
    for task in TASKS:
        one, other = arm.points(task, seeds), base.points(task, seeds)
        both = np.column_stack([one.mean(0), other.mean(0)])
        strata.append(Stratum(task, (arm.name, base.name), both))
        draws.append(strata[-1].resampled @ np.array([1.0, -1.0]))
        by_seed.append((one - other).mean(1))
    low, high = np.quantile(np.mean(draws, axis=0), (0.025, 0.975))
    own = np.mean(by_seed, axis=0)
    p_value = paired_test(strata, arm.name, base.name).p_value
    told = float(own.mean()), float(low), float(high), tuple(map(float, own)), p_value
    loss = tuple(map(float, arm.losses(seeds) - base.losses(seeds)))
    return Difference(arm.name, base.name, *told, loss)


def _settings(settings: dict) -> str:
    return (
        f"{settings['steps']} steps of {settings['tokens']:,} tokens, rows of up to {settings['length']:,} tokens, "
        f"{settings['window']} keys per query, {settings['documents']} held-out questions per task. Right answers "
        f"in %, before -> after; training loss of the answers in the last {_LAST} steps, all of new scenes (a long "
        "answer weighs less per word; the end of every answer counts):"
    )


def _table(arms: dict[str, Arm]) -> list[str]:
    head = ["attention", "seeds", "keys where asked", "loss", "all tasks", *FAMILIES]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm in arms.values():
        keys = _keys(arm)
        loss = arm.losses(list(arm.runs)).mean()
        cells = [arm.name, str(len(arm.runs)), "" if keys is None else f"{keys:.0f}", f"{loss:.2f}"]
        for family in (None, *FAMILIES):
            tasks = [task.name for task in TASKS.values() if family in (None, task.family)]
            cells.append(f"{100 * arm.share('before', tasks):.0f} -> {100 * arm.share('after', tasks):.0f}")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _keys(arm: Arm) -> float | None:
    found = [run["keys"] for run in arm.runs.values() if run["keys"] is not None]
    return round(float(np.mean(found)), 1) if found else None


def _differences(found: Sequence[Difference]) -> list[str]:
    head = ["after training, points", "seeds", "mean (95 % over questions)", "lowest to highest seed", "p (Holm)"]
    head += ["loss, lowest to highest seed"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one, p_value in zip(found, holm([one.p for one in found]), strict=True):
        low, high = 100 * min(one.by_seed), 100 * max(one.by_seed)
        cells = [f"{one.name} minus {one.base}", str(len(one.by_seed))]
        cells += [
            f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})",
            f"{low:+.1f} to {high:+.1f}",
        ]
        cells += [
            "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
            f"{min(one.loss_by_seed):+.3f} to {max(one.loss_by_seed):+.3f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows
