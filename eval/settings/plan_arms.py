"""Plans as arms: another variant per layer, at the plan's own window."""

from __future__ import annotations

from collections.abc import Sequence

from sa_eval.settings.arm import Arm
from sa_eval.settings.config import Settings
from sa_eval.settings.plan_files import PlanFile
from sa_eval.settings.roles import PLAN
from sa_eval.settings.values import SettingsError
from sa_patch import Plan, Variant
from sa_patch.saved import from_config


def plan_arms(settings: Settings) -> list[Arm]:
    """One arm per plan of the settings.

    Raises:
        SettingsError: for a config that is no plan of this sa_patch.
    """
    return [_arm(settings, plan) for plan in settings.plans]


def _arm(settings: Settings, file: PlanFile) -> Arm:
    try:
        chosen, own_kernel = from_config(file.config, "it")
        plan = chosen if isinstance(chosen, Plan) else Plan((chosen,))
        window = _window(plan)
    except (ValueError, NotImplementedError) as error:
        raise SettingsError(f"plan {file.name} cannot be used: {error}") from error
    kernel = own_kernel if settings.kernel == "auto" else settings.kernel
    sparse = [variant for variant in plan.variants if not variant.always_dense]
    tail = max(variant.dense_tail for variant in sparse)
    options = {"decode": plan.decode, "dense_tail": tail, **_shared(sparse), "plan": dict(file.config)}
    name = f"plan-{file.name}"
    return Arm(name, name, PLAN, window, tail, (0,), kernel, options)


def _window(plan: Plan) -> int | float:
    """What was asked for, or the mean of the sparse layers' windows."""
    if plan.always_dense:
        raise ValueError("every layer is full attention, which is an arm of every run already")
    if plan.window is not None:
        return plan.window
    windows = [variant.window for variant in plan.variants if not variant.always_dense]
    if len(set(windows)) == 1:
        return windows[0]
    if any(isinstance(window, float) for window in windows):
        raise ValueError("its layers have different windows, some a share of the prompt: give the plan a window")
    return round(sum(windows) / len(windows))


def _shared(sparse: Sequence[Variant]) -> dict[str, object]:
    """What arms have to have in common besides the window to be comparable, as all sparse layers have it."""
    found: dict[str, object] = {}
    for name in ("budget", "dense_layers", "dense_below"):
        values = {getattr(variant, name) for variant in sparse}
        value = values.pop() if len(values) == 1 else "several"
        if name == "budget" or value:
            found[name] = value
    return found
