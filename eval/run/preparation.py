"""What is measured before scoring: budgets at the prompts that will run, latency, the self-test of batches.

What an earlier session measured is kept; only what is missing is measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sa_eval.budgets import measured_budget
from sa_eval.records.types import Budget
from sa_eval.run import selftest
from sa_eval.speed import clock

Refused = Callable[[Any, str | None, Exception], None]


def budgets(model: Any, arms: Sequence[Any], tasks: Sequence[Any], directory: Any, refused: Refused) -> list[Any]:
    """Budgets at the prompts' lengths; returns the arms that this model can run."""
    by_length: dict[int | None, list[int]] = {}
    for task in tasks:
        by_length.setdefault(task.length, []).extend(task.prompt_tokens)
    known = {(row.arm, row.length): row for row in directory.budgets()}
    usable = []
    for arm in arms:
        try:
            patch = arm.apply(model, arm.seeds[0])
            try:
                found = [
                    Budget(arm.name, length, **asdict(measured_budget(patch, prompt_tokens)))
                    for length, prompt_tokens in by_length.items()
                ]
            finally:
                if patch is not None:
                    patch.restore()
        except Exception as error:
            refused(arm, None, error)
            continue
        directory.append(*(row for row in found if known.get((arm.name, row.length)) != row))
        usable.append(arm)
    return usable


def latency(
    lm: Any, arms: Sequence[Any], tasks: Sequence[Any], directory: Any, progress: Any, refused: Refused
) -> None:
    """Prefill latency of one prompt per length; a length is measured for all arms in turns, or not at all."""
    known = {(row.arm, row.length) for row in directory.speed()}
    prompts: dict[Any, list[int]] = {}
    for task in tasks:
        if any((arm.name, task.length) not in known for arm in arms):
            prompts.setdefault(task.length, lm.prompt_row(task.task.instances[0]))
    with progress.bar(len(prompts) * len(arms) * clock.REPEATS, "latency", unit="turn") as bar:

        def advance(name: str) -> None:
            bar.describe(f"latency · {name}")
            bar.advance(1)

        for length, prompt in prompts.items():
            measured = clock.measure_prefill(
                lm.model,
                arms,
                {length: prompt},
                progress=advance,
                refused=lambda arm, error: refused(arm, "latency", error),
            )
            directory.append(*measured)


def batch_invariance(lm: Any, arms: Sequence[Any], tasks: Sequence[Any], directory: Any, progress: Any) -> None:
    """The self-test of every arm, unless an earlier session's holds for all of them.

    Raises:
        SettingsError: an arm's answers depend on the batch.
    """
    known = {row.arm: row.status for row in directory.checks() if row.check == selftest.CHECK}
    if all(known.get(arm.name, "failed") != "failed" for arm in arms):
        return
    rows = [lm.prompt_row(request) for task in tasks for request in task.task.instances]
    with progress.step("self-test of batches"):
        found = selftest.check(lm, arms, rows)
    directory.append(*found)
    selftest.refuse(found)
