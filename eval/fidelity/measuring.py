"""The measurement of one arm at one length: passages read by the full model and by the patched one, side by side.

Per passage one pass of the full model, shared by the arm's seeds, and one of the patched model per seed. What is kept
are sums per bucket; no hidden state outlives its passage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sa_eval.budgets import measured_budget
from sa_eval.fidelity import buckets
from sa_eval.fidelity.head import Head
from sa_eval.fidelity.layer_errors import Attending, LayerSums, Watch
from sa_eval.fidelity.probe import Probe
from sa_eval.fidelity.texts import Cut, Passage
from sa_eval.records.types import MeasuredBudget
from sa_eval.settings.arm import Arm
from sa_eval.settings.values import SettingsError

FEW = 16  # tokens for finding out how a model is built
COUNT = 4  # column of token sums after the four of head.compare


@dataclass(frozen=True)
class Subject:
    """A loaded model, taken apart."""

    model: Any
    head: Head
    probe: Probe

    @classmethod
    def of(cls, model: Any, passage: Passage, chunk: int | None = None) -> Subject:
        few = _ids(passage, model)[:, :FEW]
        with torch.inference_mode():
            head = Head(model, few, chunk)
            return cls(model, head, Probe(model, head.states, few))


@dataclass(frozen=True)
class TokenSums:
    """Sums over the predictions of one passage, per bucket: [buckets, 5], head.compare's rows and the count.

    Attributes:
        position: all predictions, by tokens read.
        distance: the scored ones, by how far back the token could be copied from; the last bucket is nowhere.
    """

    position: np.ndarray
    distance: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        return self.distance.sum(0)


@dataclass(frozen=True)
class ArmAtLength:
    """What was measured of one arm at one length.

    Attributes:
        tokens: by seed, by passage.
        layers: by seed, all passages together.
    """

    arm: Arm
    cut: Cut
    budget: MeasuredBudget
    tokens: tuple[tuple[TokenSums, ...], ...]
    layers: tuple[LayerSums, ...]


def measure(subject: Subject, arm: Arm, cut: Cut, advance: Callable[[str, int], None]) -> ArmAtLength:
    """Everything about one arm at one length; the model is as before afterwards, also after an exception.

    Args:
        advance: told what comes next, and how many tokens were read since the last time.
    """
    attending, budget = _bind(subject, arm, cut)
    layers = tuple(LayerSums.empty(subject.probe.num_layers, cut.length) for _ in arm.seeds)
    tokens: list[list[TokenSums]] = [[] for _ in arm.seeds]
    for number, passage in enumerate(cut.passages, start=1):
        advance(f"{arm.name} · {passage.text} {number}/{len(cut.passages)}", 0)
        ids, watch = _ids(passage, subject.model), Watch(len(passage.ids), attending, layers)
        with torch.inference_mode():
            full = subject.probe.read(ids, watch.full_call, watch.full_layer)
            advance("", len(passage.ids))
            for turn, seed in enumerate(arm.seeds):
                watch.choose(turn)
                found = subject.head.compare(full, _patched(subject, arm, seed, ids, watch), ids)
                tokens[turn].append(token_sums(found, passage, cut.length))
                advance("", len(passage.ids))
    return ArmAtLength(arm, cut, budget, tuple(map(tuple, tokens)), layers)


def _bind(subject: Subject, arm: Arm, cut: Cut) -> tuple[list[Attending], MeasuredBudget]:
    """How the arm attends with each of its seeds, and its budget on these passages."""
    attending: list[Attending] = []
    budget: MeasuredBudget | None = None
    for seed in arm.seeds:
        patch = arm.apply(subject.model, seed)
        try:
            variants, kernel = (None, arm.kernel) if patch is None else (patch.plan.variants, patch.kernel)
            attending.append(Attending(variants, kernel, subject.probe.num_layers))
            budget = budget or measured_budget(patch, [len(passage.ids) for passage in cut.passages])
        finally:
            if patch is not None:
                patch.restore()
    assert budget is not None  # every arm has a seed
    return attending, budget


def _patched(subject: Subject, arm: Arm, seed: int, ids: torch.Tensor, watch: Watch) -> torch.Tensor:
    """Final hidden states of the patched model; the full arm runs the model's own attention once more."""
    patch = arm.apply(subject.model, seed)
    try:
        return subject.probe.read(ids, watch.arm_call, watch.arm_layer)
    finally:
        if patch is not None:
            patch.restore()


def token_sums(found: np.ndarray, passage: Passage, length: int) -> TokenSums:
    """Sums per bucket of what head.compare found about a passage [4, predictions]."""
    rows = np.concatenate([found, np.ones((1, found.shape[1]))]).T
    read = np.arange(1, len(passage.ids))
    distance = buckets.copy_distances(passage.ids)
    nowhere = buckets.num_distance_buckets(length)
    far = np.where(distance < 0, nowhere, buckets.distance_bucket(np.maximum(distance, 0)))
    scored = slice(None) if passage.answers is None else np.array(passage.answers[1:])
    return TokenSums(
        _sums(rows, buckets.position_bucket(read), buckets.num_position_buckets(length)),
        _sums(rows[scored], far[scored], nowhere + 1),
    )


def _sums(rows: np.ndarray, bucket: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, bucket, rows)
    return sums


def _ids(passage: Passage, model: Any) -> torch.Tensor:
    largest, rows = max(passage.ids), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise SettingsError(
            f"text {passage.text} gives token {largest}, the model has {rows} embeddings: the tokenizer belongs to "
            "another model"
        )
    # Weights that accelerate keeps elsewhere are on no device; its hooks bring the ids to where they are needed.
    return torch.tensor([passage.ids], device="cpu" if model.device.type == "meta" else model.device)
