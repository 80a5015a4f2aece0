"""Training-free sparse attention for Hugging Face models: patch, run, undo."""

from sa_patch.api import apply, attention, is_patched, load, restore
from sa_patch.budget import Budget, LayerBudget
from sa_patch.patch import Patch
from sa_patch.variants import VARIANTS, Variant, variant

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "Budget",
    "LayerBudget",
    "Patch",
    "Variant",
    "apply",
    "attention",
    "is_patched",
    "load",
    "restore",
    "variant",
]
