"""Laws of calibrate: what is read when, that it goes on where it was stopped, and that it finds what was planted."""

import json
import random
import re

import pytest
import torch
from models import make_model

import sa_patch
from sa_patch.calibration import search, target
from sa_patch.calibration.deciding import Run
from sa_patch.calibration.measuring import CHOOSE_POSITIONS
from sa_patch.calibration.reading import Reader, divergence, thinned
from sa_patch.calibration.strata import STRATA, split
from sa_patch.counting import window_pairs

LENGTH, WINDOW = 256, 24
ASKED = {"window": WINDOW, "lengths": (LENGTH,), "passages": (1, 2, 2), "swaps": 3}


def text(seed, tokens, kinds=97):
    source = random.Random(seed)
    return [source.randrange(1, kinds) for _ in range(tokens)]


TEXTS = [("one", text(1, 1500)), ("two", text(2, 2000))]


@pytest.fixture(scope="module")
def net():
    return make_model("qwen3", num_hidden_layers=2)


@pytest.fixture(scope="module")
def done(net, tmp_path_factory):
    """A calibration, its journal, and the passages that were read by stage."""
    journal, read, stage = tmp_path_factory.mktemp("journals") / "journal.jsonl", {}, [""]
    real = Reader.ids

    def see(reader, passage):
        read.setdefault(stage[0], set()).add(passage)
        return real(reader, passage)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Reader, "ids", see)
        found = sa_patch.calibrate(
            net, TEXTS, **ASKED, journal=journal, tell=lambda name, *_: stage.__setitem__(0, name)
        )
    return found, journal, read


def test_it_leaves_the_model_bare_and_keeps_the_budget(done, net):
    found, _, _ = done
    assert not sa_patch.is_patched(net) and len(found.plan.variants) == 2
    most = search.allowed(WINDOW, 2, (LENGTH,))[LENGTH]
    assert all(search.total(one.plan.variants, LENGTH) <= most for one in found.outcomes)
    assert sa_patch.apply(net, plan=found.plan).budget(LENGTH).pairs <= most
    sa_patch.restore(net)
    assert [one.name for one in found.outcomes[:2]] == ["plan", found.recipe]
    assert all(len(one.of_passages[name]) == 2 for one in found.outcomes for name in STRATA)


def test_the_reports_passages_are_not_read_before_the_report(done):
    _, _, read = done
    made = split(TEXTS, LENGTH, ASKED["passages"], WINDOW)
    assert list(read) == ["fit", "recipes", "plans", "swaps", "report"]
    assert read["fit"] == set(made.fit) and read["recipes"] == read["swaps"] == set(made.choose)
    assert read["report"] == set(made.report)


@pytest.mark.parametrize("seed", range(3))
def test_passages_of_different_uses_share_no_token(seed):
    """By where they begin in their text, and by the tokens themselves, all of them different here."""
    texts = [("one", range(0, 3000)), ("two", range(5000, 9000))]
    made = split(texts, LENGTH, (2, 3, 4), WINDOW, seed)
    spans, tokens = [], []
    for use in (made.fit, made.choose, made.report):
        places = [re.match(r"(\w+) from token (\d+)", one.source).groups() for one in use]
        spans.append({(name, int(start)) for name, start in places})
        tokens.append({token for one in use for token in one.ids})
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not tokens[one] & tokens[other] and not spans[one] & spans[other]
    for use, count in zip((made.fit, made.choose, made.report), (2, 3, 4), strict=True):
        assert {name: sum(one.stratum == name for one in use) for name in STRATA} == dict.fromkeys(STRATA, count)
    for one in (*made.fit, *made.choose, *made.report):
        assert len(one.ids) == LENGTH and min(one.scored) >= 0 and max(one.scored) < LENGTH - 1
    assert made == split(texts, LENGTH, (2, 3, 4), WINDOW, seed) != split(texts, LENGTH, (2, 3, 4), WINDOW, seed + 1)


def test_needles_can_be_found_and_counted_snippets_are_there():
    made = split([("one", range(5000))], LENGTH, (1, 1, 1), WINDOW)
    needle = next(one for one in made.fit if one.stratum == "needle")
    for position in needle.scored:  # the token that follows stood earlier, after the token that is read
        assert (needle.ids[position], needle.ids[position + 1]) in zip(needle.ids, needle.ids[1:-48], strict=False)
    counted = next(one for one in made.fit if one.stratum == "aggregation")
    begins = [counted.ids[place] for place in range(0, LENGTH, 12)]
    assert len(set(begins)) <= 8 and max(map(begins.count, begins)) > len(begins) / 8


def test_a_journal_gives_the_same_again_without_measuring(done, net, monkeypatch):
    found, journal, _ = done
    before = journal.read_text()
    monkeypatch.setattr(Reader, "log_probs", lambda *_: pytest.fail("measured again"))
    again = sa_patch.calibrate(net, TEXTS, **ASKED, journal=journal)
    assert again.plan == found.plan and again.outcomes == found.outcomes and again.swaps == found.swaps
    assert again.sentence() == found.sentence() and journal.read_text() == before
    assert again.seconds == pytest.approx(found.seconds, abs=0.1) and again.seconds > 0


