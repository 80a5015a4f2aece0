"""What coverage.json holds, as types. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sa_eval.records.result_folder import Result
from sa_eval.records.types import Facts


@dataclass(frozen=True)
class CoverageRow:
    """One arm at one length.

    Attributes:
        layers: of the stack.
        curves: per direction, the fields of `sa_patch.analysis.Coverage`.
        coherence: the fields of `LocalCoherence`.
        world: the fields of `SmallWorld`, with those of the random graph and of the ring.
        mixing: per direction, the fields of `Mixing`; none beyond 2,048 tokens.
        log_depth: log(n) / log(2 w - 1), the theory's least number of layers; None for a plan.
    """

    arm: str
    label: str
    window: int | float | None
    length: int
    layers: int
    curves: list[Facts]
    coherence: Facts
    world: Facts
    mixing: list[Facts] = field(default_factory=list)
    log_depth: float | None = None


@dataclass(frozen=True)
class CoverageFailure:
    """Why an arm has no row at a length."""

    arm: str
    length: int
    error: str


@dataclass(kw_only=True)
class CoverageResult(Result):
    """The whole file; `rows` and `failures` are filled arm by arm."""

    arms: list[str]
    fly: Facts
    rows: list[CoverageRow] = field(default_factory=list)
    failures: list[CoverageFailure] = field(default_factory=list)
