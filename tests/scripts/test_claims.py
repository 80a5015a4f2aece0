"""The page of claims says what the figures say."""

import json
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


GATED_BEST = {"gated": 1.0, "gated-swa": 1.1, "swa": 1.2, "full": 1.3, "sa": 1.5}
WINDOW_BEST = {"gated-swa": 1.0, "swa": 1.1, "gated": 1.2, "full": 1.3, "sa": 1.5}


def _trained(window, losses, seeds=3, apart=0.0):
    """Losses by seed that differ by 1; gated's by `apart` more in the first seed."""
    arms = []
    for name, loss in losses.items():
        own = [loss + seed + (apart if name == "gated" and not seed else 0) for seed in range(seeds)]
        title = name if name == "full" else f"{name} w={window}"
        arms.append({"title": title, "seeds": seeds, "loss": loss, "loss_by_seed": own})
    arms.append({"title": f"full, read with sa w={window}", "seeds": 1, "loss": 9.0, "loss_by_seed": [9.0]})
    return {"arms": arms, "parameters": 3e6, "tokens": 1000, "settings": {"window": [window]}}


@pytest.mark.parametrize(
    ("found", "verdict", "why"),
    [
        (_trained(64, GATED_BEST), "holds", "worse in every seed"),
        (_trained(64, {**GATED_BEST, "gated-swa": 0.9}), "only under a condition", "is better in every seed"),
        (_trained(64, GATED_BEST, apart=0.5), "only under a condition", "without sa can't be told apart"),
        (_trained(64, {**GATED_BEST, "swa-half": 1.05}), "holds", "and a window whose output is halved"),
        (_trained(64, {**GATED_BEST, "swa-half": 0.95}), "only under a condition", "or gate, is better in every seed"),
        (_trained(64, WINDOW_BEST), "does not hold", "another one"),
        (_trained(64, {**GATED_BEST, "full": 0.5}), "does not hold", "another one"),
        (_trained(64, GATED_BEST, seeds=2), "not checked", "too few arms or seeds"),
        (_trained(64, {"gated": 1.0, "swa": 1.2, "full": 1.3, "sa": 1.5}), "not checked", "too few arms or seeds"),
    ],
)
def test_gates_are_held_against_a_gated_window(claims, monkeypatch, found, verdict, why):
    found["arms"].sort(key=lambda row: row["loss"])
    monkeypatch.setattr(claims.from_scratch, "pretrained", lambda: [found])
    made = claims.from_scratch.gated()
    assert made.verdict == verdict and why in made.found and "read with" not in made.found


@pytest.mark.parametrize(
    ("at_128", "seeds", "verdict"),
    [(GATED_BEST, 3, "holds"), (WINDOW_BEST, 3, "only under a condition"), (WINDOW_BEST, 2, "holds")],
)
def test_gates_are_judged_at_every_window(claims, monkeypatch, at_128, seeds, verdict):
    monkeypatch.setattr(
        claims.from_scratch, "pretrained", lambda: [_trained(64, GATED_BEST), _trained(128, at_128, seeds)]
    )
    made = claims.from_scratch.gated()
    assert made.verdict == verdict
    assert made.found.startswith("64 keys: gated 1.000, gated-swa 1.100") and ". 128 keys: " in made.found
    assert ("(2 seeds)" in made.found) == (seeds == 2)
    monkeypatch.setattr(claims.from_scratch, "pretrained", list)
    assert claims.from_scratch.gated().verdict == claims.OPEN


def test_figures_are_not_replaced_by_fewer(claims, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    monkeypatch.setattr(claims, "read", lambda name: json.loads((tmp_path / f"{name}.json").read_text()))
    whole = json.dumps(_trained(64, GATED_BEST))
    (tmp_path / "pretrain-w64.json").write_text(whole)
    (tmp_path / "report.json").write_text(json.dumps(_trained(64, GATED_BEST, seeds=2)))
    monkeypatch.setattr("sys.argv", ["claims.py", "--keep", "pretrain", str(tmp_path)])
    with pytest.raises(SystemExit):
        claims.main()
    assert "has gated w=64 (3 seeds), gated-swa w=64 (3 seeds)" in capsys.readouterr().err
    assert (tmp_path / "pretrain-w64.json").read_text() == whole
