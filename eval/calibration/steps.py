"""How far a calibration is: about how many passes over a passage every stage takes, and the bar that moves by them."""

from __future__ import annotations

from sa_eval.calibration.settings import CalibrationSettings
from sa_eval.progress import Bar
from sa_patch.calibration.candidates import FAMILIES
from sa_patch.calibration.deciding import PROPOSED, SEARCH_STEPS
from sa_patch.calibration.strata import STRATA

FIT, PROBES, CONTROLS = 4, 2, 7  # passes: candidates on one passage; recipes run in one layer alone; arms of the report


def stages(asked: CalibrationSettings, layers: int) -> dict[str, int]:
    """About how many passes over a passage every stage takes, in the order of the stages."""
    fit, choose, report = (len(STRATA) * count for count in asked.passages)
    return {
        "fit": fit * (FIT + PROBES * (layers + 1) // 2),
        **({} if asked.target_kl is None else {"search": choose * SEARCH_STEPS}),
        "recipes": choose * (len(FAMILIES[asked.router_cost].names) + 1),
        **({"plans": choose * PROPOSED} if asked.target_kl is None else {}),
        "swaps": choose * asked.swaps,
        "report": report * (1 + CONTROLS),
    }


class Steps:
    """Moves the bar as `calibrate` tells what it does."""

    def __init__(self, bar: Bar, passes: dict[str, int]) -> None:
        self._bar, self._passes, self._done = bar, passes, 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        before = sum(list(self._passes.values())[: list(self._passes).index(stage)])
        reached = before + self._passes[stage] * min(done, total) // max(1, total)
        self._bar.describe(f"{stage} {done + 1}/{total}", now=True)
        self._bar.advance(max(0, reached - self._done))
        self._done = max(self._done, reached)

    def finish(self) -> None:
        self._bar.advance(sum(self._passes.values()) - self._done)
