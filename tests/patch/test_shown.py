"""What objects show of themselves fits a screen, folds equal layers, and is what they hold."""

import random

import pytest
import torch
from models import make_model

import sa_patch
from sa_patch import Plan, variant
from sa_patch.calibration import Calibration, Outcome
from sa_patch.shown import SCREEN, SCREEN_LINES


@pytest.fixture(scope="module")
def deep():
    """36 layers on the meta device: nothing of this reads weights."""
    with torch.device("meta"):
        return make_model(num_hidden_layers=36, max_position_embeddings=40_960)


def plan_of(kinds: int, layers: int = 36) -> Plan:
    """A plan of so many different variants, in a shuffled order."""
    numbers = [place % kinds for place in range(layers)]
    random.Random(kinds).shuffle(numbers)
    return Plan(tuple(variant("routed", 32 + 4 * number, block_size=4) for number in numbers), window=100)


def fits(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= SCREEN_LINES and max(map(len, lines)) <= SCREEN


@pytest.mark.parametrize("kinds", [1, 2, 6, 18, 36])
def test_a_patch_of_36_layers_fits_a_screen(deep, kinds):
    with sa_patch.apply(deep, plan=plan_of(kinds)) as patch:
        text, everything = repr(patch), patch.describe()
        assert fits(text)
        assert text.splitlines()[0].startswith("patch") and text.splitlines()[-2].startswith("calls")
        assert ("more: patch.describe()" in text) == (kinds > 6), text
        assert all(f"window={32 + 4 * number}," in everything for number in range(kinds))
        assert "refused" not in text and "refused" in everything


def test_a_patch_says_in_one_line_what_equal_layers_run(deep):
    kinds = [variant("full"), variant("swa", 64, sinks=4)]
    plan = Plan(tuple(kinds[layer in range(2, 34)] for layer in range(36)))
    with sa_patch.apply(deep, plan=plan) as patch:
        lines = [line for line in repr(patch).splitlines() if line.startswith("layers")]
        assert lines == ["layers     0-1, 34-35: full", "layers     2-33: swa, window=64, sinks=4"]
        assert repr(patch.plan).splitlines()[1:] == lines


def test_a_budget_folds_equal_layers(deep):
    with sa_patch.apply(deep, "swa", 512, dense_layers=(0, -1)) as patch:
        budget = patch.budget(8192)
        text = repr(budget)
    sparse, dense = budget.per_layer[1].pairs, budget.per_layer[0].pairs
    assert text.splitlines() == [
        "budget     8,192 tokens: 696.1 keys per query, density 17.0%",
        "asked for  496.0 keys per query in every sparse layer",
        f"layers     0, 35: dense, {dense:,} pairs",
        f"layers     1-34: sparse, {sparse:,} pairs",
    ]


def test_a_budget_tells_upper_bounds_routers_and_missed_targets(deep):
    with sa_patch.apply(deep, "moba", 128, sinks=4) as patch:
        budget = patch.budget(1024)
        assert "at most " in repr(budget) and f"router {budget.per_layer[0].router_scores:,}" in repr(budget)
    with sa_patch.apply(deep, "sa", 600, form="bucket") as patch:
        budget = patch.budget(1024)
        assert f"({budget.off_target:+.0%} in fact)" in repr(budget)


def test_a_plan_says_how_many_variants_it_has_and_fits_a_screen():
    text = repr(plan_of(5))
    assert text.splitlines()[0] == "plan       5 variants over 36 layers, 100 keys per query asked for on average"
    assert text.count("routed, window=") == 5
    assert fits(repr(plan_of(36))) and "more: plan.groups()" in repr(plan_of(36))
    assert "100 keys" not in repr(Plan((variant("swa", 8),) * 3)) and "1 variant over 3 layers" in repr(
        Plan((variant("swa", 8),) * 3)
    )


def calibrated() -> Calibration:
    plan = plan_of(3)
    outcomes = [
        Outcome(name, plan, {"text": loss, "needle": 0.5, "aggregation": 0.25}, {"text": [loss, loss]})
        for name, loss in (("plan", 0.062), ("routed", 0.083))
    ]
    return Calibration(plan, 100, (1024,), "routed", tuple(outcomes), {"text": 2}, (5, 1), 60.0, [[0.0]])


def test_a_calibration_shows_its_answer_losses_and_plan():
    text = repr(calibrated())
    assert "0.062 nats per token from full attention on your text" in text.replace("\n           ", " ")
    assert "plan" in text and "routed" in text and text.count("routed, window=") == 3
    assert "KL         0.083 on text: routed" in text and fits(text)


@pytest.mark.parametrize("name", ["patch", "plan", "budget", "calibration"])
def test_notebooks_get_a_table_whose_text_is_escaped(deep, name):
    class Hostile(type(variant("swa"))):
        name = "<b>&mine</b>"

    with sa_patch.apply(deep, variant=Hostile(window=64)) as patch:
        shown = {"patch": patch, "plan": patch.plan, "budget": patch.budget(256), "calibration": calibrated()}[name]
        html = shown._repr_html_()
    assert html.startswith("<table") and html.count("<tr>") == html.count("</tr>") >= 2
    assert "<b>" not in html
    words = html.replace("</th><td>", " ").replace("</td></tr>", " ").replace("<tr><th>", " ")
    assert all(word in words for word in repr(shown).split()[:3] if "<" not in word)
