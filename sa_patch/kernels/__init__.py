"""The kernels by name, in order of preference for long sequences, and the choice between them."""

from importlib import import_module

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.kernels.base import Kernel
from sa_patch.patterns import Band, Pattern, Pieces

# name -> (module, class); imported on first use, so that optional dependencies stay optional.
KERNELS = {
    "torch": ("sa_patch.kernels.torch_tiled", "TorchTiled"),
    "triton": ("sa_patch.kernels.triton_tiled", "Triton"),
    "flash": ("sa_patch.kernels.flash", "Flash"),
    "flex": ("sa_patch.kernels.flex", "Flex"),
    "sdpa": ("sa_patch.kernels.sdpa", "Sdpa"),
    "reference": ("sa_patch.kernels.reference", "Reference"),
}

# Measured on one core of a 2-core x86 CPU in float32 (8 heads, 2 kv heads, head_dim 64) with benchmarks/attention.py.
# Up to this many tokens (squared: scores) one masked dense call beats O(n w) tiles; the second number is for patterns
# with sinks or a local window, whose parts have to be merged. With few queries, only up to this many keys.
MASKED_BELOW, MASKED_BELOW_MERGED = 256, 512
MASKED_KEYS = 2048
# Sparse prefill is not faster than full up to max(windows x window, tokens), by how a variant's keys lie in memory.
CROSSOVER = {"window": (4, 384), "buckets": (4, 384), "permuted": (7, 448), "routed": (9, 1536), "merged": (9, 1536)}
CROSSOVER["scattered"] = (80, 2048)  # every query's keys are gathered


def get(name: str) -> Kernel:
    """The kernel of that name, which must be in the table (see `check_name`)."""
    module, attribute = KERNELS[name]
    return getattr(import_module(module), attribute)()


def choose(pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The kernel `auto` takes. The rules are measured; they choose a way to compute, never other keys."""
    if pattern.covers_all or get("torch").refusal(pattern, query, key, value):
        return "sdpa"
    limit = MASKED_BELOW_MERGED if pattern.sinks or pattern.local else MASKED_BELOW
    few = pattern.query_len * pattern.length <= limit**2 and pattern.length <= MASKED_KEYS
    return "sdpa" if few else "torch"


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
        layout: how the visible keys lie in memory, a key of `CROSSOVER`.

    Raises:
        NotImplementedError: on devices where it was not measured.
    """
    if device.type != "cpu":
        raise NotImplementedError(
            f"dense_below='crossover' has not been measured on {device.type!r} devices: give a number of tokens"
        )
    windows, tokens = CROSSOVER[layout]
    return max(windows * window, tokens)


def describe(requested: str, merged: bool) -> str:
    """Which kernel runs at which prompt length, in one line.

    Args:
        merged: the patterns have sinks or a local window.
    """
    if requested != "auto":
        return f"kernel {requested}, as asked for"
    limit = MASKED_BELOW_MERGED if merged else MASKED_BELOW
    return f"kernel auto: sdpa with a mask up to {limit} tokens, torch, O(n w), beyond: measured to be faster there"


def refusals(length: int, device: torch.device) -> dict[str, str]:
    """The kernels that refuse prompts of this length on this device, and why."""
    pattern, nothing = Band(length=length, query_len=length, width=1), torch.empty(0, device=device)
    reasons = {name: get(name).refusal(pattern, nothing, nothing, nothing) for name in KERNELS}
    return {name: reason for name, reason in reasons.items() if reason and not pattern.covers_all}
