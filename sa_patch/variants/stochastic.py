"""`sa` and `sa+swa`: stochastic attention (arXiv 2604.00754) and its training-free union with a sliding window."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sa_patch.budget import LayerBudget, matched_width
from sa_patch.counting import band_pairs, run_pairs
from sa_patch.geometry import Group
from sa_patch.horizons import opening, stretches
from sa_patch.kept import kept_order
from sa_patch.patterns import Band, Blocks, Heads, Pattern, Pieces
from sa_patch.variants.base import Common, Form, HeadDependent, Sizes, Variant
from sa_patch.variants.options import option


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

    With horizon="length", the definition depends on the length of the prompt: later tokens take ranks, so the keys of a
    token depend on how many tokens follow it, early queries see few keys and late ones up to 2w - 1. Prefill of a
    prefix and prefill of the whole prompt therefore differ, and a prompt must be prefilled in one piece.

    With horizon="dyadic", query i uses the permutation of the first N(i) tokens, N(i) the smallest power of two above i
    and at least 32, and a window of round(2w/3), which shows close to w keys on average over each [N/2, N) while w is
    small against N, and fewer where it is not (17 % fewer at w = N/2). Tokens that have not come yet hold their ranks
    already, so nothing depends on the length: prefill in one piece or in chunks, decoding with decode="sparse",
    speculative decoding and reused prefixes agree.

    Attributes:
        form: "sliding" is the definition above. "bucket" cuts the permuted order into buckets of 2w - 1 ranks and
            shows the query its own bucket (j <= i): random keys alike, n w pairs when 2w - 1 divides n, cheaper to run.
        horizon: "length" permutes the tokens of the whole prompt, "dyadic" those of the query's power of two.
        circular: distance on the ring of ranks, as the paper's theory assumes; sliding form of horizon="length" only.
        heads: "shared": one permutation per layer, the paper's. "each": one per kv head, a hash of (seed, layer, kv
            head, position); the query heads of a kv head share it.
        weight: "sampled": of the N earlier keys that neither sinks nor local show, a query sees k. Their scores are
            raised by weight_power * log(N / k), so that with power 1 they stand for all N; sinks, local window and the
            query itself stand for themselves.
        weight_power: of weight="sampled", see there.
    """

    name: ClassVar[str] = "sa"
    label: ClassVar[str] = "stochastic attention"
    help: ClassVar[str] = "stochastic attention: `window` keys around the query in a random order of the tokens"
    seeded: ClassVar[bool] = True
    forms: ClassVar[Mapping[str, Form]] = {
        "sa-bucket": Form(
            "stochastic attention, the random order cut into buckets (faster; over budget on short prompts)",
            {"form": "bucket"},
        ),
        "sa-circular": Form("stochastic attention with ring distance in the random order", {"circular": True}),
        "sa-dyadic": Form(
            "stochastic attention whose keys don't depend on the prompt's length (each power of two permuted)",
            {"horizon": "dyadic"},
        ),
        "sa-dyadic-bucket": Form("sa-dyadic, cut into buckets", {"horizon": "dyadic", "form": "bucket"}),
    }

    horizon: Literal["length", "dyadic"] = option(
        "length", "length: one random order of the whole prompt; dyadic: one of each power of two"
    )
    form: Literal["sliding", "bucket"] = option(
        "sliding", "sliding: a window in the random order; bucket: the order cut into buckets of 2w-1 tokens"
    )
    circular: bool = option(False, "ring distance in the random order (sliding form)")
    heads: Literal["shared", "each"] = option(
        "shared", "shared: one random order per layer; each: one per kv head", told="heads_{}"
    )
    weight: Literal["none", "sampled"] = option(
        "none",
        "sampled: random keys stand for the keys that were not drawn (with sinks or local)",
        told="weight_{}",
    )
    weight_power: int | float = option(
        0.5, "of weight sampled: k of N keys count (N/k)^power times; a fraction or whole number", told="power{}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight == "none" and self.weight_power != 0.5:
            raise ValueError(f"weight_power={self.weight_power} has no meaning for weight='none': use weight='sampled'")
        if self.weight == "sampled" and not self._shows_certain_keys:
            raise ValueError(
                "weight='sampled' weighs random keys against certain ones, and here no key but the query's own is "
                f"certain (sinks={self.sinks}, local={self.local}): give sinks or local, or use weight='none'"
            )
        if self.circular and self.form == "bucket":
            raise ValueError(
                "circular=True has no meaning for form='bucket': buckets have no distance; drop one of them"
            )
        if self.horizon == "dyadic":
            self._check_dyadic()

    def _check_dyadic(self) -> None:
        if self.circular:
            raise ValueError("circular=True is not defined for horizon='dyadic': drop one of them")
        for name in ("window", "sinks", "local"):
            if isinstance(getattr(self, name), float):
                raise ValueError(
                    f"{name}={getattr(self, name)} is a fraction of the prompt's length, on which nothing may depend "
                    "with horizon='dyadic': give a number of tokens, or use horizon='length'"
                )

    @property
    def _shows_certain_keys(self) -> bool:
        return bool(self.sinks or self.local > 1 or isinstance(self.local, float))

    @property
    def head_dependent(self) -> HeadDependent:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "number" if self.heads == "each" else "no"

    @property
    def layout(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "buckets" if self.form == "bucket" and self.horizon == "length" else "permuted"

    @property
    def prefix_consistent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.horizon == "dyadic"

    def whole_prompt_reason(self) -> str | None:
        if self.horizon == "length":
            return "horizon='length' permutes the tokens of the whole prompt (horizon='dyadic' takes any pieces)"
        return super().whole_prompt_reason()

    def _own_window(self, sizes: Sizes) -> int:
        return sizes.window

    def _width(self, sizes: Sizes, horizon: int, first: int = 0) -> int:
        """The band's (or half the bucket's) width for queries first..horizon-1, sinks and local charged."""
        window = self._own_window(sizes)
        if self.horizon == "dyadic":
            window = max(1, round(2 * window / 3))
        if self.budget == "nominal" or not (sizes.sinks or sizes.local) or window >= horizon:
            return window
        own_pairs = bucket_pairs if self.form == "bucket" else ring_pairs if self.circular else band_pairs
        return matched_width(own_pairs, horizon, window, sizes.sinks, sizes.local, first)

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        if self.heads == "shared":
            return self._of_head(group, layer_idx, None)
        count = group.kv_heads if key is None else key.shape[1]
        per_head = 1 if key is None or query is None else query.shape[1] // count
        heads = range(group.first_head, group.first_head + count)
        return Heads.of([self._of_head(group, layer_idx, head) for head in heads], per_head)

    def _of_head(self, group: Group, layer_idx: int, head: int | None) -> Pattern:
        """The pattern of one kv head, or of all of them where they share one."""
        sizes, length = self.sizes(group.length), group.length
        if self.horizon == "length":
            width = self._width(sizes, length)
            return self._permuted(width, length, layer_idx, head, group, self.common(group, sizes))
        pieces: list[Pattern] = []
        for start, stop, horizon in stretches(length - group.query_len, length):
            width = self._width(sizes, horizon, opening(horizon))
            stretch = Group(stop, stop - start, group.device)
            if (2 * width - 1 if self.form == "bucket" else width) >= horizon:
                covered = Group(stop, stop - (length - group.query_len), group.device)
                pieces = [self.dense(covered)]  # whatever came before it is covered as well
            else:
                common = self.common(stretch, sizes, after=length - stop)
                pieces.append(self._permuted(width, horizon, layer_idx, head, stretch, common))
        return Pieces.of(pieces)

    def _permuted(
        self, width: int, horizon: int, layer_idx: int, head: int | None, group: Group, common: Common
    ) -> Pattern:
        """The pattern of one horizon; `head` is None where the heads share a permutation."""
        run_size = 2 * width - 1 if self.form == "bucket" else 0
        source = (horizon, self.seed, layer_idx, run_size, head)
        weight = float(self.weight_power) if self.weight == "sampled" else 0.0
        # The next prompt of that length needs it again, and so does the next token that is decoded.
        order = kept_order(*source, group.device)
        if self.form == "bucket":
            return Blocks(block_size=run_size, order=order, source=source, weight=weight, **common)
        return Band(width=width, order=order, circular=self.circular, source=source, weight=weight, **common)

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        """Where heads have permutations of their own, that of the first: others may have some pairs more or less."""
        return self.counted(length, layer_idx)

    def heads_budget(self, length: int, layer_idx: int, kv_heads: int) -> LayerBudget:
        return self.counted(length, layer_idx, kv_heads)


@dataclass(frozen=True, kw_only=True)
class StochasticPlusWindow(Stochastic):
    """The union of a sliding window and stochastic attention, half of the budget each, no pair counted twice.

    Training-free. Not the paper's SA+SWA, which is a trained gate between the two outputs.
    """

    name: ClassVar[str] = "sa+swa"
    label: ClassVar[str] = "stochastic + sliding window, untrained union"
    help: ClassVar[str] = "half the budget local, half stochastic, no key twice (training-free union)"
    caveat: ClassVar[str] = "the training-free union of both patterns, not the paper's trained gate"
    layout: ClassVar[str] = "merged"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local:
            raise ValueError(
                f"local={self.local!r} is already part of sa+swa (half of the window): "
                "drop it, or use mode='sa' with local= to choose the share yourself"
            )

    @property
    def _shows_certain_keys(self) -> bool:
        return True

    def sizes(self, length: int) -> Sizes:
        sizes = super().sizes(length)
        own = sizes.window - sizes.sinks if self.budget == "pairs" else sizes.window
        return Sizes(sizes.window, sizes.sinks, max(1, own // 2))

    def _own_window(self, sizes: Sizes) -> int:
        return max(1, sizes.window - sizes.local) if self.budget == "nominal" else sizes.window
