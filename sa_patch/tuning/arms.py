"""What is verified and timed: every mode, read from the variants' own declarations."""

from dataclasses import dataclass, replace

from sa_patch.kernels.rules import layout_of
from sa_patch.patterns import Pieces
from sa_patch.probing import pieces_of, probe
from sa_patch.variants import make_variant, modes
from sa_patch.variants.base import Variant

_WINDOW = 64  # any: arms are measured at windows of their own
_EXTRAS = ({"sinks": 4, "local": 16}, {"sinks": 4})  # the first that a variant takes


@dataclass(frozen=True)
class Arm:
    """A mode, and a variant of it.

    Attributes:
        name: the mode, where it is timed.
        layouts: in which its crossover lies.
        kinds: the layouts of its patterns' pieces.
        pieces: its patterns have several pieces.
        timed: it stands for its build; all others are verified only.
    """

    name: str
    variant: Variant
    layouts: tuple[str, ...]
    kinds: tuple[str, ...]
    pieces: bool
    timed: bool

    def at(self, window: int) -> Variant:
        """The variant at a window; those that are verified only have one of their own, which has room for extras."""
        return make_variant(self.name, {"window": window}) if self.timed else self.variant


def declared_arms() -> list[Arm]:
    """Every mode but full; controls last, then each with sinks and a local window, to be verified only."""
    named = [(name, mode) for name, mode in modes().items() if not mode.variant.always_dense]
    named.sort(key=lambda item: item[1].variant.role == "control")
    arms: list[Arm] = []
    for name, _ in named:
        arms.append(_arm(name, make_variant(name, {"window": _WINDOW}), arms))
    for name, mode in named:
        for extras in _EXTRAS:
            try:
                variant = make_variant(name, {"window": _WINDOW, **extras})
            except (ValueError, NotImplementedError):
                continue
            if mode.variant.defaults.get("sinks") != 0:
                break  # it has both by itself
            arms.append(replace(_arm(f"{name}+{'+'.join(extras)}", variant, []), timed=False))
            break
    return arms


def _arm(name: str, variant: Variant, earlier: list[Arm]) -> Arm:
    pattern = probe(variant)
    assert pattern is not None, f"mode {name} shows everything"
    kinds = tuple(sorted({layout_of(piece) for piece in pieces_of(pattern)}))
    layouts = (variant.layout, "merged") if "merged" in kinds else (variant.layout,)
    build = variant.name, layouts, kinds, isinstance(pattern, Pieces)
    known = {(arm.variant.name, arm.layouts, arm.kinds, arm.pieces) for arm in earlier}
    return Arm(name, variant, tuple(dict.fromkeys(layouts)), kinds, build[-1], timed=build not in known)
