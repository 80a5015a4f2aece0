"""Everything a set of training runs depends on, and the runs it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

ATTENTION = (
    *("full", "swa", "sa", "gated", "swa-sink", "gated-sink", "gated-swa", "swa-scaled", "swa-half"),
    *("moba", "sa+swa", "random-keys"),
)
HELP = {
    "full": "causal attention",
    "swa": "sliding window",
    "swa-sink": "sliding window that keeps the first token, charged to the window",
    "sa": "stochastic attention",
    "gated": "sliding window and stochastic attention, half of the window each, trained gates",
    "gated-sink": "gated, with the first token kept in both halves",
    "gated-swa": "a gated sliding window without stochastic attention: what the gate does by itself",
    "swa-scaled": "gated-swa with one learned number per head for a gate: what it does without looking at the token",
    "swa-half": "gated-swa with every gate held at 1/2: what its first value does by itself",
    "sa+swa": "the union of both without gates",
    "moba": "block attention with top-2 routing",
    "random-keys": "keys drawn anew for every query: the control",
}
LEAST_VOCAB = 257


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
        ValueError: for what is no YAML mapping, or a key that is no setting.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds a {type(given).__name__}, not settings: write lines like 'window: [64, 128]'")
    known = {item.name for item in fields(Settings)}
    strange = sorted(map(str, given.keys() - known))
    if strange:
        raise ValueError(f"{path} has {', '.join(strange)}, which is no setting: known are {', '.join(sorted(known))}")
    return given


_LISTS = {"text": str, "attention": str, "window": int, "seeds": int}
_ANY = {"synthetic", "questions", "save_every", "warmup", "weight_decay"}  # may be 0


def check(settings: dict[str, Any]) -> Settings:
    """The settings, every one of them known, of its type and in range. A single value stands for a list of one.

    Raises:
        ValueError: naming what is missing or out of range.
    """
    opened = sorted(name for name, value in settings.items() if value is None)
    if opened:
        flags = ", ".join("--" + name.replace("_", "-") for name in opened)
        raise ValueError(f"the config leaves {', '.join(opened)} open, because it was not published: give {flags}")
    made = Settings(**{name: _typed(name, value) for name, value in settings.items()})
    for name in _LISTS:
        repeated = sorted({str(one) for one in getattr(made, name) if getattr(made, name).count(one) > 1})
        if repeated:
            raise ValueError(f"{name} has {', '.join(repeated)} more than once: give each once")
    strange = [name for name in made.attention if name not in ATTENTION]
    if strange:
        raise ValueError(f"unknown attention {', '.join(strange)}: choose from {', '.join(ATTENTION)}")
    _check_text(made)
    _check_numbers(made)
    if made.optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer={made.optimizer!r} is none: use muon or adamw")
    if made.resample not in ("step", "never") or made.precision not in ("bf16", "fp32"):
        raise ValueError("resample is step or never, precision bf16 or fp32")
    return made


def _typed(name: str, value: Any) -> Any:
    """YAML reads 4e-3 as text and a list of one without brackets as its item."""
    kind = _LISTS.get(name) or type(getattr(Settings, name))
    items = value if name in _LISTS and isinstance(value, list | tuple) else (value,)
    try:
        if any(isinstance(item, list | dict | bool | None) for item in items):
            raise ValueError
        if kind is int and any(isinstance(item, float) and not item.is_integer() for item in items):
            raise ValueError
        typed = tuple(kind(item) for item in items)
    except ValueError:
        told = {int: "whole numbers", float: "numbers", str: "words"}[kind]
        raise ValueError(f"{name}={value!r}: {name} takes {told}") from None
    return typed if name in _LISTS else typed[0]


def _check_text(made: Settings) -> None:
    if not made.text:
        raise ValueError("there is no text to train on: give --text FILE ...")
    missing = [name for name in made.text if not Path(name).is_file()]
    if missing:
        raise ValueError(f"no such text file: {', '.join(missing)}")
    try:
        re.compile(made.document_start)
    except re.error as error:
        raise ValueError(f"document_start={made.document_start!r} is no regular expression: {error}") from error


def _check_numbers(made: Settings) -> None:
    for item in fields(made):
        value = getattr(made, item.name)
        if isinstance(value, int | float) and (value < 0 or (value == 0 and item.name not in _ANY)):
            raise ValueError(f"{item.name}={value} is out of range: it has to be positive")
    for name in ("synthetic", "warmup"):
        if getattr(made, name) > 1:
            raise ValueError(f"{name}={getattr(made, name)} is a share: give a number from 0 to 1")
    if made.batch_tokens % (made.rows * made.length):
        raise ValueError(
            f"batch_tokens={made.batch_tokens} is no multiple of rows={made.rows} x length={made.length}: change one"
        )
    if made.tokens < made.batch_tokens:
        raise ValueError(f"tokens={made.tokens} is less than a step of batch_tokens={made.batch_tokens}: give more")
    if made.heads % made.kv_heads:
        raise ValueError(f"heads={made.heads} is no multiple of kv_heads={made.kv_heads}: change one")
    if made.vocab < LEAST_VOCAB:
        raise ValueError(f"vocab={made.vocab} is too small: bytes and the end of a text are {LEAST_VOCAB} tokens")
    wide = [window for window in made.window if not 0 < window < made.length]
    if wide and set(made.attention) != {"full"}:
        raise ValueError(
            f"window={wide[0]} of rows of length={made.length} tokens: give a window of 1 to {made.length - 1} keys, "
            "a wider one is full attention"
        )
