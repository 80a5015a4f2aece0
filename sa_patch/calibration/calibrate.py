"""`sa_patch.calibrate`: the plan of least divergence from full attention on the user's own text, at an equal budget.

1. Fit. One dense pass per passage shows every layer's queries, keys and values: every candidate's error at the
   attention's output, on sampled queries. A few candidates are run in one layer alone: what an error costs in the
   next-token distribution. From both, an estimate for every layer and candidate, and a knapsack over the layers.
2. Choose, on other passages. The best single recipe; the best of a few plans: what the fit says of all candidates and
   of that recipe's alone, with and without full attention, and the recipe itself in all layers; and changes of the plan
   that are kept where the divergence falls by more than two standard errors.
3. Report. On passages that nothing was decided with: plan, recipe, and controls, with paired intervals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sa_patch import integration
from sa_patch.calibration.candidates import FAMILIES, LEAST, SHARES, SMALLER, RouterCost, candidates
from sa_patch.calibration.deciding import Run, Tell
from sa_patch.calibration.journal import Journal
from sa_patch.calibration.measuring import Measuring
from sa_patch.calibration.outcomes import Calibration
from sa_patch.calibration.reading import Reader
from sa_patch.calibration.strata import Split, split


def calibrate(
    model: nn.Module,
    texts: Sequence[tuple[str, Sequence[int]]],
    window: int,
    *,
    lengths: Sequence[int] = (1024,),
    passages: tuple[int, int, int] = (2, 4, 6),
    swaps: int = 12,
    seed: int = 0,
    target_kl: float | None = None,
    router_cost: RouterCost = "reported",
    journal: str | Path | None = None,
    tell: Tell | None = None,
) -> Calibration:
    """Find the plan of least KL(full || plan) on a text, at the pairs of `swa` with `window` keys per query.

    With `target_kl`, the cheapest plan of at most so many pairs whose KL is at or below it, on every stratum of the
    passages to choose with; the budget is found to a sixteenth of itself.

    The model is bare before and afterwards.

    Args:
        texts: (name, token ids), long enough for the passages; tokenize without special tokens.
        window: mean keys per query over the layers; with `target_kl` the most there may be.
        lengths: prompt lengths at which the budget holds; passages have the first one.
        passages: to fit, choose and report with, of every stratum.
        swaps: changes of the plan that are tried on the passages to choose with.
        target_kl: nats per scored position.
        router_cost: "reported": choosing keys is free; "charged": the window pays for every router, half a pair per
            product of a query or a key, so that recipes compete at equal cost. Plans of charged routers take whole
            prompts only.
        journal: a file that keeps what was measured; the same call goes on from it.
        tell: called with what is being done, how much is done, and how much there is.

    Raises:
        ValueError: when the texts are too short, or the model can't be patched or is patched; or when no plan reaches
            `target_kl`, with the nearest figure.
    """
    numbers = {"lengths": lengths, "passages": passages, "swaps": swaps, "seed": seed}
    made = check(texts, window, **numbers, target_kl=target_kl, router_cost=router_cost)
    if integration.state(model) is not None:
        raise ValueError("the model is patched: restore it, calibration compares with its own full attention")
    reader = Reader(model)
    some = candidates(window, lengths, SHARES if target_kl is None else (*SMALLER, *SHARES), router_cost)
    held = Journal(
        None if journal is None else Path(journal),
        {
            "model": _weights(model),
            "passages": _hash(json.dumps([one.ids for one in (*made.fit, *made.choose, *made.report)])),
            "window": window,
            "lengths": list(lengths),
            "seed": seed,
            "candidates": _hash(repr(some)),
            **({} if target_kl is None else {"target_kl": target_kl}),
            **({} if router_cost == "reported" else {"router_cost": router_cost}),
        },
    )
    asked = window, tuple(lengths), passages, swaps, seed, target_kl, router_cost
    run = Run(Measuring(reader, some, held), made, *asked, tell or (lambda *_: None))
    with torch.inference_mode():
        return run.run()


def check(
    texts: Sequence[tuple[str, Sequence[int]]],
    window: int,
    *,
    lengths: Sequence[int] = (1024,),
    passages: tuple[int, int, int] = (2, 4, 6),
    swaps: int = 12,
    seed: int = 0,
    target_kl: float | None = None,
    router_cost: RouterCost = "reported",
) -> Split:
    """The passages that `calibrate` would read, without a model.

    Raises:
        ValueError: as `calibrate` does, before anything is measured.
    """
    if router_cost not in FAMILIES:
        raise ValueError(f"router_cost must be {' or '.join(map(repr, FAMILIES))}, got {router_cost!r}")
    numbers = {"window": window, "swaps": swaps, **{f"lengths[{index}]": one for index, one in enumerate(lengths)}}
    numbers |= {f"passages[{index}]": one for index, one in enumerate(passages)}
    for name, number in numbers.items():
        least = 0 if name == "swaps" else LEAST if name == "window" else 1
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
    if not lengths or min(lengths) <= 2 * window:
        raise ValueError(f"every length must be more than twice the window of {window}, got {tuple(lengths)}")
    number = isinstance(target_kl, (int, float)) and not isinstance(target_kl, bool)
    if target_kl is not None and not (number and 0 < target_kl < math.inf):
        raise ValueError(f"target_kl must be a number of nats above 0, got {target_kl!r}")
    if len(passages) != 3:
        raise ValueError(f"passages are three numbers, to fit, choose and report with; got {passages!r}")
    return split(texts, lengths[0], passages, window, seed)


def _weights(model: nn.Module) -> str:
    """A hash of the weights' names, shapes, dtypes and sums."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        total = float(parameter.detach().float().sum())
        found.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{total:.6e}".encode())
    return found.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
