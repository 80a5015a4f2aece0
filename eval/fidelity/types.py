"""What fidelity.json holds, as types. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sa_eval.records.result_folder import Result
from sa_eval.records.types import ArmRow, MeasuredBudget

Interval = list[float]  # [low, high] of 95 %


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means over predictions.

    Attributes:
        kl: KL(full || arm) in nats.
        agreement: share of predictions where both prefer the same token.
        nats: what the token that follows costs more than in full, in nats per token.
        perplexity: exp of the mean cost in nats; with several seeds, of the mean over seeds.
    """

    predictions: int
    kl: float
    agreement: float
    nats: float
    perplexity: float
    perplexity_full: float


@dataclass(frozen=True, kw_only=True)
class PartMeans:
    """`Means` of a part that may hold no predictions: None then."""

    predictions: int = 0
    kl: float | None = None
    agreement: float | None = None
    nats: float | None = None
    perplexity: float | None = None
    perplexity_full: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerMeans:
    """Measured inside the layers; None where nothing was looked at.

    Attributes:
        kept_mass: share of full attention's mass on keys that the arm shows, mean over heads.
        isolated_error: relative error of the attention output when the arm gets the full model's queries, keys, values.
        attention_error: the same in the patched model, errors of earlier layers included.
        residual_error: relative error of the residual stream after the layer, in the patched model.
    """

    kept_mass: float | None = None
    isolated_error: float | None = None
    attention_error: float | None = None
    residual_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Overall(LayerMeans, Means):
    """The scored predictions; errors are the mean of the layers, the residual error is the last one's."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A range of positions or distances in tokens; None: apart from the ranges."""

    bucket: str
    low: int | None
    high: int | None


@dataclass(frozen=True, kw_only=True)
class PositionRow(LayerMeans, PartMeans, Bucket):
    """Predictions by tokens read before."""


@dataclass(frozen=True, kw_only=True)
class CopyRow(PartMeans, Bucket):
    """Scored predictions by how far back the token could be copied from."""


@dataclass(frozen=True, kw_only=True)
class MassRow(Bucket):
    """Attention mass by tokens between query and key: its share of all, and the part of it that is kept."""

    share_of_mass: float
    kept_mass: float | None


@dataclass(frozen=True, kw_only=True)
class LayerRow(LayerMeans):
    layer: int
    mass_by_distance: list[MassRow] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PassageRow(PartMeans):
    text: str
    index: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Over passages; None where only one was read."""

    kl: Interval | None
    agreement: Interval | None
    nats: Interval | None


@dataclass(frozen=True, kw_only=True)
class SeedRow(Means):
    seed: int
    kept_mass: float | None


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Standard deviations between seeds by measure, and every seed's own numbers."""

    sd: dict[str, float | None]
    each: list[SeedRow]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm at one length."""

    arm: str
    length: int
    passages: int
    budget: MeasuredBudget
    overall: Overall
    intervals: Intervals
    seeds: Seeds | None
    all_predictions: Means
    by_position: list[PositionRow]
    by_copy_distance: list[CopyRow]
    mass_by_distance: list[MassRow]
    layers: list[LayerRow]
    by_passage: list[PassageRow]


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """How much of a text was read at a length."""

    length: int
    name: str
    sha256: str
    tokens: int
    passages: int
    tokens_used: int
    tokens_left: int


@dataclass(frozen=True, kw_only=True)
class ArmFailure:
    """Why an arm has no numbers; `length` None: at all lengths (files of version 1)."""

    arm: str
    error: str
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked besides the settings.

    Attributes:
        files: text files as they were given; none: the bundled texts.
        passages: how many of each text; "all", or None for the default.
    """

    files: list[str] = field(default_factory=list)
    passages: int | Literal["all"] | None = None


@dataclass(kw_only=True)
class Fidelity(Result):
    """The whole file; `cells` and `failures` are filled as arms finish. `request` is None in files of version 1."""

    measures: dict[str, str]
    probed_places: int
    sink_tokens: int
    texts: list[TextRow]
    arms: list[ArmRow]
    request: Request | None = None
    cells: list[Cell] = field(default_factory=list)
    failures: list[ArmFailure] = field(default_factory=list)
    left_out: list[ArmRow] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Those that something was measured at."""
        return list(dict.fromkeys(cell.length for cell in self.cells))

    def at(self, length: int) -> list[Cell]:
        return [cell for cell in self.cells if cell.length == length]
