"""See and understand: what stacks of sparse layers connect, in theory, by simulation and on prompts; and pictures.

Matplotlib is imported when a picture is drawn, transformers when a prompt is read.
"""

from sa_patch.analysis import theory
from sa_patch.analysis.coherence import LocalCoherence, local_coherence
from sa_patch.analysis.coverage import EXACT, Coverage, coverage
from sa_patch.analysis.mixing import Mixing, mixing
from sa_patch.analysis.pictures import (
    draw_mask,
    plot_coverage,
    plot_distances,
    plot_kept_mass,
    plot_needle,
    plot_receptive_field,
    receptive_field,
)
from sa_patch.analysis.prompt import KeptMass, NeedleSight, kept_mass, needle_sight, prompt_coverage
from sa_patch.analysis.small_world import FLY, SmallWorld, small_world

__all__ = [
    "EXACT",
    "FLY",
    "Coverage",
    "KeptMass",
    "LocalCoherence",
    "Mixing",
    "NeedleSight",
    "SmallWorld",
    "coverage",
    "draw_mask",
    "kept_mass",
    "local_coherence",
    "mixing",
    "needle_sight",
    "plot_coverage",
    "plot_distances",
    "plot_kept_mass",
    "plot_needle",
    "plot_receptive_field",
    "prompt_coverage",
    "receptive_field",
    "small_world",
    "theory",
]
