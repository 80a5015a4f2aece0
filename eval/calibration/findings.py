"""A calibration as its file holds it."""

from __future__ import annotations

import math

from sa_eval.calibration.types import Findings, LayerRow, OutcomeRow, StratumRow
from sa_patch import calibration
from sa_patch.calibration import search
from sa_patch.calibration.candidates import RECIPES, recipe_of
from sa_patch.calibration.strata import STRATA
from sa_patch.saved import config_of
from sa_patch.variants import options_of


def findings(found: calibration.Calibration) -> Findings:
    """What is known once it is finished."""
    return Findings(
        sentence=found.sentence(),
        recipe=found.recipe,
        allowed=_by_length(search.allowed(found.window, len(found.plan.variants), found.lengths)),
        outcomes=[_outcome(found, one) for one in found.outcomes],
        layers=[_layer(found, layer) for layer in range(len(found.plan.variants))],
        swaps_tried=found.swaps[0],
        swaps_kept=found.swaps[1],
        seconds=round(found.seconds, 1),
    )


def _by_length(pairs: dict[int, int]) -> dict[str, int]:
    return {str(length): count for length, count in pairs.items()}


def _outcome(found: calibration.Calibration, one: calibration.Outcome) -> OutcomeRow:
    role = "plan" if one.name == "plan" else "recipe" if one.name in RECIPES else "control"
    rows = []
    for stratum in STRATA:
        mean, low, high = found.difference(one.name, found.recipe, stratum)
        same = one.name == found.recipe
        rows.append(
            StratumRow(
                stratum=stratum,
                divergence=one.divergence[stratum],
                of_passages=one.of_passages[stratum],
                difference=None if same else mean,
                low=None if same or math.isinf(low) else low,
                high=None if same or math.isinf(high) else high,
            )
        )
    pairs = {length: search.total(one.plan.variants, length) for length in found.lengths}
    router = round(search.router(one.plan.variants, found.lengths[0]), 2)
    config = config_of(one.plan, "auto")
    return OutcomeRow(name=one.name, role=role, config=config, pairs=_by_length(pairs), strata=rows, router=router)


def _layer(found: calibration.Calibration, layer: int) -> LayerRow:
    variant, length = found.plan.variants[layer], found.lengths[0]
    usual = {option.name: option.default for option in options_of(type(variant))}
    return LayerRow(
        layer=layer,
        recipe=recipe_of(variant),
        mode=variant.name,
        window=None if variant.always_dense else int(variant.window),
        keys_per_query=search.cost(variant, length) / length,
        options={
            name: value
            for name, value in variant.options().items()
            if name != "window" and value not in (usual[name], variant.defaults.get(name, usual[name]))
        },
    )
