"""What a layer's attention output loses under every candidate, on sampled queries of a dense pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sa_patch.calibration.candidates import Candidate
from sa_patch.calibration.reading import Heads
from sa_patch.geometry import Group
from sa_patch.variants import Variant

CHUNK, CHUNKS = 16, 4  # consecutive queries, and how many stretches of them


def output_errors(heads: Heads, candidates: Sequence[Candidate], projection: nn.Module | None) -> Tensor:
    """Mean squared change of the projected attention output, float64 [candidates].

    Args:
        projection: the layer's output projection; None compares the heads' outputs themselves.
    """
    length = heads.query.shape[2]
    errors = torch.zeros(len(candidates), dtype=torch.float64)
    starts = _starts(length)
    for start in starts:
        stop = start + CHUNK
        weights = _scores(heads, start, stop)
        full = _output(heads, weights, stop)
        for number, candidate in enumerate(candidates):
            if candidate.variant.always_dense:
                continue
            seen = _visible(candidate.variant, heads, start, stop)
            found = _output(heads, weights.masked_fill(~seen, -torch.inf), stop)
            change = (found - full).transpose(1, 2).flatten(2)
            if projection is not None:
                change = _project(change, projection, heads.query.dtype)
            errors[number] += float(change.double().square().mean()) / len(starts)
    return errors


def _starts(length: int) -> list[int]:
    """Multiples of CHUNK, evenly over the last three quarters."""
    first, last = length // 4, length - CHUNK
    places = {(first + (last - first) * turn // (CHUNKS - 1)) // CHUNK * CHUNK for turn in range(CHUNKS)}
    return sorted(places)


def _scores(heads: Heads, start: int, stop: int) -> Tensor:
    """Causal scores of the queries start..stop-1: [1, heads, rows, stop]."""
    group = heads.query.shape[1] // heads.key.shape[1]
    keys = heads.key[:, :, :stop].repeat_interleave(group, dim=1).float()
    scores = heads.query[:, :, start:stop].float() @ keys.transpose(-1, -2) * heads.scaling
    position = torch.arange(stop, device=scores.device)
    return scores.masked_fill(position > position[start:stop, None], -torch.inf)


def _output(heads: Heads, scores: Tensor, stop: int) -> Tensor:
    values = heads.value[:, :, :stop].float()
    weights = scores.softmax(-1).unflatten(1, (values.shape[1], -1))
    return (weights @ values[:, :, None]).flatten(1, 2)


def _visible(variant: Variant, heads: Heads, start: int, stop: int) -> Tensor:
    """Which of the keys 0..stop-1 the queries start..stop-1 see: bool, broadcastable to [1, heads, rows, stop]."""
    length, device = heads.query.shape[2], heads.query.device
    if variant.piece_reason(start) is None:  # what a piece sees is what it sees of the whole
        group = Group(stop, stop - start, device)
        keys = heads.key[:, :, :stop]
        return variant.sparse_pattern(group, heads.layer, heads.query[:, :, start:stop], keys).visible()
    pattern = variant.sparse_pattern(Group(length, length, device), heads.layer, heads.query, heads.key)
    return pattern.visible(torch.arange(start, stop, device=device))[..., :stop]


def _project(output: Tensor, projection: nn.Module, dtype: torch.dtype) -> Tensor:
    """Without the bias, which cancels in a difference."""
    found, bias = projection(output.to(dtype)), projection.bias
    return found if bias is None else found - bias
