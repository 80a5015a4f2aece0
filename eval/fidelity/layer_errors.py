"""What is measured inside the layers: errors of the attention's output and of the residual stream, and how much of
full attention's mass an arm keeps.

Errors come twice. Isolated: the arm's attention on the queries, keys and values of the full model, so every layer
answers for itself. Accumulated: in the patched model, where each layer also gets what the layers before it got wrong.
Memory is O(length) besides chunks: scores exist for a few queries at a time, and long passages are looked at in PROBED
positions only, drawn once per length, the same for every arm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sa_patch
from sa_eval.fidelity import buckets
from sa_eval.fidelity.probe import Call
from sa_patch.forward import is_dense
from sa_patch.geometry import Group
from sa_patch.patterns import Dense

PROBED = 512  # positions of a passage where layers are looked at; all of them in shorter passages
SCORES = 2**23  # attention scores at once
ISOLATED, ATTENTION, RESIDUAL = range(3)  # kinds of error
DIFFERENCE, NORM = range(2)  # squared, summed
MASS, KEPT = range(2)


@dataclass(frozen=True)
class Attending:
    """How an arm with one seed attends: a variant per layer. `variants` None is the model's own attention."""

    variants: Sequence[Any] | None
    kernel: str
    num_layers: int

    def of(self, layer: int) -> Any:
        return None if self.variants is None else self.variants[layer]


@dataclass(frozen=True)
class LayerSums:
    """Sums over the probed positions of passages; plain addition joins passages, and averages seeds.

    Attributes:
        errors: [layers, position buckets, kinds, 2], squared differences and squared norms.
        mass: [layers, distance buckets + 1, 2], attention mass of the full model and the part of it that the arm sees;
            the last bucket is the first SINKS keys, wherever they are.
        mass_by_position: [layers, position buckets, 2].
    """

    errors: np.ndarray
    mass: np.ndarray
    mass_by_position: np.ndarray

    @classmethod
    def empty(cls, num_layers: int, length: int) -> LayerSums:
        positions, distances = buckets.num_position_buckets(length), buckets.num_distance_buckets(length)
        return cls(
            np.zeros((num_layers, positions, 3, 2)),
            np.zeros((num_layers, distances + 1, 2)),
            np.zeros((num_layers, positions, 2)),
        )

    def add_error(self, layer: int, kind: int, positions: np.ndarray, found: Tensor, expected: Tensor) -> None:
        """Count an error at the given positions; found, expected: [positions, ...]."""
        difference = (found.float() - expected.float()).flatten(1).square().sum(1)
        norm = expected.float().flatten(1).square().sum(1)
        both = torch.stack([difference, norm], dim=1).cpu().double().numpy()
        np.add.at(self.errors[layer, :, kind], buckets.position_bucket(positions + 1), both)

    def add_mass(self, layer: int, positions: np.ndarray, seen: np.ndarray, whole: np.ndarray) -> None:
        """Count mass; seen, whole: [positions, distance buckets + 1]."""
        both = np.stack([whole, seen], axis=-1)
        self.mass[layer, : both.shape[1] - 1] += both[:, :-1].sum(0)
        self.mass[layer, -1] += both[:, -1].sum(0)
        np.add.at(self.mass_by_position[layer], buckets.position_bucket(positions + 1), both.sum(1))


def positions_to_probe(length: int) -> np.ndarray:
    """One position drawn from each of PROBED equal stretches, ascending; all positions of a short passage.

    Drawn, because evenly spaced ones would meet blocks always at the same offset.
    """
    if length <= PROBED:
        return np.arange(length)
    edges = np.linspace(0, length, PROBED + 1).astype(np.int64)
    return np.random.default_rng(length).integers(edges[:-1], edges[1:])


class Watch:
    """Looks at the layers of one passage: first while the full model reads it, then while each patched model does."""

    def __init__(self, length: int, attending: Sequence[Attending], sums: Sequence[LayerSums]) -> None:
        self.positions = positions_to_probe(length)
        self._attending, self._sums = attending, sums
        self._outputs: dict[int, Tensor] = {}
        self._residuals: dict[int, Tensor] = {}
        self._arm = 0

    def full_call(self, call: Call) -> None:
        expected = self._outputs[call.layer] = self._at(call.output)
        for attending, sums in zip(self._attending, self._sums, strict=True):
            found = call.output if attending.variants is None else _attention(call, attending)
            sums.add_error(call.layer, ISOLATED, self.positions, self._at(found), expected)
        masses = kept_mass(call, self.positions, self._attending)
        for sums, (seen, whole) in zip(self._sums, masses, strict=True):
            sums.add_mass(call.layer, self.positions, seen, whole)

    def full_layer(self, layer: int, residual: Tensor) -> None:
        self._residuals[layer] = self._at(residual)

    def choose(self, arm: int) -> None:
        """From here on the model runs this one of the arms."""
        self._arm = arm

    def arm_call(self, call: Call) -> None:
        expected = self._outputs[call.layer]
        self._sums[self._arm].add_error(call.layer, ATTENTION, self.positions, self._at(call.output), expected)

    def arm_layer(self, layer: int, residual: Tensor) -> None:
        expected = self._residuals[layer]
        self._sums[self._arm].add_error(layer, RESIDUAL, self.positions, self._at(residual), expected)

    def _at(self, tensor: Tensor) -> Tensor:
        return tensor[torch.from_numpy(self.positions).to(tensor.device)]


