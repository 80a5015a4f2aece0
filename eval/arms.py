"""Owns what an arm is: one variant at one budget with its seeds. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sa_eval.config import ARM_MODES, Settings, SettingsError

SEEDED_MODES = ("sa", "sa+swa")


@dataclass(frozen=True)
class Arm:
    """One row of the comparison. `options` is what `sa_patch.apply` gets besides mode, window, seed and kernel."""

    name: str  # unique in a run and usable in a file name
    label: str  # the name under --modes
    mode: str  # the sa_patch mode
    window: int | float | None  # None: full
    dense_tail: int = 0
    seeds: tuple[int, ...] = (0,)
    kernel: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: Any, seed: int) -> Any:
        """Patch the model; the caller restores. The full arm runs the model's own attention and returns None."""
        if self.window is None:
            return None
        import sa_patch

        return sa_patch.apply(model, mode=self.mode, window=self.window, seed=seed, kernel=self.kernel, **self.options)

    def check(self) -> None:
        """Refuse an arm that no model can run, before a model is loaded."""
        if self.window is None:
            return
        import sa_patch
        from sa_patch import kernels

        try:
            kernels.check_name(self.kernel)
            sa_patch.variant(self.mode, self.window, seed=self.seeds[0], **self.options)
        except (ValueError, NotImplementedError) as error:
            raise SettingsError(f"arm {self.name} cannot run: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "label": self.label,
            "mode": self.mode,
            "window": self.window,
            "dense_tail": self.dense_tail,
            "seeds": list(self.seeds),
            "kernel": self.kernel,
            "options": self.options,
        }


def arms_from(settings: Settings) -> list[Arm]:
    """Every arm of a run: full first, then tail by tail, window by window, mode by mode."""
    arms = [Arm("full", "full", "full", None)]
    for tail in settings.dense_tail:
        for window in settings.window:
            for label in settings.modes:
                if label != "full":
                    arms.append(_arm(settings, label, window, tail))
    return arms


def _arm(settings: Settings, label: str, window: int | float, tail: int) -> Arm:
    mode, variant_options = ARM_MODES.get(label, (label, {}))
    options: dict[str, Any] = {
        "budget": settings.budget,
        "decode": settings.decode,
        "dense_tail": tail,
        **variant_options,
    }
    for name in ("sinks", "local", "dense_layers", "dense_below"):
        value = getattr(settings, name)
        if value:
            options[name] = value
    seeds = settings.seeds if mode in SEEDED_MODES or label not in ARM_MODES else (0,)
    name = f"{label}-w{window}" + (f"-tail{tail}" if tail else "")
    return Arm(name, label, mode, window, tail, seeds, settings.kernel, options)
