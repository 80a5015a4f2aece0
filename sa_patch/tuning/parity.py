"""How far a kernel may be from the reference: the bound that every kernel is held to."""

import torch
from torch import Tensor

from sa_patch import kernels
from sa_patch.patterns import Pattern


def exact_output(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
    """What the reference gives in float64."""
    return kernels.execute("reference", query.double(), key.double(), value.double(), pattern, scaling)


def allowed_error(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float, exact: Tensor | None = None
) -> float:
    """Twice the error of plain PyTorch in the same dtype, plus the roundings of parts and of the output."""
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    mask = pattern.visible().to(query.device)
    scores = (query @ keys.transpose(-1, -2) * scaling).masked_fill(~mask, -torch.inf)
    scores = scores + pattern.raised().to(scores)
    plain = scores.softmax(-1) @ values
    exact = exact_output(query, key, value, pattern, scaling) if exact is None else exact
    rounding = torch.finfo(query.dtype).eps * float(exact.abs().max())
    return 2 * float((plain - exact).abs().max()) + 2 * rounding


def error(output: Tensor, exact: Tensor) -> float:
    """The largest difference from the reference; infinite when the output holds NaN."""
    return float("inf") if bool(output.isnan().any()) else float((output - exact).abs().max())
