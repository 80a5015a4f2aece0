"""The table of kernels, the choice between them, and running one."""

from dataclasses import replace
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.kernels.base import Kernel
from sa_patch.kernels.dense import causal
from sa_patch.kernels.rules import rules_for
from sa_patch.patterns import Band, Pattern, Pieces

# name -> (module, class); imported on first use, so that optional dependencies stay optional.
KERNELS = {
    "torch": ("sa_patch.kernels.pytorch.kernel", "Torch"),
    "triton": ("sa_patch.kernels.triton.kernel", "Triton"),
    "flash": ("sa_patch.kernels.flash.kernel", "Flash"),
    "flex": ("sa_patch.kernels.flex.kernel", "Flex"),
    "sdpa": ("sa_patch.kernels.sdpa", "Sdpa"),
    "reference": ("sa_patch.kernels.reference", "Reference"),
}


@lru_cache(maxsize=len(KERNELS))
def get(name: str) -> Kernel:
    """The kernel of that name, which must be in the table (see `check_name`). Kernels have no state."""
    module, attribute = KERNELS[name]
    return getattr(import_module(module), attribute)()


def choose(requested: str, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> Kernel:
    """The kernel to run: the requested one, or for "auto" the first that takes the pattern.

    Raises:
        NotImplementedError: when the requested kernel (or, for "auto", every kernel) refuses the pattern.
    """
    name, refusal = requested, None
    for name in _measured(pattern, query.device) if requested == "auto" else [requested]:
        kernel = get(name)
        refusal = kernel.refusal(pattern, query, key, value)
        if refusal is None:
            return kernel
    raise NotImplementedError(
        f"kernel {name!r} can't run this {type(pattern).__name__} pattern: {refusal}. "
        "Use kernel='auto', or kernel='reference' for short sequences"
    )


def _measured(pattern: Pattern, device: torch.device) -> list[str]:
    """What `auto` tries, in this order. The rules are measured; they choose a way to compute, never other keys."""
    rules = rules_for(device.type)
    limit = rules.masked_below_merged if pattern.sinks or pattern.local else rules.masked_below
    few = pattern.query_len * pattern.length <= limit**2 and pattern.length <= rules.masked_keys
    return ["sdpa"] if few else [rules.beyond, "sdpa"]


def execute(requested: str, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
    """Attention to the keys that a pattern shows, dense parts included: [batch, heads, query_len, head_dim].

    Raises:
        NotImplementedError: when the requested kernel refuses the pattern.
    """
    if isinstance(pattern, Pieces):
        whole = get(_measured(pattern, query.device)[0] if requested == "auto" else requested)
        if whole.joins and whole.refusal(pattern, query, key, value) is None:
            return whole(query, key, value, pattern, scaling)
        outputs = []
        for piece in pattern.pieces:
            rows = query[:, :, piece.first - pattern.first : piece.length - pattern.first]
            seen = key[:, :, : piece.length], value[:, :, : piece.length]
            outputs.append(execute(requested, rows, *seen, piece, scaling))
        return torch.cat(outputs, dim=2)
    # The reference takes no short cut, because the others are compared with it.
    if pattern.covers_all and requested != "reference":
        return causal(query, key, value, scaling)
    kernel = choose(requested, pattern, query, key, value)
    if not pattern.tail or kernel.masks:
        return kernel(query, key, value, pattern, scaling)
    output = kernel(query, key, value, replace(pattern, tail=0), scaling)
    tail = causal(query[:, :, -pattern.tail :], key, value, scaling)
    return torch.cat([output[:, :, : -pattern.tail], tail], dim=2)


def check_name(name: str) -> None:
    """Raise ValueError unless a kernel (or "auto") has that name."""
    if name != "auto" and name not in [*KERNELS]:  # a list: `name` may be anything
        raise unknown("kernel", name, ["auto", *KERNELS])


def crossover(layout: str, window: int, device: torch.device) -> int:
    """The prompt length up to which sparse prefill is not faster than full attention.

    Args:
        layout: how the visible keys lie in memory, a key of `Rules.crossover`.

    Raises:
        NotImplementedError: on devices where it was not measured.
    """
    measured = rules_for(device.type).crossover
    if measured is None:
        raise NotImplementedError(
            f"dense_below='crossover' has not been measured on {device.type!r} devices: give a number of tokens"
        )
    windows, tokens = measured[layout]
    return max(windows * window, tokens)


def describe(requested: str, merged: bool, device: torch.device) -> str:
    """Which kernel runs at which prompt length and why, in one line.

    Args:
        merged: the patterns have sinks or a local window.
    """
    if requested != "auto":
        return f"kernel {requested}, as asked for"
    rules = rules_for(device.type)
    limit = rules.masked_below_merged if merged else rules.masked_below
    return f"kernel auto: sdpa with a mask up to {limit} tokens, {rules.beyond}, O(n w), beyond: {rules.source}"


def refusals(length: int, device: torch.device) -> dict[str, str]:
    """The kernels that refuse prompts of this length on this device, and why."""
    pattern, nothing = Band(length=length, query_len=length, width=1), torch.empty(0, device=device)
    if pattern.covers_all:
        return {}
    reasons = {name: get(name).refusal(pattern, nothing, nothing, nothing) for name in KERNELS}
    return {name: reason for name, reason in reasons.items() if reason}
