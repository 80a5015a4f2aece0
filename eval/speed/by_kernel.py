"""The kernels of an arm beside each other: those that can run it here are timed in the same turns as the arm itself.

The reference kernel is left out: it is the specification, and `auto` never takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sa_eval.records.types import Speed
from sa_eval.settings.arm import Arm
from sa_eval.speed.clock import Taken
from sa_eval.speed.floor import Floor
from sa_eval.speed.types import KernelTime
from sa_patch import integration
from sa_patch.kernels import KERNELS

NAMES = tuple(name for name in KERNELS if name != "reference")


@dataclass(frozen=True)
class Candidate:
    """An arm with a kernel of its own; timed like an arm, where the arm itself does not run that kernel alone."""

    arm: Arm
    kernel: str

    @property
    def name(self) -> str:
        return f"{self.arm.name} with {self.kernel}"

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.arm.seeds

    def apply(self, model: Any, seed: int) -> Any:
        return replace(self.arm, kernel=self.kernel).apply(model, seed)


def with_candidates(arms: Sequence[Arm | Floor], model: Any) -> list[Arm | Floor | Candidate]:
    """Every arm, followed by itself with each kernel that nothing is known against on the model's device."""
    found: list[Arm | Floor | Candidate] = []
    for arm in arms:
        found.append(arm)
        if isinstance(arm, Arm):
            found += [Candidate(arm, name) for name, refusal in refusals(arm, model).items() if refusal is None]
    return found


def runs_already(timed: Any, taken: Mapping[str, Taken]) -> bool:
    """Whether this is a candidate whose arm runs its kernel, and no other, by what was taken of it."""
    if not isinstance(timed, Candidate) or timed.arm.name not in taken:
        return False
    return taken[timed.arm.name].kernels == [timed.kernel]


def refusals(arm: Arm | Floor, model: Any) -> dict[str, str | None]:
    """By kernel: why it can't run a sparse arm where the model is; None where nothing is known against it."""
    if not isinstance(arm, Arm) or arm.window is None:
        return {}
    device, dtype = integration.device_and_dtype(model)
    return {name: replace(arm, kernel=name).kernel_refusal(model, device, dtype) for name in NAMES}


def kernel_times(
    arms: Sequence[Arm | Floor], model: Any, rows: Sequence[Speed], errors: Mapping[str, str]
) -> dict[str, list[KernelTime]]:
    """By arm: what every kernel took at one length, or why it did not run.

    Args:
        rows: of arms and candidates; one in which full attention alone ran says nothing of its kernel.
        errors: of the candidates that failed, by name.
    """
    timed = {row.arm: row for row in rows}
    found: dict[str, list[KernelTime]] = {}
    for arm in arms:
        for kernel, refusal in refusals(arm, model).items():
            name = f"{arm.name} with {kernel}"
            row, error = timed.get(name), refusal or errors.get(name)
            if row is None and arm.name in timed and timed[arm.name].kernels == [kernel]:
                row = timed[arm.name]
            if error is not None:
                found.setdefault(arm.name, []).append(KernelTime(kernel, error=error))
            elif row is not None and kernel in row.kernels:
                found.setdefault(arm.name, []).append(KernelTime(kernel, row.prefill_ms, row.repeats_ms))
    return found
