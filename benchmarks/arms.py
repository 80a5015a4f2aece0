"""What benchmarks time: every name under `mode=` but full, and a few with options."""

import sa_patch
from sa_patch.variants import modes

ARMS = {
    **{name: (name, {}) for name in modes() if name != "full"},
    "swa+sinks": ("swa", {"sinks": 4}),
    "moba+sinks": ("moba", {"sinks": 4}),
}


def variant_of(arm: str, window: int, **options) -> sa_patch.Variant:
    """The variant of that name; full attention where there is none."""
    mode, own = ARMS.get(arm, ("full", {}))
    return sa_patch.variant(mode, window, **own, **options)
