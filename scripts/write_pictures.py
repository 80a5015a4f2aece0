"""Draw the pictures of docs/concepts.md from the code's own masks.

python scripts/write_pictures.py
"""

from pathlib import Path

import matplotlib
import torch

import sa_patch
from sa_patch.geometry import Group

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
LENGTH, WINDOW = 96, 16
MODES = ("swa", "sa", "sa-bucket", "sa-dyadic", "sa+swa", "moba", "routed", "random-keys")
LINES = (("swa", "#0072b2", "o"), ("sa+swa", "#d55e00", "s"), ("sa", "#009e73", "^"), ("random-keys", "#7f7f7f", "x"))
REACH_LENGTH, REACH_WINDOW, LAYERS = 1024, 32, 6


def mask(mode: str, length: int, window: int, layer: int = 0) -> torch.Tensor:
    """Who sees whom, bool [length, length]; of variants that read content, one head on random queries and keys."""
    source = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, length, 16, generator=source) for _ in range(2))
    variant = sa_patch.variant(mode, window)
    seen = variant.sparse_pattern(Group(length, length, torch.device("cpu")), layer, query, key).visible()
    return seen.expand(1, 1, length, length)[0, 0]


def masks() -> plt.Figure:
    figure, axes = plt.subplots(2, 4, figsize=(9, 4.9), layout="constrained")
    for mode, axis in zip(MODES, axes.flat, strict=True):
        seen = mask(mode, LENGTH, WINDOW)
        future = torch.ones(LENGTH, LENGTH).triu(1)
        axis.imshow(seen.float() + 0.12 * future, cmap="Blues", vmin=0, vmax=1.15, interpolation="nearest")
        axis.set_title(f"{mode}\n{seen.sum().item() / LENGTH:.1f} keys per query", fontsize=9)
        axis.set_xticks([]), axis.set_yticks([])
    axes[0, 0].set_ylabel("query", fontsize=9), axes[1, 0].set_ylabel("query", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("key", fontsize=9)
    return figure


def connected(mode: str) -> list[float]:
    """Share of (query, earlier token) pairs that are connected through 1, 2, ... layers."""
    reached, shares = torch.eye(REACH_LENGTH), []
    for layer in range(LAYERS):
        step = mask(mode, REACH_LENGTH, REACH_WINDOW, layer).float()
        reached = (step @ reached).clamp(max=1)
        shares.append(reached.sum().item() / (REACH_LENGTH * (REACH_LENGTH + 1) / 2))
    return shares


def reach() -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
    layers = range(1, LAYERS + 1)
    for mode, colour, marker in LINES:
        axis.plot(layers, [100 * share for share in connected(mode)], color=colour, marker=marker, label=mode)
    axis.set(xlabel="layers", ylabel="pairs connected, %", ylim=(0, 103), xticks=layers)
    axis.set_title(f"{REACH_LENGTH:,} tokens, window {REACH_WINDOW}, one seed", fontsize=10)
    axis.grid(alpha=0.3), axis.legend(frameon=False, loc="center right")
    return figure


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in (("masks", masks), ("reach", reach)):
        draw().savefig(FOLDER / f"{name}.png", dpi=110, facecolor="white", metadata={"Software": None})
        print(f"wrote docs/pictures/{name}.png")
