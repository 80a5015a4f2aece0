"""Types of the arguments of `sa_patch.apply` and `sa_patch.variant`, for editors and type checkers.

Written by `python scripts/write_declared.py` from the declarations in sa_patch/variants: not by hand.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

Mode = Literal[
    "full",
    "swa",
    "sa",
    "sa-bucket",
    "sa-circular",
    "sa-dyadic",
    "sa-dyadic-bucket",
    "sa+swa",
    "moba",
    "routed",
    "vertical-slash",
    "random-keys",
]
KernelName = Literal[
    "auto",
    "torch",
    "cpp",
    "triton",
    "flash",
    "flex",
    "sdpa",
    "reference",
]


class Options(TypedDict, total=False):
    """What `**options` takes; each mode takes those of its variant."""

    seed: int
    """seed of the random keys (only variants with random keys use it)"""

    budget: Literal["pairs", "nominal"]
    """pairs: match the (query, key) pairs of swa at this window; nominal: the textbook parameters"""

    dense_tail: int
    """last queries of the prompt that see everything"""

    sinks: int | float | None
    """first tokens visible to everyone; tokens, or a fraction of the prompt; none: 0 (routed, vertical-slash: 4)"""

    local: int | float
    """last keys visible, the query included; tokens, or a fraction; 0: for routed (at least), vertical-slash w/4"""

    dense_layers: Sequence[int]
    """layers left full; negative numbers count from the end"""

    dense_below: int | Literal["crossover"]
    """prompts up to this length stay full; crossover: up to where that is faster"""

    decode: Literal["full", "sparse"]
    """full: generated tokens read the whole cache; sparse: their own row of the pattern"""

    horizon: Literal["length", "dyadic"]
    """length: one random order of the whole prompt; dyadic: one of each power of two (sa and sa+swa only)"""

    form: Literal["sliding", "bucket"]
    """sliding: a window in the random order; bucket: the order cut into buckets of 2w-1 tokens (sa and sa+swa only)"""

    circular: bool
    """ring distance in the random order (sliding form) (sa and sa+swa only)"""

    heads: Literal["shared", "each"]
    """shared: one random order per layer; each: one per kv head (sa and sa+swa only)"""

    weight: Literal["none", "sampled"]
    """sampled: random keys stand for the keys that were not drawn (with sinks or local) (sa and sa+swa only)"""

    weight_power: int | float
    """of weight sampled: k of N keys count (N/k)^power times; a fraction or whole number (sa and sa+swa only)"""

    top_k: int | None
    """blocks per query, the own one included; none: 2, or what fits block_size (moba only)"""

    block_size: int | None
    """tokens per block; none: for moba what matches the budget, for routed 8 (moba and routed only)"""

    router_cost: Literal["reported", "charged"]
    """reported: the router's products are told; charged: the window pays (moba and routed and vertical-slash only)"""

    share: Literal["head", "group"]
    """who chooses blocks: every query head, or a kv head's group of them (routed only)"""

    pool: Literal["head", "layer"]
    """head: every head its own number of blocks; layer: the heads share them (routed only)"""

    query_block: int
    """consecutive queries that choose blocks together (routed only)"""

    router: Literal["mean", "variance", "minmax", "antidiagonal"]
    """how blocks are ranked: by mean keys, also by their variance, by Quest's bound, XAttention's sums (routed only)"""

    stride: int
    """of router antidiagonal: one product stands for so many (routed only)"""

    probe: int
    """last queries of the prompt that choose lines for all (vertical-slash only)"""

    vertical_share: int | float
    """of what lines may take, the share of vertical ones; slash lines get the rest (vertical-slash only)"""
