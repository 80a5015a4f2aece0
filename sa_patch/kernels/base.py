"""What a kernel is, and what several kernels ask.

Kernels know patterns, never variants, and never import each other.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sa_patch.patterns import Pattern


class Kernel(Protocol):
    """Computes patterns on a batch of equally long, unpadded sequences.

    `execute` runs full attention itself: no kernel but the reference gets a pattern that covers all.

    Attributes:
        masks: it computes with the whole mask, dense tail included. All others get patterns without a tail, and
            `execute` replaces what they return for the tail's queries.
        joins: it computes `Pieces` in one go, those that it does not refuse. To all others `execute` gives the pieces.
    """

    masks: bool
    joins: bool

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        """Why this kernel can't run the pattern on these tensors; None when it can."""
        ...

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        """Attention to the keys that the pattern shows.

        Args:
            query: [batch, heads, query_len, head_dim], after position embedding.
            key, value: [batch, kv_heads, length, head_dim]; heads is a multiple of kv_heads.
            scaling: factor on the scores, usually head_dim ** -0.5.

        Returns:
            [batch, heads, query_len, head_dim] in query's dtype.
        """
        ...


@runtime_checkable
class Sized(Kernel, Protocol):
    """A kernel whose sizes are a matter of the device: `sa_patch.tune` tries others."""

    def candidates(self, head_dim: int, dtype: torch.dtype) -> list[tuple[int, ...]]:
        """Sizes that may be faster on some device."""
        ...

    def sized(self, sizes: tuple[int, ...]) -> Kernel:
        """The kernel with these sizes."""
        ...


def needs_gradients(*tensors: Tensor) -> bool:
    """True when autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def refusal_without_code(pattern: Pattern, *kinds: type[Pattern]) -> str | None:
    """Why a kernel with code for some kinds of patterns, unweighted, can't run this one; None when it can."""
    if pattern.weight:
        return "it has no code for weights of sampled keys: use kernel='torch'"
    return None if isinstance(pattern, kinds) else f"it has no code for {type(pattern).__name__} patterns"


def refusal_of_float64(*tensors: Tensor) -> str | None:
    """Why a kernel that computes in float32 can't take these tensors; None when it can."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return "it computes in float32: use kernel='torch' for float64" if wide else None


def refusal_of_inference_only(*tensors: Tensor) -> str | None:
    """Why a kernel without a backward pass, computing in float32, can't take these tensors; None when it can."""
    wide = refusal_of_float64(*tensors)
    if wide:
        return wide
    if needs_gradients(*tensors):
        return "it has no gradients: use kernel='torch', or torch.no_grad()"
    return None
