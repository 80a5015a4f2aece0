"""What results.json holds, as types: the manifest and the logs of a run, and what was computed from them.

`plain` makes JSON of results and `read` reads it again, also where an earlier version wrote it. On disk a difference
stands flat beside what it belongs to (`difference`, `difference_low`, `p_value`, ...). Imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sa_eval.records import types as records
from sa_eval.records.types import ArmRun, Budget, Check, Failure, Json, Manifest, Speed

Length = int | Literal["all"] | None  # None: tasks with their own lengths; "all": every length together
Status = Literal["passed", "warning", "failed"]
# A field of Difference -> its name on disk, where that is another one.
ON_DISK = {
    "value": "difference",
    "low": "difference_low",
    "high": "difference_high",
    "interval": "difference_interval",
}
NOT_COMPARED: dict[str, Json] = {
    **{"p_value": None, "p_adjusted": None, "test": "none", "significant": False, "detectable": None},
}


@dataclass(frozen=True)
class Difference:
    """Mean score of one arm minus another's on the documents that both answered.

    Attributes:
        low: with `high`, the 95 % interval of this one difference: what its test does not reject at 0.05.
        corrected_low: with `corrected_high`, the same at the level that Holm's correction leaves: it holds 0 exactly
            where the difference is not significant.
        p_adjusted: the p-value after Holm's correction.
        enough: whether so few documents could have shown anything; where not, nothing is said of the difference.
        detectable: the smallest true difference that is found with power 0.8 at that level; None: there is none.
        won: documents on which the arm scored higher; `lost` lower.
        paired: documents that both answered; None in files of version 1.
    """

    value: float
    low: float
    high: float
    interval: str
    p_value: float
    p_adjusted: float
    test: str
    significant: bool
    detectable: float | None
    won: int
    lost: int
    corrected_low: float
    corrected_high: float
    enough: bool = True
    paired: int | None = None

    @property
    def verdict(self) -> Literal["better", "worse", ""]:
        """What may be claimed of it."""
        return "" if not self.significant else "better" if self.value > 0 else "worse"


@dataclass(frozen=True)
class Cell:
    """The accuracy of an arm at a length and in a scope, and its difference to full attention.

    Attributes:
        scope: overall, family or task; `name` is "overall" or the family's or task's.
        low: with `high`, the 95 % interval of the accuracy; `interval` says how it was made.
        seed_sd: standard deviation of the accuracy between seeds; None for a single seed.
        sampling_sd: what other documents would change; None for a single document.
        seeds_vary_more: whether seeds differ by more than other documents explain.
        versus_full: None for full itself, and where it shares too few documents with full.
    """

    arm: str
    length: Length
    scope: str
    name: str
    documents: int
    accuracy: float
    low: float
    high: float
    interval: str
    seed_sd: float | None
    sampling_sd: float | None
    seeds_vary_more: bool | None
    versus_full: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """Two arms at one budget, all lengths together: `arm` minus `base`."""

    arm: str
    base: str
    scope: str
    name: str
    difference: Difference


@dataclass(frozen=True)
class MeasuredSpeed(Speed):
    """A row of the speed log; `speedup` is times as fast as full attention to the first token, above 1 is faster."""

    speedup: float | None = None


@dataclass(frozen=True)
class Answered:
    """How many answers there are of one arm and seed.

    Attributes:
        generated: answers that are text; `empty` those of them that hold nothing but spaces.
        ended: those of which it is recorded what ended them (earlier versions did not); `cut` those of these that the
            limit of new tokens ended.
        overlong: prompts longer than the length they stand for.
    """

    arm: str
    seed: int
    wanted: int
    answered: int = 0
    failed: int = 0
    generated: int = 0
    empty: int = 0
    ended: int = 0
    cut: int = 0
    overlong: int = 0


@dataclass(frozen=True)
class Published:
    """A number that others published: a share between 0 and 1 of the arm `label` at `window` (None: all keys)."""

    label: str
    window: int | float | None
    name: str
    value: float
    source: str


@dataclass(frozen=True)
class Gate:
    """One check of a run; `where` names arms, lengths or tasks, empty when passed."""

    gate: str
    status: Status
    text: str
    where: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Family:
    """Tests that are corrected together: how many, and the level that Holm's correction leaves to each."""

    tests: int = 0
    level: float = 0.05


def _nested(row: Any, name: str) -> Any:
    """A row as the disk holds it with its difference as an object of its own."""
    if not isinstance(row, dict) or row.get("difference") is None or isinstance(row["difference"], dict):
        return row
    found: dict[str, Json] = {item.name: row.get(ON_DISK.get(item.name, item.name)) for item in fields(Difference)}
    if found["corrected_low"] is None:  # version 1 had one interval
        found |= {"corrected_low": found["low"], "corrected_high": found["high"], "enough": True}
    return {**row, name: found}


def flat(row: dict[str, Json], name: str = "difference") -> dict[str, Json]:
    """A row with a difference as the disk holds it."""
    found: dict[str, Json] | None = row.pop(name)
    if found is None:
        return {**row, **NOT_COMPARED}
    return {**row, **{ON_DISK.get(key, key): value for key, value in found.items()}}


def _with_speedup(row: Any) -> Any:
    """Version 1 had the time over full's."""
    ratio = row.get("prefill_ratio") if isinstance(row, dict) else None
    return {**row, "speedup": 1 / ratio} if ratio else row


CellRow = Annotated[Cell, BeforeValidator(lambda row: _nested(row, "versus_full"))]
ComparisonRow = Annotated[Comparison, BeforeValidator(lambda row: _nested(row, "difference"))]
SpeedRow = Annotated[MeasuredSpeed, BeforeValidator(_with_speedup)]


@dataclass(frozen=True)
class Tests:
    """How many tests a run holds: of arms against full attention, and of arms at one budget against each other."""

    cells: int = 0
    comparisons: int = 0


@dataclass(frozen=True)
class Levels:
    """The levels that Holm's correction leaves to the tests of both families; version 1 had none."""

    cells: float = 0.05
    comparisons: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Results(Manifest):
    """Everything that tables and pages show of a run.

    Attributes:
        unfinished: arms that did not answer every document.
        answer: sentences, the most important one first; `notes` are what a reader must know beside them.
    """

    failures: list[Failure]
    arm_runs: list[ArmRun]
    budgets: list[Budget]
    checks: list[Check]
    speed: list[SpeedRow]
    published: list[Published]
    answered: list[Answered]
    unfinished: list[str]
    tests: Tests
    cells: list[CellRow]
    comparisons: list[ComparisonRow]
    gates: list[Gate] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    levels: Levels = Levels()

    @property
    def to_full(self) -> Family:
        """The tests of arms against full attention."""
        return Family(self.tests.cells, self.levels.cells)

    @property
    def between_arms(self) -> Family:
        """The tests of arms at one budget against each other."""
        return Family(self.tests.comparisons, self.levels.comparisons)


def plain(results: Results) -> dict[str, Json]:
    """Results as results.json holds them."""
    found = asdict(results)
    found["cells"] = [flat(row, "versus_full") for row in found["cells"]]
    found["comparisons"] = [flat(row) for row in found["comparisons"]]
    return found


def read(text: str) -> Results:
    """Results from the text of a results.json.

    Raises:
        ValueError: in one line, what is wrong with it.
    """
    return records.read(Results, text)
