"""What coverage.json holds, as types. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sa_eval.records.result_folder import Result
from sa_eval.records.types import Facts

Interval = list[float | None]  # low and high; None where there is one seed


@dataclass(frozen=True)
class Curve:
    """`sa_patch.analysis.Coverage` in one direction."""

    name: str
    length: int
    num_layers: int
    seeds: list[int]
    causal: bool
    exact: bool
    sources: int
    covered: list[float]
    intervals: list[Interval]
    per_seed: list[list[float]]
    everything: list[float]
    everything_intervals: list[Interval]
    distances: list[list[int]]
    by_distance: list[list[float]]
    expected: list[float] | None


@dataclass(frozen=True)
class Coherence:
    """`sa_patch.analysis.LocalCoherence`."""

    length: int
    num_layers: int
    last: int
    seeds: list[int]
    visible: list[float]
    share: float
    share_interval: Interval
    previous: float
    previous_interval: Interval
    previous_within: list[float]
    previous_within_intervals: list[Interval]


@dataclass(frozen=True)
class World:
    """`sa_patch.analysis.SmallWorld` with the random graph and the ring beside it; None: no path, no number."""

    length: int
    num_layers: int
    seeds: list[int]
    degree: float
    clustering: float | None
    clustering_interval: Interval
    path_length: float | None
    path_length_interval: Interval
    density: float
    random_clustering: float
    random_path_length: float | None
    ring_clustering: float
    ring_path_length: float | None
    index: float | None


@dataclass(frozen=True)
class MixingRow:
    """`sa_patch.analysis.Mixing` in one direction."""

    length: int
    num_layers: int
    seeds: list[int]
    causal: bool
    layer_gap: float
    layer_gap_interval: Interval
    averaged_gap: float
    averaged_gap_interval: Interval
    distance: list[float]
    distance_intervals: list[Interval]
    mixing_time: int | None


@dataclass(frozen=True)
class CoverageRow:
    """One arm at one length.

    Attributes:
        layers: of the stack.
        curves: per direction.
        mixing: per direction; none beyond 2,048 tokens.
        log_depth: log(n) / log(2 w - 1), the theory's least number of layers; None for a plan.
    """

    arm: str
    label: str
    window: int | float | None
    length: int
    layers: int
    curves: list[Curve]
    coherence: Coherence
    world: World
    mixing: list[MixingRow] = field(default_factory=list)
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
