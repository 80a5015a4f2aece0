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
    row = {"sinks": 0, "window": 64, "difference": better, "low": better - 0.05, "high": better + 0.05, "p_adjusted": p}
    found = {"documents": 9, "seeds": 3, "sa_minus_swa": [row], "arms": []}
    monkeypatch.setattr(claims, "_read", lambda name: found)
    made = claims.small_windows()
    assert made.verdict == verdict and f"{100 * better:+.1f} points" in made.found
    monkeypatch.setattr(claims, "_read", lambda name: None)
    assert claims.small_windows().verdict == claims.OPEN
