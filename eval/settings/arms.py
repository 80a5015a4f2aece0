"""Which arms a run has: every meaning once, and what is left out with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sa_eval.settings import grid, plan_arms
from sa_eval.settings.arm import Arm, ArmFacts
from sa_eval.settings.config import Settings, SettingsError

MOST_COMBINATIONS = 5_000  # beyond it a list is a slip of the keyboard


class LeftOut(ArmFacts):
    """A combination that is no arm of the run, and why."""

    reason: str


@dataclass(frozen=True)
class Sweep:
    """The arms of a run, and the combinations that were asked for but are no arm of it, each with its reason."""

    arms: tuple[Arm, ...]
    left_out: tuple[tuple[Arm, str], ...]
    combinations: int


def arms_from(settings: Settings) -> list[Arm]:
    """Every arm of a run: full first, then the grid (tail by tail, window by window, mode by mode), then named arms,
    then plans.

    Raises:
        SettingsError: when nothing but full is left, or two arms would have one name.
    """
    sweep = sweep_of(settings)
    if len(sweep.arms) == 1 and sweep.left_out:
        arm, reason = sweep.left_out[0]
        others = f" (and {len(sweep.left_out) - 1} more)" if len(sweep.left_out) > 1 else ""
        raise SettingsError(f"arm {arm.name} cannot run{others}: {reason}")
    return list(sweep.arms)


def left_out(settings: Settings) -> list[LeftOut]:
    """The combinations that are no arm of the run."""
    return [{**arm.to_dict(), "reason": reason} for arm, reason in sweep_of(settings).left_out]


def sweep_of(settings: Settings) -> Sweep:
    """The product of all lists, every meaning once; what a variant refuses is left out with its reason."""
    count = grid.combinations(settings)
    if count > MOST_COMBINATIONS:
        raise SettingsError(
            f"the settings make {count:,} combinations of mode, window and options; at most {MOST_COMBINATIONS:,} are "
            "run at once: shorten the lists"
        )
    named, listed = grid.named_arms(settings), grid.grid_arms(settings)
    kept: dict[Any, Arm] = {}
    refused: dict[str, tuple[Arm, str]] = {}
    for idx, arm in enumerate([*named, *listed]):
        reason = arm.refusal()
        first = arm if reason else kept.setdefault(_meaning(arm), arm)
        if reason:
            refused[arm.name] = (arm, reason)
        elif first is not arm and idx < len(named):
            refused[arm.name] = (arm, f"the same as {first.name}")
    arms = [arm for arm in [*listed, *named] if kept.get(_meaning(arm)) is arm] + plan_arms.plan_arms(settings)
    _refuse_one_name_twice(arms)
    return Sweep((Arm("full", "full", "full", None), *arms), tuple(refused.values()), count)


def _meaning(arm: Arm) -> Any:
    """What the arm computes: two arms with one meaning are one arm."""
    options = {**arm.options, "dense_layers": frozenset(arm.options.get("dense_layers", ()))}
    return arm.mode, arm.window, frozenset(options.items())


def _refuse_one_name_twice(arms: list[Arm]) -> None:
    taken = {"full"}
    for arm in arms:
        if arm.name.casefold() in taken:  # names are file names, and some file systems don't tell Sa from sa
            raise SettingsError(f"two arms are called {arm.name!r}: rename the one in `arms` or `plans`")
        taken.add(arm.name.casefold())
