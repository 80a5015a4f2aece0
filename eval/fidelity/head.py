"""The next-token distributions: the model's own head run on stored hidden states, a chunk of positions at a time.

[length, vocabulary] never exists: at 32K tokens and 152K words it would be 20 GB in float32. The model's own code does
the work (scaling, softcapping, biases), so nothing here knows an architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sa_eval.settings.values import SettingsError

LOGITS = 2**23  # logits at once; in float64, 64 MiB per tensor
KL, AGREE, NATS, NATS_FULL = range(4)  # rows of what `compare` returns


class Head:
    """A causal model taken apart: `states` runs everything below the head, `logits` the rest.

    Raises:
        SettingsError: when the two together are not what the model computes in one go.
    """

    def __init__(self, model: Any, probe: Tensor, chunk: int | None = None) -> None:
        self.model, self.backbone = model, model.base_model
        self._token = probe[:, :1]
        self._kind: Any = None  # of what the backbone returns
        if self.backbone is model:
            raise SettingsError(
                f"{type(model).__name__} has no head of its own: fidelity needs a causal language model"
            )
        direct = model(input_ids=probe, use_cache=False).logits
        apart = self.logits(self.states(probe))
        if apart.shape != direct.shape[1:] or not torch.allclose(apart, direct[0], rtol=1e-3, atol=1e-3):
            raise SettingsError(
                f"the head of {type(model).__name__} gives other logits on stored hidden states than in the model: "
                "fidelity cannot measure this model"
            )
        self.chunk = chunk or max(1, LOGITS // direct.shape[-1])

    def states(self, ids: Tensor) -> Tensor:
        """Final hidden states [1, length, width] of ids [1, length]."""
        output = self.backbone(input_ids=ids, use_cache=False)
        self._kind = type(output)
        return output.last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """[positions, vocabulary] of states [1, positions, width]."""
        answer = self._kind(last_hidden_state=states)
        with _answering(self.backbone, lambda *_, **__: answer):
            return self.model(input_ids=self._token, use_cache=False).logits[0]

    def compare(self, full: Tensor, arm: Tensor, ids: Tensor) -> np.ndarray:
        """What the arm changes about every prediction of a passage.

        Args:
            full, arm: final hidden states [1, length, width]; ids: [1, length].

        Returns:
            float64 [4, length - 1]: KL(full || arm) in nats, 1 where both prefer the same token, and what the token
            that really follows costs in nats, in the arm and in full.
        """
        parts, last = [], ids.shape[1] - 1
        for start in range(0, last, self.chunk):
            stop = min(start + self.chunk, last)
            expected, found = (_log_softmax(self.logits(states[:, start:stop])) for states in (full, arm))
            follows = ids[0, start + 1 : stop + 1, None].to(found.device)
            parts.append(
                torch.stack(
                    [
                        kl(expected, found),
                        (expected.argmax(-1) == found.argmax(-1)).to(expected.dtype),
                        -found.gather(-1, follows)[:, 0],
                        -expected.gather(-1, follows)[:, 0],
                    ]
                ).cpu()
            )
        rows = torch.cat(parts, dim=1).double().numpy()
        if np.isnan(rows).any():
            raise ValueError("the logits hold NaN: the model's numbers do not fit this dtype (see --dtype)")
        return rows


def kl(expected: Tensor, found: Tensor) -> Tensor:
    """KL(expected || found) of log-probabilities [..., vocabulary], in nats, never below 0; 0 log 0 is 0."""
    share = expected.exp()
    terms = torch.where(share > 0, share * (expected - found), 0.0)
    return terms.sum(-1).clamp(min=0)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float64: what differs is the model's own rounding, not ours. MPS has no float64."""
    return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).log_softmax(-1)


@contextlib.contextmanager
def _answering(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module answer with `forward`; what it was called with before (accelerate sets it, too) comes back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
