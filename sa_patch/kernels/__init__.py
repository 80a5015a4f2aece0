"""The kernels by name, in order of preference for long sequences, and the choice between them."""

from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.kernels.base import Kernel
from sa_patch.kernels.rules import rules_for
from sa_patch.patterns import Band, Pattern, Pieces

# name -> (module, class); imported on first use, so that optional dependencies stay optional.
KERNELS = {
    "torch": ("sa_patch.kernels.pytorch.kernel", "TorchTiled"),
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


def choose(pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The kernel `auto` takes. The rules are measured; they choose a way to compute, never other keys."""
    rules = rules_for(query.device.type)
    limit = rules.masked_below_merged if pattern.sinks or pattern.local else rules.masked_below
    few = pattern.query_len * pattern.length <= limit**2 and pattern.length <= rules.masked_keys
    if few or pattern.covers_all or get(rules.beyond).refusal(pattern, query, key, value):
        return "sdpa"
    return rules.beyond


def select(requested: str, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> Kernel:
    """The kernel to run.

    Raises:
        NotImplementedError: when the requested kernel (or, for "auto", every kernel) refuses the pattern.
    """
    name = choose(pattern, query, key, value) if requested == "auto" else requested
    kernel = get(name)
    refusal = kernel.refusal(pattern, query, key, value)
    if refusal:
        raise NotImplementedError(
            f"kernel {name!r} can't run this {type(pattern).__name__} pattern: {refusal}. "
            "Use kernel='auto', or kernel='reference' for short sequences"
        )
    return kernel


def execute(requested: str, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
    """Run a pattern, piece by piece where it is cut into pieces: [batch, heads, query_len, head_dim].

    Raises:
        NotImplementedError: when the requested kernel refuses the pattern.
    """
    if not isinstance(pattern, Pieces):
        return select(requested, pattern, query, key, value)(query, key, value, pattern, scaling)
    outputs = []
    for piece in pattern.pieces:
        rows = query[:, :, piece.first - pattern.first : piece.length - pattern.first]
        seen = key[:, :, : piece.length], value[:, :, : piece.length]
        outputs.append(execute(requested, rows, *seen, piece, scaling))
    return torch.cat(outputs, dim=2)


def check_name(name: str) -> None:
    """Raise ValueError unless a kernel (or "auto") has that name."""
    if name != "auto" and name not in [*KERNELS]:
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
    reasons = {name: get(name).refusal(pattern, nothing, nothing, nothing) for name in KERNELS}
    return {name: reason for name, reason in reasons.items() if reason and not pattern.covers_all}
