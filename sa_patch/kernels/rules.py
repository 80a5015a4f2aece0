"""What was measured about kernels, in one table per kind of device: `auto` and `dense_below="crossover"` follow it.

A rule that was not measured on a device chooses nothing new there. Imports nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The rules of one kind of device.

    Attributes:
        masked_below: up to this many tokens (squared: scores) one masked dense call beats O(n w) tiles.
        masked_below_merged: likewise for patterns with sinks or a local window, whose parts have to be merged.
        masked_keys: with few queries, only up to this many keys.
        beyond: the kernel for everything longer.
        crossover: sparse prefill is not faster than full up to max(windows x window, tokens), by how a variant's keys
            lie in memory: (windows, tokens). None where that was not measured.
        source: where the numbers come from.
    """

    masked_below: int
    masked_below_merged: int
    masked_keys: int
    beyond: str
    crossover: dict[str, tuple[int, int]] | None
    source: str


_CPU = Rules(
    masked_below=256,
    masked_below_merged=512,
    masked_keys=2048,
    beyond="torch",
    crossover={
        "window": (4, 640),
        "buckets": (4, 384),
        "permuted": (7, 1344),
        "routed": (9, 1536),
        "merged": (9, 2240),
        "selected": (64, 8192),  # one query and head at a time; 16 queries of a group together need 1,600 tokens
        "scattered": (80, 2048),  # every query's keys are gathered
    },
    # One core of a 2-core Xeon, 8 heads on 2 kv heads of 64: benchmarks/attention.py and benchmarks/crossover.py.
    source="measured on an x86 CPU in float32",
)

# `benchmarks/gpu_report.py` prints what the results of benchmarks/gpu_suite.sh say for "cuda".
RULES = {
    "cpu": _CPU,
    "cuda": Rules(
        masked_below=_CPU.masked_below,
        masked_below_merged=_CPU.masked_below_merged,
        masked_keys=_CPU.masked_keys,
        beyond="torch",
        crossover=None,
        source="not measured on a GPU: a CPU's rules",
    ),
}


def rules_for(kind: str) -> Rules:
    """The rules of a device; those of a GPU where nobody measured."""
    return RULES.get(kind, RULES["cuda"])
