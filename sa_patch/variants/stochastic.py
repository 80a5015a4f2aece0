"""`sa` and `sa+swa`: stochastic attention (arXiv 2604.00754) and its training-free union with a sliding window."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sa_patch.budget import LayerBudget, matched_width
from sa_patch.errors import unknown
from sa_patch.geometry import Group
from sa_patch.patterns import Band, Blocks, Pattern, band_pairs, run_pairs
from sa_patch.randomness import inverse, permutation
from sa_patch.variants.base import Sizes, Variant, option


def ring_pairs(length: int, width: int) -> int:
    """Pairs of a circular band."""
    return band_pairs(length, width, circular=True)


def bucket_pairs(length: int, width: int) -> int:
    """Pairs of buckets of 2 width - 1 ranks."""
    return run_pairs(length, 2 * width - 1)


@dataclass(frozen=True, kw_only=True)
class Stochastic(Variant):
    """visible(i, j) = j <= i and |pi(i) - pi(j)| < w, with pi a permutation of the prompt's tokens, one per layer.

    pi sorts the tokens by a random key, a hash of (seed, layer, position). The number of pairs is that of `swa` at the
    same window, whatever pi is.

    The definition depends on the length of the prompt: later tokens take ranks, so the keys of a token depend on how
    many tokens follow it, early queries see few keys and late ones up to 2w - 1. Prefill of a prefix and prefill of
    the whole prompt therefore differ, and a prompt must be prefilled in one piece.

    Attributes:
        form: "sliding" is the definition above. "bucket" cuts the permuted order into buckets of 2w - 1 ranks and
            shows the query its own bucket (j <= i): random keys alike, n w pairs when 2w - 1 divides n, cheaper to run.
        horizon: "length" permutes the tokens of the whole prompt.
        circular: distance on the ring of ranks, as the paper's theory assumes; sliding form only.
    """

    name: ClassVar[str] = "sa"
    label: ClassVar[str] = "stochastic attention"
    layout: ClassVar[str] = "permuted"

    form: str = option("sliding", "'sliding' (permuted window) or 'bucket' (buckets of 2w-1 permuted tokens)")
    horizon: str = option("length", "'length': one permutation of the whole prompt")
    circular: bool = option(False, "ring distance between ranks (sliding form)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("sliding", "bucket"):
            raise unknown("form", self.form, ["sliding", "bucket"])
        if self.horizon == "dyadic":
            raise NotImplementedError("horizon='dyadic' is not available yet: use horizon='length'")
        if self.horizon != "length":
            raise unknown("horizon", self.horizon, ["length"])
        if not isinstance(self.circular, bool):
            raise ValueError(f"circular must be True or False, got {self.circular!r}")
        if self.circular and self.form == "bucket":
            raise ValueError(
                "circular=True has no meaning for form='bucket': buckets have no distance; drop one of them"
            )

    def _width(self, length: int, sizes: Sizes) -> int:
        """The band's (or half the bucket's) width once sinks and local are charged to the budget."""
        if self.budget == "nominal" or not (sizes.sinks or sizes.local) or sizes.window >= length:
            return sizes.window
        own_pairs = bucket_pairs if self.form == "bucket" else ring_pairs if self.circular else band_pairs
        return matched_width(own_pairs, length, sizes.window, sizes.sinks, sizes.local)

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        sizes, length = self.sizes(group.length), group.length
        width = self._width(length, sizes)
        common = self.common(group, sizes)
        order = permutation(length, self.seed, layer_idx, group.device)
        if self.form == "bucket":
            return Blocks(block_size=2 * width - 1, order=_by_bucket(order, 2 * width - 1), **common)
        return Band(width=width, order=order, circular=self.circular, **common)

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        return self.counted(length, layer_idx)

    def note(self) -> str:
        return "keys depend on the prompt's length: prefill in one piece, prefixes are not reusable"


def _by_bucket(order: Tensor, size: int) -> Tensor:
    """The permuted order with the tokens of every bucket sorted by position: int64 [length]."""
    length = order.numel()
    return torch.argsort(inverse(order) // size * length + torch.arange(length, device=order.device))


@dataclass(frozen=True, kw_only=True)
class StochasticPlusWindow(Stochastic):
    """The union of a sliding window and stochastic attention, half of the budget each, no pair counted twice.

    Training-free. Not the paper's SA+SWA, which is a trained gate between the two outputs.
    """

    name: ClassVar[str] = "sa+swa"
    label: ClassVar[str] = "stochastic + sliding window, untrained union"
    layout: ClassVar[str] = "merged"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local:
            raise ValueError(
                f"local={self.local!r} is already part of sa+swa (half of the window): "
                "drop it, or use mode='sa' with local= to choose the share yourself"
            )

    def sizes(self, length: int) -> Sizes:
        sizes = super().sizes(length)
        own = sizes.window - sizes.sinks if self.budget == "pairs" else sizes.window
        return Sizes(sizes.window, sizes.sinks, max(1, own // 2))

    def _width(self, length: int, sizes: Sizes) -> int:
        width = super()._width(length, sizes)
        return max(1, sizes.window - sizes.local) if self.budget == "nominal" else width