@pytest.mark.parametrize("stage", ["fit", "swaps", "report"])
def test_a_stopped_one_goes_on(done, net, tmp_path, stage):
    found, whole, _ = done

    def stop(name, step, total):
        if name == stage and step == 1:
            raise KeyboardInterrupt

    journal = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sa_patch.calibrate(net, TEXTS, **ASKED, journal=journal, tell=stop)
    assert not sa_patch.is_patched(net)
    with journal.open("a") as file:
        file.write('{"key": "report 0 torn')  # no line end: the process died while it wrote
    kept = journal.read_text().splitlines()[:-1]
    again = sa_patch.calibrate(net, TEXTS, **ASKED, journal=journal)
    assert again.plan == found.plan and again.outcomes == found.outcomes
    lines = journal.read_text().splitlines()
    assert lines[: len(kept)] == kept
    keys = [json.loads(line).get("key") for line in lines]
    assert keys == [json.loads(line).get("key") for line in whole.read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"window": 32}, "window"), ({"seed": 1}, "passages, seed"), ({"lengths": (256, 512)}, "lengths")],
)
def test_a_journal_of_other_settings_is_refused(done, net, changes, named):
    _, journal, _ = done
    with pytest.raises(ValueError, match=f"measured with other settings .*{named}"):
        sa_patch.calibrate(net, TEXTS, **{**ASKED, **changes}, journal=journal)