def _attention(call: Call, attending: Attending) -> Tensor:
    """The arm's attention on these queries, keys and values: [length, heads, head_dim]."""
    output = sa_patch.attention(
        call.query,
        call.key,
        call.value,
        attending.of(call.layer),
        layer_idx=call.layer,
        num_layers=attending.num_layers,
        kernel=attending.kernel,
        scaling=call.scaling,
    )
    return output[0].transpose(0, 1)


def kept_mass(
    call: Call, positions: np.ndarray, attending: Sequence[Attending], scores: int = SCORES
) -> list[tuple[np.ndarray, np.ndarray]]:
    """How much of full attention's mass every arm sees, at the given positions.

    Returns:
        per arm (seen, whole), float64 [positions, distance buckets + 1]: softmax weights of full attention summed over
        keys, averaged over heads; seen counts the keys that the arm shows. The last bucket is the first SINKS keys.
    """
    length, heads = call.query.shape[2], call.query.shape[1]
    patterns = [_pattern(call, one) for one in attending]
    count = buckets.num_distance_buckets(length)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in attending]
    for rows in torch.from_numpy(positions).to(call.query.device).split(max(1, scores // (heads * length))):
        weights = _weights(call, rows)
        mean = weights.mean(0)
        whole = _by_distance(mean, rows, count)
        for parts, pattern in zip(found, patterns, strict=True):
            visible = pattern.visible(rows)[..., : weights.shape[2]]
            # [rows, keys], or [1, heads, rows, keys] where content decides
            seen = mean * visible if visible.dim() == 2 else (weights * visible[0]).mean(0)
            parts.append((_by_distance(seen, rows, count), whole))
    return [(_joined(seen for seen, _ in parts), _joined(whole for _, whole in parts)) for parts in found]


def _joined(parts: Iterable[Tensor]) -> np.ndarray:
    return torch.cat(list(parts)).cpu().double().numpy()


def _weights(call: Call, rows: Tensor) -> Tensor:
    """Full attention's weights of some queries, ascending: float32 [heads, rows, keys], keys up to the last query."""
    heads, kv_heads, seen = call.query.shape[1], call.key.shape[1], int(rows[-1]) + 1
    query = call.query[0, :, rows].float().reshape(kv_heads, -1, call.query.shape[-1])
    scores = (query @ call.key[0, :, :seen].float().transpose(-1, -2) * call.scaling).reshape(heads, len(rows), seen)
    later = torch.arange(seen, device=rows.device) > rows[:, None]
    return scores.masked_fill_(later, -torch.inf).softmax(-1)


def _by_distance(weights: Tensor, rows: Tensor, count: int) -> Tensor:
    """Weights [rows, keys] summed by bucket of distance, the first SINKS keys apart: [rows, count + 1]."""
    distance = torch.arange(weights.shape[1], device=rows.device)
    late = weights.clone()
    late[:, : buckets.SINKS] = 0
    # Keys in order of their distance: then a bucket is a slice. Before the text there is key 0, which counts as 0 here.
    late = late.gather(1, (rows[:, None] - distance).clamp(min=0))
    ranges = map(buckets.distance_range, range(count))
    sums = [late[:, low : high + 1].sum(1) for low, high in ranges]
    return torch.stack([*sums, weights[:, : buckets.SINKS].sum(1)], dim=1)


def _pattern(call: Call, attending: Attending) -> Any:
    """Who sees whom when the arm reads this passage."""
    length, device = call.query.shape[2], call.query.device
    group, variant = Group(length, length, device), attending.of(call.layer)
    if variant is None or is_dense(variant, length, call.layer, attending.num_layers, device, call.query.dtype):
        return Dense(length=length, query_len=length)
    return variant.sparse_pattern(group, call.layer, call.query, call.key)
