"""The optimizers of a run: AdamW for everything, or Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

GATES = ("gate_swa", "gate_sa")
BETAS = (0.9, 0.95)


class Together(Optimizer):
    """Several optimizers, each with parameters of its own, as one: a schedule sees the groups of all."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([parameter for group in groups for parameter in group["params"]], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def make_optimizer(name: str, model: nn.Module, rate: float, weight_decay: float) -> Optimizer:
    """
    Args:
        name: "muon": the layers' matrices get orthogonalised updates (Jordan 2024), scaled so that they move a weight
            as far as AdamW does at the same rate (Liu and others 2025, arXiv 2502.16982); embeddings, norms and gates
            get AdamW's. "adamw": all get AdamW's.
    """
    if name == "adamw":
        return AdamW(_decayed(model.parameters(), weight_decay), lr=rate, betas=BETAS)
    matrices = [
        part.weight
        for path, part in model.named_modules()
        if isinstance(part, nn.Linear) and path.rsplit(".", 1)[-1] not in ("lm_head", *GATES)
    ]
    own = {id(weight) for weight in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    return Together(
        Muon(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(_decayed(rest, weight_decay), lr=rate, betas=BETAS),
    )


def _decayed(parameters: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    listed = list(parameters)
    return [
        {"params": [one for one in listed if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in listed if one.ndim < 2], "weight_decay": 0.0},
    ]
