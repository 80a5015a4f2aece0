"""What the runs of an attention reached, over their seeds, and how two attentions differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from sa_eval.results.significance import paired_test
from sa_eval.results.stats import Stratum

from .measuring import MEASURED, UNTRAINED
from .settings import ATTENTION, Run, Settings
from .training import DONE


@dataclass(frozen=True)
class Arm:
    """What the seeds of one attention reached.

    Attributes:
        seeds: those that have been measured, in the order of the arrays.
        losses: [seeds, pages, tokens]; context: [seeds, pages, contexts]; right: [seeds, questions];
        gates: name -> [seeds, layers, heads].
    """

    title: str
    seeds: tuple[int, ...]
    losses: np.ndarray
    context: np.ndarray
    right: np.ndarray
    gates: dict[str, np.ndarray]

    def by_page(self, seeds: Sequence[int]) -> np.ndarray:
        """Mean loss of every page over tokens: [seeds, pages]."""
        return self.losses[[self.seeds.index(seed) for seed in seeds]].mean(axis=2)


@dataclass(frozen=True)
class Difference:
    """One arm's loss minus another's, over the seeds that both have.

    Attributes:
        by_seed: the mean difference of every seed.
        low, high: 95 % interval of the mean over pages (percentile bootstrap).
        p: of random signs over pages.
    """

    by_seed: tuple[float, ...]
    low: float
    high: float
    p: float

    @property
    def mean(self) -> float:
        return sum(self.by_seed) / len(self.by_seed)


def finished(out: Path) -> Settings:
    """The folder's settings, with the attentions, windows and seeds of the runs that are finished in it."""
    kept = json.loads((out / "settings.json").read_text())
    runs = [Run(**json.loads(file.read_text())["run"]) for file in out.glob(f"*/{DONE}")]
    names = {item.name for item in fields(Settings)}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items() if name in names}
    found["attention"] = tuple(name for name in ATTENTION if name in {run.attention for run in runs})
    windows = {run.window for run in runs if run.window is not None} or set(found["window"])
    return Settings(**{**found, "window": tuple(sorted(windows)), "seeds": tuple(sorted({run.seed for run in runs}))})


def arms_of(settings: Settings, out: Path, window: int) -> list[Arm]:
    """Those of a window that have been measured; full attention, which has none, with the first one."""
    found = []
    for attention in settings.attention:
        own = None if attention == "full" else window
        files = {seed: out / Run(attention, own, seed).name / MEASURED for seed in settings.seeds}
        if attention != "full" or window == settings.window[0]:
            found += _arm(attention if own is None else f"{attention} w={own}", files)
        if attention == "full":
            for name in UNTRAINED:
                places = {
                    seed: file.parent / f"untrained-{Run(name, window, seed).name}.npz" for seed, file in files.items()
                }
                found += _arm(f"full, read with {name} w={window}", places)
    return found


def _arm(title: str, files: dict[int, Path]) -> list[Arm]:
    kept = {seed: np.load(file) for seed, file in files.items() if file.exists()}
    if not kept:
        return []
    every = list(kept.values())
    gates = {name: np.stack([one[name] for one in every]) for name in ("gate_swa", "gate_sa") if name in every[0]}
    losses, context, right = (np.stack([one[name] for one in every]) for name in ("losses", "context", "right"))
    return [Arm(title, tuple(kept), losses, context, right, gates)]


def difference(arm: Arm, base: Arm) -> Difference | None:
    """None where no seed has both."""
    seeds = [seed for seed in arm.seeds if seed in base.seeds]
    if not seeds:
        return None
    one, other = arm.by_page(seeds), base.by_page(seeds)
    change = (one - other).mean(axis=0)
    pages = Stratum("pages", (arm.title, base.title), np.column_stack([one.mean(axis=0), other.mean(axis=0)]))
    found = bootstrap((change,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    by_seed = tuple(float(value) for value in (one - other).mean(axis=1))
    return Difference(by_seed, float(found.low), float(found.high), paired_test([pages], arm.title, base.title).p_value)
