"""What speed.json holds, as types. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sa_eval.records.result_folder import Result
from sa_eval.records.types import Facts, Speed


@dataclass(frozen=True)
class TimedArm:
    """An arm, or the floor (`none`), which has a name and a label only."""

    name: str
    label: str
    mode: str
    window: int | float | None = None
    dense_tail: int = 0
    seeds: list[int] = field(default_factory=lambda: [0])
    kernel: str = "auto"
    options: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class KernelTime:
    """What an arm took with one kernel at one length: median and repeats in ms, or why it did not run."""

    kernel: str
    prefill_ms: float | None = None
    repeats_ms: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Row(Speed):
    """One arm at one length beside full and the floor of that length; None where the other one is missing.

    Attributes:
        times_as_fast: full's time to the first token over this one's: above 1 is faster.
        decode_times_as_fast: this rate of generated tokens over full's: above 1 is faster.
        over_floor: time to the first token beyond the floor's, as a share of it.
        by_kernel: what every kernel took for this arm; empty where that was not asked for.
    """

    times_as_fast: float | None = None
    decode_times_as_fast: float | None = None
    over_floor: float | None = None
    by_kernel: list[KernelTime] = field(default_factory=list)

    @property
    def best_kernel(self) -> KernelTime | None:
        return self._ranked[0] if self._ranked else None

    @property
    def worst_kernel(self) -> KernelTime | None:
        return self._ranked[-1] if self._ranked else None

    @property
    def _ranked(self) -> list[KernelTime]:
        return sorted((one for one in self.by_kernel if one.prefill_ms), key=lambda one: one.prefill_ms or 0.0)

    @property
    def tokens(self) -> int:
        """The prompt's length as it was asked for."""
        return self.prompt_tokens if self.length is None else self.length


@dataclass(frozen=True)
class Missing:
    """Why an arm has no row at a length."""

    arm: str
    length: int
    error: str


@dataclass(kw_only=True)
class SpeedResult(Result):
    """The whole file; `rows` and `failures` are filled length by length."""

    protocol: str
    clock: str
    arms: list[TimedArm]
    rows: list[Row] = field(default_factory=list)
    failures: list[Missing] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Those that were asked for, in that order."""
        return list(self.settings["lengths"])

    @property
    def all_kernels(self) -> bool:
        """Whether every kernel was asked for."""
        return self.settings.get("kernels") == "all"

    def at(self, length: int) -> dict[str, Row]:
        """The rows of a length by arm."""
        return {row.arm: row for row in self.rows if row.length == length}
