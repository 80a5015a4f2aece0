"""Curves of a report: loss by position in the row, and while training."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np

from .compared import Arm
from .settings import Settings
from .training import DONE

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_POSITIONS = (1, 16, 64, 128, 256, 512, 1024)
_COLOURS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#66C2A5", "#CC79A7", "#E69F00", "#999999")
_COLOURS += ("#882255", "#117733", "#DDCC77")


def draw_curves(settings: Settings, out: Path, arms: list[Arm]) -> None:
    """loss-by-position.png and learning-curves.png in the output folder."""
    trained = [arm for arm in arms if "read with" not in arm.title]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    edges = [edge for edge in _POSITIONS if edge < settings.length] + [settings.length]
    centres = [(low * high) ** 0.5 for low, high in pairwise(edges)]
    for arm, colour in zip(trained, _COLOURS * 3, strict=False):
        parts = [arm.losses[:, :, low - 1 : high - 1].mean(axis=(1, 2)) for low, high in pairwise(edges)]
        values = np.stack(parts)
        axes.plot(centres, values.mean(axis=1), marker="o", markersize=3, color=colour, label=arm.title)
        axes.fill_between(centres, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="position", ylabel="loss (nats per token); band: lowest to highest seed")
    axes.legend(fontsize=7)
    _save(figure, out / "loss-by-position.png")
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for run in settings.runs():
        file = out / run.name / DONE
        if file.exists():
            log = json.loads(file.read_text())["log"]
            colour = _COLOURS[settings.attention.index(run.attention) % len(_COLOURS)]
            label = (
                run.attention if run.seed == settings.seeds[0] and run.window in (None, settings.window[0]) else None
            )
            axes.plot([one["step"] for one in log], [one["loss"] for one in log], color=colour, alpha=0.7, label=label)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(fontsize=7)
    _save(figure, out / "learning-curves.png")


def _save(figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
