"""What calibration.json holds, as types. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sa_eval.records.result_folder import Result
from sa_eval.records.types import Facts

FILE = "calibration.json"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class TextRow:
    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class StratumRow:
    """One arm on the report's passages of one kind.

    Attributes:
        divergence: mean KL(full || arm) in nats per scored position.
        of_passages: the same of every passage.
        difference: to the best single recipe, paired by passage; None for that recipe itself.
        low, high: its 95 % interval; None where one passage was read.
    """

    stratum: str
    divergence: float
    of_passages: list[float]
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """One arm of the report: the plan, a single recipe for all layers, or a control.

    Attributes:
        config: what a sa_patch.json of it holds.
        pairs: visible (query, key) pairs of all layers, a charged router's share included, by prompt length.
        router: pairs per query that choosing keys costs beside them, at the passages' length, the mean over layers;
            None in files of before.
    """

    name: str
    role: str
    config: Facts
    pairs: dict[str, int]
    strata: list[StratumRow]
    router: float | None = None

    def stratum(self, name: str) -> StratumRow:
        return next(row for row in self.strata if row.stratum == name)


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """What the plan gives a layer; `window` is None for full attention, keys per query are those at the passages'
    length, and options are those that are not the variant's defaults."""

    layer: int
    recipe: str
    mode: str
    window: int | None
    keys_per_query: float
    options: Facts = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known once it is finished.

    Attributes:
        sentence: the answer in one line.
        recipe: the best single recipe on the passages to choose with.
        allowed: pairs that all layers together may cost, by prompt length.
        swaps: changes tried and kept.
        seconds: what measuring took, all sessions together.
    """

    sentence: str
    recipe: str
    allowed: dict[str, int]
    outcomes: list[OutcomeRow]
    layers: list[LayerRow]
    swaps_tried: int
    swaps_kept: int
    seconds: float

    def outcome(self, name: str) -> OutcomeRow:
        return next(row for row in self.outcomes if row.name == name)

    @property
    def strata(self) -> list[str]:
        return [row.stratum for row in self.outcomes[0].strata]


@dataclass(kw_only=True)
class CalibrationResult(Result):
    """The whole file; `found` is None until it is finished."""

    texts: list[TextRow]
    found: Findings | None = None

    @property
    def length(self) -> int:
        """Tokens of a passage."""
        return self.settings["lengths"][0]
