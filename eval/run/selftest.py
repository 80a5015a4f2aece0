"""The self-test before scoring: a document's next-token distribution must not depend on the batch it is in.

Padding that a pattern counts as tokens, or a mask that gets lost, changes scores without any error; here it stops the
run. Both ways of asking are tested: left-padded rows with their mask, as in generation, and rows of one length without
a mask, as in scoring by log-likelihood. Arms that run the same code, because they differ in window, seeds or sizes
alone, are tested once, with the narrowest window, which padding would disturb most.
"""

from __future__ import annotations

import json
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sa_eval.records.types import Check
from sa_eval.settings.values import SettingsError

CHECK = "batch invariance"
MOST_DOCUMENTS, MOST_TOKENS = 4, 4096
SHORT = 16  # a start this short is beside so much padding that also the last token of a narrow window sees it
FLOAT32_ALLOWED = 1e-3  # nats; rounding alone stays below 1e-4 in the models tested
HALF_STEPS = 2  # roundings of a logit that half precision may always be apart
# The model without a patch may differ by UNPATCHED roundings, and an arm UNPATCHED times as much as that model does.
UNPATCHED = 4
LIKELY = 20  # the tokens compared: far down the distribution a log-probability is mostly rounding


@dataclass(frozen=True)
class Finding:
    """How far alone and together are apart, and what the dtype explains."""

    worst: float
    rounding: float


