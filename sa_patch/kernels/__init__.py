"""The kernels by name, in order of preference for long sequences, and the choice between them."""

from importlib import import_module

from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.kernels.base import Kernel
from sa_patch.patterns import Pattern

# name -> (module, class); imported on first use, so that optional dependencies stay optional.
KERNELS = {
    "torch": ("sa_patch.kernels.torch_tiled", "TorchTiled"),
    "sdpa": ("sa_patch.kernels.sdpa", "Sdpa"),
    "reference": ("sa_patch.kernels.reference", "Reference"),
}

MASKED_BELOW = 1024
CROSSOVER_WINDOWS = 8


def get(name: str) -> Kernel:
    """The kernel of that name, which must be in the table (see `check_name`)."""
    module, attribute = KERNELS[name]
    return getattr(import_module(module), attribute)()


def explain(pattern: Pattern, query: Tensor, key: Tensor) -> tuple[str, str]:
    """The kernel `auto` takes for a pattern and why: (name, reason).

    The rules are measured; they choose a way to compute, never other keys.
    """
    if pattern.covers_all:
        return "sdpa", "the pattern is plain causal attention"
    refusal = get("torch").refusal(pattern, query, key)
    if refusal:
        return "sdpa", f"torch refuses: {refusal}"
    if pattern.query_len <= MASKED_BELOW:
        return "sdpa", f"a masked dense kernel is faster up to {MASKED_BELOW:,} tokens"
    return "torch", f"O(n w) beats a masked dense kernel beyond {MASKED_BELOW:,} tokens"


def select(requested: str, pattern: Pattern, query: Tensor, key: Tensor) -> Kernel:
    """The kernel to run.

    Raises:
        NotImplementedError: when the requested kernel (or, for "auto", every kernel) refuses the pattern.
    """
    name = explain(pattern, query, key)[0] if requested == "auto" else requested
    kernel = get(name)
    refusal = kernel.refusal(pattern, query, key)
    if refusal:
        raise NotImplementedError(
            f"kernel {name!r} can't run this {type(pattern).__name__} pattern: {refusal}. "
            "Use kernel='auto', or kernel='reference' for short sequences"
        )
    return kernel


def check_name(name: str) -> None:
    """Raise ValueError unless a kernel (or "auto") has that name."""
    if name != "auto" and name not in KERNELS:
        raise unknown("kernel", name, ["auto", *KERNELS])


def resolve_dense_below(dense_below: int | str, length: int, window: int) -> int:
    """`dense_below` in tokens; "crossover" is the length up to which sparse prefill is not faster than full."""
    return CROSSOVER_WINDOWS * window if dense_below == "crossover" else int(dense_below)


def describe(requested: str, dense_below: int | str, window: int | float) -> str:
    """Which kernel runs at which prompt length, in one line."""
    if requested != "auto":
        line = f"kernel {requested}, as asked for"
    else:
        line = f"kernel auto: sdpa (masked) up to {MASKED_BELOW:,} tokens, torch (O(n w)) beyond"
    if dense_below == "crossover":
        line += f"; full attention up to {CROSSOVER_WINDOWS} windows, where sparse is not faster"
    elif dense_below:
        line += f"; full attention up to {dense_below:,} tokens"
    return line
