"""Everything a set of training runs depends on, and the runs it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

ATTENTION = ("full", "swa", "sa", "gated", "swa-sink", "gated-sink", "gated-swa", "moba", "sa+swa", "random-keys")
HELP = {
    "full": "causal attention",
    "swa": "sliding window",
    "swa-sink": "sliding window that keeps the first token, charged to the window",
    "sa": "stochastic attention",
    "gated": "sliding window and stochastic attention, half of the window each, trained gates",
    "gated-sink": "gated, with the first token kept in both halves",
    "gated-swa": "a gated sliding window without stochastic attention: what the gate does by itself",
    "sa+swa": "the union of both without gates",
    "moba": "block attention with top-2 routing",
    "random-keys": "keys drawn anew for every query: the control",
}


@dataclass(frozen=True)
class Settings:
    """One comparison.

    Attributes:
        tokens: what a run trains on, rounded to whole steps.
        batch_tokens: of one step, over all processes.
        rows: of `length` tokens that one process takes at once.
        resample: "step": sa, gated and random keys draw anew in every step; "never": they are those of the seed.
    """

    text: tuple[str, ...] = ()
    document_start: str = r"^(PEP: ?\d|- Start Date|# )"
    attention: tuple[str, ...] = ATTENTION
    window: tuple[int, ...] = (64,)
    seeds: tuple[int, ...] = (0, 1, 2)
    length: int = 1024
    tokens: int = 1_000_000
    batch_tokens: int = 2048
    rows: int = 2
    synthetic: float = 0.25
    resample: str = "step"
    vocab: int = 4096
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 32
    inner: int = 512
    optimizer: str = "muon"
    rate: float = 4e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    precision: str = "bf16"
    documents: int = 64
    questions: int = 48
    save_every: int = 25

    @property
    def steps(self) -> int:
        return max(1, round(self.tokens / self.batch_tokens))

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that what is finished can be compared at any time."""
        for seed in self.seeds:
            for window in self.window:
                for attention in self.attention:
                    if attention != "full" or window == self.window[0]:  # full has no window
                        yield Run(attention, None if attention == "full" else window, seed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    attention: str
    window: int | None
    seed: int

    @property
    def name(self) -> str:
        window = "" if self.window is None else f"-w{self.window}"
        return f"{self.attention.replace('+', '-plus-')}{window}-seed{self.seed}"


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file.

    Raises:
        ValueError: for a key that is none, or one that the file leaves open (null).
    """
    given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    known = {item.name for item in fields(Settings)}
    strange = sorted(given.keys() - known)
    if strange:
        raise ValueError(f"{path} has {', '.join(strange)}, which is no setting: known are {', '.join(sorted(known))}")
    return given


def check(settings: dict[str, Any]) -> Settings:
    """The settings, every one of them known and in range.

    Raises:
        ValueError: naming what is missing or out of range.
    """
    opened = sorted(name for name, value in settings.items() if value is None)
    if opened:
        flags = ", ".join("--" + name.replace("_", "-") for name in opened)
        raise ValueError(f"the config leaves {', '.join(opened)} open, because it was not published: give {flags}")
    lists = ("text", "attention", "window", "seeds")
    made = Settings(**{name: tuple(value) if name in lists else value for name, value in settings.items()})
    strange = [name for name in made.attention if name not in ATTENTION]
    if strange:
        raise ValueError(f"unknown attention {', '.join(strange)}: choose from {', '.join(ATTENTION)}")
    if not made.text:
        raise ValueError("there is no text to train on: give --text FILE ...")
    missing = [name for name in made.text if not Path(name).is_file()]
    if missing:
        raise ValueError(f"no such text file: {', '.join(missing)}")
    if made.batch_tokens % (made.rows * made.length):
        raise ValueError(
            f"batch_tokens={made.batch_tokens} is no multiple of rows={made.rows} x length={made.length}: change one"
        )
    if made.optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer={made.optimizer!r} is none: use muon or adamw")
    if made.resample not in ("step", "never") or made.precision not in ("bf16", "fp32"):
        raise ValueError("resample is step or never, precision bf16 or fp32")
    return made
