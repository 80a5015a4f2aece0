"""What benchmarks time: every name under `mode=` but full, and a few with options."""

import sa_patch
from sa_patch.variants import modes

ARMS = {
    **{name: (name, {}) for name in modes() if name != "full"},
    "swa+sink": ("swa", {"sinks": 1}),
    "swa+sinks": ("swa", {"sinks": 4}),
    "sa+swa+sinks": ("sa+swa", {"sinks": 4}),
    "moba+sinks": ("moba", {"sinks": 4}),
    "moba+local": ("moba", {"top_k": 8, "sinks": 4, "local": 64}),
    # Rules of real_model_arms.py that choose for every query or by a peer's score.
    "routed+blocks4": ("routed", {"block_size": 4}),
    "routed+quest": ("routed", {"block_size": 8, "router": "minmax"}),
    "routed+xattention": ("routed", {"query_block": 16, "block_size": 16, "router": "antidiagonal"}),
    # What a GPU can run fast: tiles of 16 queries and the heads of a group choose together; and coarser blocks.
    "routed+tiles": ("routed", {"share": "group", "query_block": 16}),
    "routed+tiles16": ("routed", {"share": "group", "query_block": 16, "block_size": 16, "router": "mean"}),
    "routed+tiles32": ("routed", {"share": "group", "query_block": 16, "block_size": 32, "router": "mean"}),
}


def variant_of(arm: str, window: int, **options) -> sa_patch.Variant:
    """The variant of that name; full attention where there is none."""
    mode, own = ARMS.get(arm, ("full", {}))
    return sa_patch.variant(mode, window, **own, **options)
