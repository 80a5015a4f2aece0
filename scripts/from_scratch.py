"""The claim about models trained from scratch with gates, from what scripts/pretrain.py found."""

from __future__ import annotations

import json
from typing import Any

from claimed import FAILS, HOLDS, OPEN, PARTLY, RESULTS, Claim

DECIDING = ("full", "gated", "swa", "sa", "gated-swa")  # what the claim is about, and the control of its gates
CONTROLS = {
    "gated-swa": "a gated window without sa",
    "swa-half": "a window whose output is halved, without sa or gate,",
}


def pretrained() -> list[Any]:
    """Figures of every budget that models were trained from scratch with, the smallest window first."""
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.glob("pretrain-w*.json")]
    return sorted(kept, key=lambda found: found["settings"]["window"])


def gated() -> Claim:
    """The claim about training from scratch, judged at every window on its own."""
    said = "trained from scratch, gated sa + swa is best, sa alone worst"
    kept = pretrained()
    if not kept:
        return Claim(said, "`scripts/pretrain.py` (docs/gated.md)", "", OPEN)
    judged = [_trained(found, window) for found in kept for window in found["settings"]["window"]]
    verdicts = {verdict for _, verdict in judged if verdict != OPEN} or {OPEN}
    return Claim(
        said,
        f"{kept[0]['parameters'] / 1e6:.1f} million parameters, {kept[0]['tokens']:,} tokens each, three seeds: mean "
        "held-out loss",
        ". ".join(told for told, _ in judged),
        verdicts.pop() if len(verdicts) == 1 else PARTLY,
    )


def _trained(found: Any, window: int) -> tuple[str, str]:
    """(the losses of all arms that have this window or none, and what they say; verdict)"""
    rows = [row for row in found["arms"] if "read with" not in row["title"]]
    rows = [row for row in rows if row["title"] == "full" or row["title"].endswith(f" w={window}")]
    rows.sort(key=lambda row: row["loss"])
    by_name = {row["title"].removesuffix(f" w={window}"): row for row in rows}
    told = ", ".join(
        f"{name} {row['loss']:.3f}" + ("" if row["seeds"] == 3 else f" ({row['seeds']} seeds)")
        for name, row in by_name.items()
    )
    deciding = {name: by_name[name]["loss_by_seed"] for name in by_name if name in (*DECIDING, *CONTROLS)}
    if not deciding.keys() >= set(DECIDING) or any(len(seeds) < 3 for seeds in deciding.values()):
        verdict, end = OPEN, "too few arms or seeds to decide"
    else:
        verdict, end = gated_verdict(deciding)
    return f"{window} keys: {told}; {end}", verdict


def gated_verdict(losses: dict[str, list[float]]) -> tuple[str, str]:
    """(verdict, why) from the arms' losses by seed, the best arm first."""
    order = [name for name in losses if name not in CONTROLS]
    if order[0] != "gated" or order[-1] != "sa":
        return FAILS, "the order is another one"
    told, beaten = [], True
    for name, words in CONTROLS.items():
        if name in losses:
            behind = [one - other for one, other in zip(losses["gated"], losses[name], strict=True)]
            beaten = beaten and max(behind) < 0
            how = "is better" if min(behind) > 0 else "is worse" if max(behind) < 0 else "can't be told apart"
            told.append(f"{words} {how}" + (" in every seed" if how.startswith("is") else ""))
    if beaten:
        return HOLDS, " and ".join(told)
    return PARTLY, f"the order holds, but {' and '.join(told)}: it is not sa that wins"
