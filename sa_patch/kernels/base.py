"""What a kernel is. Kernels know patterns, never the names of variants, and never import each other.

Imports torch and the patterns only.
"""

from typing import Protocol

from torch import Tensor

from sa_patch.patterns import Pattern


class Kernel(Protocol):
    """Executes patterns on one group of equally long, unpadded sequences."""

    name: str

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        """Why this kernel can't run the pattern on these tensors; None when it can."""
        ...

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        """Attention over what the pattern shows.

        Args:
            query: [batch, heads, query_len, head_dim], after position embedding.
            key, value: [batch, kv_heads, length, head_dim]; heads is a multiple of kv_heads.
            scaling: factor on the scores, usually head_dim ** -0.5.

        Returns:
            [batch, heads, query_len, head_dim] in query's dtype.
        """
        ...
