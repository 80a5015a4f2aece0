"""See and understand: what stacks of sparse layers connect, in theory, by simulation, and on prompts; and pictures."""

from sa_patch.analysis import theory
from sa_patch.analysis.coherence import LocalCoherence, local_coherence
from sa_patch.analysis.coverage import Coverage, coverage
from sa_patch.analysis.mixing import Mixing, mixing
from sa_patch.analysis.small_world import SmallWorld, small_world

__all__ = [
    "Coverage",
    "LocalCoherence",
    "Mixing",
    "SmallWorld",
    "coverage",
    "local_coherence",
    "mixing",
    "small_world",
    "theory",
]
