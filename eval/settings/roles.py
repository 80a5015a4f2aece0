"""What a report says of modes and options without knowing any by name: read from the variants' declarations.

Reading a run's files needs neither torch nor sa_patch: where the declarations are not loaded, what was written down of
them counts (declared.json, by scripts/write_declared.py). A mode that they lack, a variant of one's own, is a method
without a seed or a caveat.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from typing import Any

FILE = "declared.json"


def methods() -> list[str]:
    """The modes that a comparison asks about."""
    return [name for name, mode in _modes().items() if mode["role"] == "method"]


def rivals() -> list[str]:
    """The modes that methods are held against, full attention aside: baselines and controls."""
    return [name for name, mode in _modes().items() if mode["role"] != "method" and name != "full"]


def in_order() -> list[str]:
    """Every mode but full: variants first, then their forms."""
    modes = _modes()
    return sorted((name for name in modes if name != "full"), key=lambda name: modes[name]["form"])


def is_seeded(mode: str) -> bool:
    """Whether its keys depend on a seed."""
    return _modes().get(mode, {}).get("seeded", False)


def is_untrained(mode: str) -> bool:
    """Whether it was made for training that has not happened here."""
    return _modes().get(mode, {}).get("untrained", False)


def caveat(mode: str) -> str:
    """What a reader must know about it, as a clause; empty when there is nothing."""
    return _modes().get(mode, {}).get("caveat", "")


def outside_budget() -> list[str]:
    """Options that change how many keys are read without being charged to the window."""
    return _declared()["outside_budget"]


def declared(variants: Any) -> dict[str, Any]:
    """What is asked here, from the module sa_patch.variants."""
    return {
        "modes": {
            name: {
                "form": bool(mode.fixed),
                "role": mode.variant.role,
                "seeded": mode.variant.seeded,
                "untrained": mode.variant.untrained,
                "caveat": mode.variant.caveat,
            }
            for name, mode in variants.modes().items()
        },
        "outside_budget": [name for name, option in variants.all_options().items() if option.outside_budget],
    }


def _declared() -> dict[str, Any]:
    loaded = sys.modules.get("sa_patch.variants")
    if loaded is not None:
        return declared(loaded)
    return json.loads(resources.files("sa_eval.settings").joinpath(FILE).read_text(encoding="utf-8"))


def _modes() -> dict[str, dict[str, Any]]:
    return _declared()["modes"]
