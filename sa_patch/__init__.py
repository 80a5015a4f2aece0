"""Training-free sparse attention for Hugging Face models: patch, run, undo.

What works on models comes with transformers, which takes seconds to import: it is imported when it is first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sa_patch import operator as operator  # registers sa_patch::attend, which exported programs name
from sa_patch.budget import Budget, LayerBudget
from sa_patch.plan import Plan
from sa_patch.variants import VARIANTS, Variant, variant

if TYPE_CHECKING:
    from sa_patch import analysis
    from sa_patch.api import apply, attention, from_pretrained, is_patched, load, restore
    from sa_patch.calibration import Calibration, calibrate
    from sa_patch.gating import gate
    from sa_patch.patch import Patch
    from sa_patch.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "Budget",
    "Calibration",
    "LayerBudget",
    "Patch",
    "Plan",
    "Variant",
    "analysis",
    "apply",
    "attention",
    "calibrate",
    "from_pretrained",
    "gate",
    "is_patched",
    "load",
    "restore",
    "tune",
    "variant",
]

_MODULES = {
    "Calibration": "sa_patch.calibration",
    "Patch": "sa_patch.patch",
    "calibrate": "sa_patch.calibration",
    "gate": "sa_patch.gating",
    "tune": "sa_patch.tuning",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "analysis":
        return import_module("sa_patch.analysis")
    return getattr(import_module(_MODULES.get(name, "sa_patch.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
