"""What calibration measures with the model: errors to fit with, and divergences of plans on passages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from sa_patch.calibration.candidates import Candidate
from sa_patch.calibration.errors import output_errors
from sa_patch.calibration.journal import Journal
from sa_patch.calibration.outcomes import FULL
from sa_patch.calibration.reading import Heads, Reader, divergence, thinned
from sa_patch.calibration.strata import Passage
from sa_patch.plan import Plan

FIT_POSITIONS, CHOOSE_POSITIONS, REPORT_POSITIONS = 128, 128, 512  # of a passage, evenly


class Fit(TypedDict):
    """What one passage to fit with says, as the journal holds it.

    Attributes:
        errors: of the attention's output, [layers][candidates].
        effects: the divergence with one layer alone sparse, [probes][layers].
    """

    errors: list[list[float]]
    effects: list[list[float]]


@dataclass
class Measuring:
    """A model with what was measured on it; everything is measured once and kept in the journal.

    Attributes:
        expected: full attention's distributions on the passages to choose with.
    """

    reader: Reader
    candidates: Sequence[Candidate]
    journal: Journal
    expected: dict[Passage, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.count = len(self.reader.layers)
        self.dense = Plan((FULL,) * self.count)

    def fit(self, number: int, passage: Passage, probes: Sequence[int]) -> Fit:
        """What the `number`-th passage to fit with says; `probes` are candidates to run in one layer alone."""
        return self.journal.get(f"fit {number}", lambda: self._fit(passage, probes))

    def choose(self, plan: Plan, passages: Sequence[Passage]) -> list[float]:
        """A plan's divergence on every passage to choose with."""
        return self.journal.get(f"choose {_key(plan)}", lambda: self._divergences(plan, passages))

    def report(self, number: int, passage: Passage, plan: Plan, arms: Mapping[str, Plan]) -> dict[str, float]:
        """The divergence of every arm on the `number`-th passage of the report; the arms follow from the plan."""
        return self.journal.get(f"report {number} {_key(plan)}", lambda: self._report(passage, arms))

    def _fit(self, passage: Passage, probes: Sequence[int]) -> Fit:
        ids, positions = self.reader.ids(passage), thinned(passage.scored, FIT_POSITIONS)
        errors = torch.zeros(self.count, len(self.candidates), dtype=torch.float64)

        def observe(*call: Any) -> None:
            heads = Heads(*call)
            projection = getattr(self.reader.attention[heads.layer], "o_proj", None)
            errors[heads.layer] = output_errors(heads, self.candidates, projection)

        with self.reader.running(self.dense) as state, self.reader.outputs_kept() as kept:
            state.observer = observe
            expected = self.reader.log_probs(ids, positions)
            outputs = list(kept)
        effects = []
        for number in probes:
            effects.append(
                [self._alone(number, layer, ids, positions, expected, outputs) for layer in range(self.count)]
            )
        return {"errors": errors.tolist(), "effects": effects}

    def _alone(self, number: int, layer: int, ids: Tensor, positions: list[int], expected: Tensor, outputs) -> float:
        """The divergence with one candidate in one layer and full attention in all others."""
        variants = [*self.dense.variants]
        variants[layer] = self.candidates[number].variant
        with self.reader.running(Plan(tuple(variants))), self.reader.beginning_at(layer, outputs):
            return divergence(expected, self.reader.log_probs(ids, positions))

    def _divergences(self, plan: Plan, passages: Sequence[Passage]) -> list[float]:
        found = []
        for passage in passages:
            positions = thinned(passage.scored, CHOOSE_POSITIONS)
            ids = self.reader.ids(passage)
            with self.reader.running(plan):
                other = self.reader.log_probs(ids, positions)
            found.append(divergence(self._expected(passage, ids, positions), other))
        return found

    def _expected(self, passage: Passage, ids: Tensor, positions: list[int]) -> Tensor:
        """The full model's distributions on a passage to choose with, computed once."""
        if passage not in self.expected:
            self.expected[passage] = self.reader.log_probs(ids, positions)
        return self.expected[passage]

    def _report(self, passage: Passage, arms: Mapping[str, Plan]) -> dict[str, float]:
        ids, positions = self.reader.ids(passage), thinned(passage.scored, REPORT_POSITIONS)
        expected, found = self.reader.log_probs(ids, positions), {}
        for name, plan in arms.items():
            with self.reader.running(plan):
                found[name] = divergence(expected, self.reader.log_probs(ids, positions))
        return found


def _key(plan: Plan) -> str:
    return hashlib.sha256(repr(plan.variants).encode()).hexdigest()[:16]