def prompts_from(rows: Sequence[Sequence[int]], batch_size: int) -> list[array]:
    """A few prompts of different lengths, the longest within MOST_TOKENS where there are such."""
    ordered = sorted(rows, key=len)
    short = [row for row in ordered if len(row) <= MOST_TOKENS] or [ordered[0][:MOST_TOKENS]]
    count = min(MOST_DOCUMENTS, max(2, batch_size))
    picks = [short[round(step * (len(short) - 1) / (count - 1))] for step in range(count)]
    longest = len(picks[-1])
    return [  # documents of one length would need no padding
        array("l", row[: min(len(row), longest - (count - 1 - step) * (longest // (4 * count)))])
        for step, row in enumerate(picks)
    ]


def check(lm: Any, arms: Sequence[Any], rows: Sequence[Sequence[int]]) -> list[Check]:
    """One row of checks.jsonl per arm; the first arm is the model without a patch.

    The status is passed, failed, covered (another arm that runs the same code was tested) or skipped.
    """
    if lm.batch_size == 1:
        return [_row(arm, "skipped", "every document runs alone (batch size 1)") for arm in arms]
    prompts = prompts_from(rows, lm.batch_size)
    found: dict[str, Check] = {}
    unpatched: float | None = 0.0
    for alike in _same_code(arms):
        tested = None
        for arm in alike:
            if tested is not None:
                text = f"runs the code of {tested}, which was tested: it differs in window, seeds or sizes alone"
                found[arm.name] = _row(arm, "covered", text)
                continue
            row = found[arm.name] = _tested(lm, arm, prompts, unpatched)
            if row.status != "skipped":  # an arm that cannot run says nothing about the others
                tested = arm.name
            if arm.window is None and tested is not None:
                unpatched = row.worst
    return [found[arm.name] for arm in arms]


def _same_code(arms: Sequence[Any]) -> list[list[Any]]:
    """The arms in groups that run the same code, the narrowest window first (a share of the prompt is a float)."""
    groups: dict[Any, list[Any]] = {}
    for arm in arms:
        chosen = {**arm.options, "dense_tail": arm.dense_tail}
        kinds = {name: _kind(value) for name, value in chosen.items()}
        kind = (arm.window is None, arm.mode, arm.kernel, *sorted((name, kind) for name, kind in kinds.items() if kind))
        groups.setdefault(kind, []).append(arm)
    return [
        sorted(group, key=lambda arm: (isinstance(arm.window, float), arm.window or 0)) for group in groups.values()
    ]


def _kind(value: Any) -> str | bool:
    """What decides about the code that runs: words do, and whole plans; of a number, whether it is there."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return value if isinstance(value, str) else bool(value)


def _tested(lm: Any, arm: Any, prompts: Sequence[array], unpatched: float | None) -> Check:
    """The row of one arm, with its first seed.

    Args:
        unpatched: what alone and together differ by without a patch.
    """
    patch = None
    try:
        patch = arm.apply(lm.model, arm.seeds[0])
        middle = _routes(lm.model) or (patch is not None and patch.budget(len(prompts[-1])).router_cost > 0)
        finding = compare(lm, prompts, middle=middle)
    except Exception as error:  # an arm that cannot run says so when it is scored
        return _row(arm, "skipped", f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        if patch is not None:
            patch.restore()
    allowed = max(finding.rounding, UNPATCHED * (unpatched or 0.0)) if arm.window else UNPATCHED * finding.rounding
    return _judged(arm, finding, allowed, len(prompts), middle)


def refuse(found: Sequence[Check]) -> None:
    """Stop before scoring when an arm failed.

    Raises:
        SettingsError: which arms, by how much, and the way out.
    """
    failed = [row for row in found if row.status == "failed"]
    if failed:
        arms = ", ".join(f"{row.arm} by {row.worst:.3g} nats (allowed {row.allowed:.3g})" for row in failed)
        raise SettingsError(
            f"stopped before scoring: a document's answer depends on the other documents of its batch: {arms}. Scores "
            "would depend on --batch-size; --batch-size 1 runs every document alone, in a new run directory. This is a "
            "bug of the model or of the attention variant: please report it"
        )


@torch.inference_mode()
def compare(lm: Any, prompts: Sequence[array], *, middle: bool) -> Finding:
    """Prompts alone and together: the largest difference of next-token log-probabilities over both ways of asking.

    Args:
        middle: take the median over documents, where a rounding may send single tokens elsewhere (routers).
    """
    shortest = min(map(len, prompts))
    cut = [list(prompt[:shortest]) for prompt in prompts]
    short = [prompts[0][:SHORT]] if shortest > SHORT else []
    ways = (
        (lambda rows: lm.first_token_log_probs(rows), [*short, *prompts]),
        (lambda rows: lm.scored_logits(rows, 1)[:, -1], cut),
    )
    worst, largest = 0.0, 0.0
    for ask, rows in ways:
        together = ask(rows)
        alone = torch.cat([ask([row]) for row in rows])
        apart = [_apart(one, other) for one, other in zip(alone, together, strict=True)]
        worst = max(worst, statistics.median(apart) if middle else max(apart))
        largest = max(largest, float(-alone.topk(min(LIKELY, alone.shape[1])).values.min()))
    precision = torch.finfo(lm.model.dtype).eps
    rounding = FLOAT32_ALLOWED if precision < 1e-5 else max(FLOAT32_ALLOWED, HALF_STEPS * precision * (1 + largest))
    return Finding(worst, rounding)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the likely tokens of either; infinite when one holds NaN."""
    likely = torch.cat([row.topk(min(LIKELY, len(row))).indices for row in (one, other)])
    difference = (one[likely] - other[likely]).abs()
    return float("inf") if bool(difference.isnan().any()) else float(difference.max())


def _routes(model: Any) -> bool:
    """Whether the model itself sends tokens to experts."""
    config = model.config.get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in ("num_experts", "num_local_experts"))


def _judged(arm: Any, finding: Finding, allowed: float, documents: int, middle: bool) -> Check:
    passed = finding.worst <= allowed
    text = (
        f"{documents} documents alone and in one batch, padded and not: next-token log-probabilities differ by "
        f"{'a median' if middle else 'at most'} {finding.worst:.2g} nats"
    )
    return Check(CHECK, arm.name, "passed" if passed else "failed", text, finding.worst, allowed)


def _row(arm: Any, status: str, text: str) -> Check:
    return Check(CHECK, arm.name, status, text)
