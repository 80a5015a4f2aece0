"""The page of claims says what the figures say."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import claims

    return claims


def test_the_page_is_what_the_results_give(claims):
    assert (ROOT / "docs" / "claims.md").read_text() == claims.page()


@pytest.mark.parametrize(
    ("better", "p", "verdict"), [(0.1, 0.01, "holds"), (0.1, 0.2, "does not hold"), (-0.1, 0.01, "does not hold")]
)
def test_a_verdict_follows_from_the_figures(claims, monkeypatch, better, p, verdict):
    both = ("right", "likelihood")
    row = {"task": "lambada", "window": 64, "difference": better, "interval": [better - 0.05, better + 0.05]}
    rows = [{**row, "asked": "sa - swa, 0 sinks", "measure": measure, "p_adjusted": p} for measure in both]
    found = {"tasks": {"lambada": {"documents": 9}}, "seeds": 3, "differences": rows}
    monkeypatch.setattr(claims.short_prompts, "read", lambda name: found)
    made = claims.short_prompts.small_windows()
    assert made.verdict == verdict and f"{100 * better:+.1f} (" in made.found
    monkeypatch.setattr(claims.short_prompts, "read", lambda name: None)
    assert claims.short_prompts.small_windows().verdict == claims.OPEN


@pytest.mark.parametrize(
    ("wins", "without", "verdict"),
    [(0.2, -0.1, "holds"), (0.2, 0.2, "does not hold"), (-0.2, -0.3, "not checked")],
)
def test_what_the_first_token_explains(claims, monkeypatch, wins, without, verdict):
    figures = {"sa - swa, 0 sinks": wins, "sa - swa, 1 sinks": 0.0}
    figures |= {"sa without the first token - swa": without, "sa without the first token - sa": without - wins}
    rows = [
        {"task": "lambada", "window": 64, "asked": asked, "measure": measure, "difference": value}
        | {"interval": [value - 0.01, value + 0.01], "p_adjusted": 0.001 if value else 1.0}
        for asked, value in figures.items()
        for measure in ("right", "likelihood")
    ]
    monkeypatch.setattr(claims.short_prompts, "read", lambda name: {"differences": rows, "arms": []})
    assert claims.short_prompts.without_the_sink().verdict == verdict


@pytest.mark.parametrize(
    ("losses", "seeds", "verdict"),
    [
        ({"gated": 1.0, "gated-swa": 1.1, "swa": 1.2, "sa": 1.5}, 3, "holds"),
        ({"gated-swa": 0.9, "gated": 1.0, "swa": 1.2, "sa": 1.5}, 3, "only under a condition"),
        ({"gated-swa": 0.9, "swa": 1.0, "gated": 1.2, "sa": 1.5}, 3, "does not hold"),
        ({"gated": 1.0, "gated-swa": 1.1, "swa": 1.2, "sa": 1.5}, 2, "not checked"),
        ({"gated": 1.0, "swa": 1.2, "sa": 1.5}, 3, "not checked"),
    ],
)
def test_gates_are_held_against_a_gated_window(claims, monkeypatch, losses, seeds, verdict):
    monkeypatch.setattr(claims, "pretrained", lambda: [_trained(64, losses, seeds)])
    made = claims.gated()
    assert made.verdict == verdict and "read with" not in made.found


def _trained(window, losses, seeds=3):
    arms = [{"title": f"{name} w={window}", "seeds": seeds, "loss": loss} for name, loss in losses.items()]
    arms.append({"title": f"full, read with sa w={window}", "seeds": 1, "loss": 9.0})
    return {"arms": arms, "parameters": 3e6, "tokens": 1000, "settings": {"window": [window]}}


GATED_BEST = {"gated": 1.0, "gated-swa": 1.1, "swa": 1.2, "sa": 1.5}
WINDOW_BEST = {"gated-swa": 1.0, "swa": 1.1, "gated": 1.2, "sa": 1.5}


@pytest.mark.parametrize(
    ("at_128", "seeds", "verdict"),
    [(GATED_BEST, 3, "holds"), (WINDOW_BEST, 3, "only under a condition"), (WINDOW_BEST, 2, "holds")],
)
def test_gates_are_judged_at_every_window(claims, monkeypatch, at_128, seeds, verdict):
    monkeypatch.setattr(claims, "pretrained", lambda: [_trained(64, GATED_BEST), _trained(128, at_128, seeds)])
    made = claims.gated()
    assert made.verdict == verdict
    assert made.found.startswith("64 keys: gated 1.000, gated-swa 1.100") and ". 128 keys: " in made.found
    assert ("(2 of 3 seeds)" in made.found) == (seeds == 2)
    monkeypatch.setattr(claims, "pretrained", list)
    assert claims.gated().verdict == claims.OPEN