def test_a_journal_of_another_model_or_a_damaged_one_is_refused(done, tmp_path):
    _, journal, _ = done
    other = make_model("qwen3", num_hidden_layers=2)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight += 0.01
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        sa_patch.calibrate(other, TEXTS, **ASKED, journal=journal)
    lines = journal.read_text().splitlines()
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="damaged in line 2"):
        sa_patch.calibrate(make_model("qwen3", num_hidden_layers=2), TEXTS, **ASKED, journal=damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 8}, "window must be a whole number of at least 12, got 8"),
        ({"window": 200}, "more than twice the window of 200"),
        ({"lengths": ()}, "more than twice the window"),
        ({"lengths": (128,)}, "passages of 128 tokens are too short"),
        ({"passages": (1, 0, 1)}, r"passages\[1\] must be a whole number of at least 1, got 0"),
        ({"passages": (1, 2)}, "passages are three numbers"),
        ({"passages": (5, 5, 5)}, "calibration needs 30 passages of 256 tokens, the texts hold 12"),
        ({"swaps": -1}, "swaps must be"),
        ({"router_cost": "free"}, "router_cost must be 'reported' or 'charged', got 'free'"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(net, changes, message, monkeypatch):
    monkeypatch.setattr(Reader, "log_probs", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=message):
        sa_patch.calibrate(net, TEXTS, **{**ASKED, **changes})


def test_a_patched_model_is_refused(net):
    with sa_patch.apply(net, "swa", 8), pytest.raises(ValueError, match="the model is patched: restore it"):
        sa_patch.calibrate(net, TEXTS, **ASKED)


def test_a_layer_whose_attention_alone_counts_gets_the_window():
    """Planted: in all layers but one, nothing of the attention reaches the residual stream."""
    planted = make_model("qwen3", num_hidden_layers=4)
    with torch.no_grad():
        for layer in (0, 1, 3):
            planted.model.layers[layer].self_attn.o_proj.weight.zero_()
    found = sa_patch.calibrate(planted, TEXTS, **{**ASKED, "swaps": 0})
    costs = [search.cost(variant, LENGTH) for variant in found.plan.variants]
    assert costs[2] > 2 * max(costs[:2] + costs[3:])
    assert found.outcome("plan").divergence["text"] < found.outcome(found.recipe).divergence["text"]
    assert found.difference("plan", "plan") == (0, 0, 0)
    assert all(one.divergence["text"] > 0 for one in found.outcomes[1:])


def test_the_sentence_says_what_is_lost(done):
    found, _, _ = done
    worse = [
        name for name in STRATA if found.outcome("plan").divergence[name] > found.outcome(found.recipe).divergence[name]
    ]
    assert ("It loses to it on" in found.sentence()) == bool(worse)
    assert f"{WINDOW} keys per query, {LENGTH} tokens" in found.sentence()


def test_a_plan_that_pays_its_routers_costs_no_more_with_them(net):
    found = sa_patch.calibrate(net, TEXTS, **{**ASKED, "window": 40, "swaps": 2}, router_cost="charged")
    most = 2 * window_pairs(LENGTH, 40)
    paid = [sum(variant.sparse_budget(LENGTH, 0).charged for variant in one.plan.variants) for one in found.outcomes]
    assert max(paid) > 0 and all(search.total(one.plan.variants, LENGTH) <= most for one in found.outcomes)
    assert {one.name for one in found.outcomes} >= {"plan", "routed, blocks of w/4, charged", "swa, 4 sinks"}
    assert "40 keys per query, routers paid from them" in found.sentence()
    patch = sa_patch.apply(net, plan=found.plan)
    with torch.inference_mode():
        net(torch.tensor([TEXTS[0][1][:LENGTH]]))
    sa_patch.restore(net)
    assert sum(one.charged for one in patch.budget(LENGTH).per_layer) == paid[0]


def test_the_cheapest_budget_is_found_to_a_sixteenth():
    for wanted in (12, 13, 40, 63, 64):
        asked = []

        def keeps(window, wanted=wanted, asked=asked):
            asked.append(window)
            return window >= wanted

        found = target.cheapest(keeps, 64)
        assert wanted <= found <= wanted + max(1, found // 16) and len(asked) <= 8


def test_a_target_gives_the_cheapest_plan_that_keeps_it_where_it_was_chosen(done, net, tmp_path):
    asked = {**ASKED, "window": 48, "swaps": 0, "journal": tmp_path / "journal.jsonl"}
    at_least = done[0].outcome("plan").divergence
    wanted = 1.3 * max(at_least.values())
    found = sa_patch.calibrate(net, TEXTS, **asked, target_kl=wanted)
    assert 12 <= found.window < 48 and found.plan.window == found.window and found.target_kl == wanted
    assert search.total(found.plan.variants, LENGTH) <= 2 * window_pairs(LENGTH, found.window)
    mean, low, high = found.reported()
    assert mean == found.outcome("plan").divergence["text"] and low <= mean <= high
    assert f"below {wanted:g} on the passages" in found.sentence()
    assert f"(95 % interval {max(0.0, low):.3f} to {high:.3f})" in found.sentence()
    routers = (
        search.router(found.plan.variants, LENGTH),
        search.router(found.outcome(found.recipe).plan.variants, LENGTH),
    )
    told = f"costs {routers[0]:.0f} pairs per query beside that, the recipe {routers[1]:.0f}."
    assert (told in found.sentence()) == (max(routers) >= 1)
    assert ("Above the target" in found.sentence()) == bool(found.over_target())
    # Its own passages say that it is kept: read again, by the definition.
    reader, made = Reader(net), split(TEXTS, LENGTH, ASKED["passages"], 48)
    for stratum in STRATA:
        values = []
        for passage in (one for one in made.choose if one.stratum == stratum):
            positions = thinned(passage.scored, CHOOSE_POSITIONS)
            with torch.inference_mode():
                full = reader.log_probs(reader.ids(passage), positions)
                with reader.running(found.plan):
                    values.append(divergence(full, reader.log_probs(reader.ids(passage), positions)))
        assert sum(values) / len(values) <= wanted + 1e-6
    with pytest.raises(ValueError, match=r"other settings .*target_kl"):
        sa_patch.calibrate(net, TEXTS, **asked, target_kl=2 * wanted)


def test_a_target_that_cannot_be_reached_is_refused_with_the_nearest_figure(net):
    with pytest.raises(
        ValueError, match=r"at or below 1e-06 on every stratum with 24 keys .*text 0\.\d+.*target_kl to 0\.\d+"
    ):
        sa_patch.calibrate(net, TEXTS, **{**ASKED, "swaps": 0}, target_kl=1e-6)
    for value in (0, -1, float("nan"), "x", True):
        with pytest.raises(ValueError, match="target_kl must be a number of nats above 0"):
            sa_patch.calibrate(net, TEXTS, **ASKED, target_kl=value)


@pytest.mark.parametrize("router_cost", ["reported", "charged"])
def test_a_fit_that_misleads_costs_nothing_against_the_best_recipe(net, monkeypatch, router_cost):
    """The passages to choose with decide between what the fit says and the recipe in all layers."""

    def misled(errors, probes, effects):
        return torch.rand(errors.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + errors.max()

    monkeypatch.setattr(search, "estimated_losses", misled)
    asked = {**ASKED, "window": 40, "swaps": 0}
    judged = {}
    monkeypatch.setattr(Run, "_judged", lambda run, plan, real=Run._judged: judged.setdefault(plan, real(run, plan)))
    found = sa_patch.calibrate(net, TEXTS, **asked, router_cost=router_cost)
    recipe = found.outcome(found.recipe).plan
    assert sum(judged[found.plan]) <= sum(judged[recipe]) and len(judged) > 3


def test_where_nothing_is_better_the_recipe_in_all_layers_is_the_plan(net, monkeypatch):
    def nothing(*_):
        raise ValueError("no plan costs as little")

    monkeypatch.setattr(search, "planned", nothing)
    found = sa_patch.calibrate(net, TEXTS, **{**ASKED, "swaps": 0})
    assert found.plan.variants == found.outcome(found.recipe).plan.variants
    assert f"the best single recipe, {found.recipe}, in all layers, which is the plan" in found.sentence()
    assert found.difference("plan", found.recipe) == (0, 0, 0)
