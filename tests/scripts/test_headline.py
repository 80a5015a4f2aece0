"""README's first table says what the figures say."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def headline(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import write_headline

    return write_headline


def test_the_table_is_what_the_results_give(headline):
    readme = (ROOT / "README.md").read_text()
    assert readme == headline.page(readme)


def test_losses_come_first_and_what_was_not_measured_stays_empty(headline, monkeypatch):
    def text(kind, kl):
        return {"kind": kind, "variant": "sa", "window": 128, "kl": kl, "agreement": 0.5, "keys_per_query": 120.0}

    fidelity = [text(kind, 2.0) for kind in ("technical", "fiction")]
    fidelity += [row | {"variant": "swa", "kl": 3.0, "router": 7.2} for row in fidelity]
    task = {"arms": [{"variant": "swa", "window": 32, "accuracy": 0.25}]}
    old, new = ({"length": 16_384, "window": 128, "calls": calls} for calls in ({}, {}))
    old["calls"] = {"sa/torch": {"times_full": 2.0}, "sa/cpp": {"times_full": 3.0}, "swa/torch": {"times_full": 9.0}}
    new["calls"] = {"swa/torch": {"times_full": 4.0}}
    found = {
        "real-model-smollm2-135m": {"fidelity": fidelity, "lambada": task},
        "cpu-xeon-avx512-2-cores": {"cells": [old, new]},
    }
    monkeypatch.setattr(headline, "read", found.get)
    monkeypatch.setattr(headline, "ROWS", (("A", "sa", "sa"), ("B", "swa", "swa")))
    rows = headline.table().splitlines()[2:]
    assert rows == [
        "| B | 3.000 | 3.000 | 50 / 50 % | 120 + 7 | 25.0 % | 4.0 |",
        "| A | 2.000 | 2.000 | 50 / 50 % | 120 |  | 2.0 / 3.0 |",
    ]
