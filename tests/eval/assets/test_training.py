"""The training scripts' own forward pass is the transformers model's, and upcycling changes nothing at first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

import tiny_fast
import tiny_model


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return tiny_model.new_dense(300, 0).eval()


@torch.no_grad()
def fast(model, ids, plain: bool) -> torch.Tensor:
    length = ids.shape[1]
    mask = torch.full((length, length), -1e9).triu(1) if plain else None
    return tiny_fast._forward(model, ids, *tiny_fast._angles(model.config, length), mask)[0]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_the_fast_forward_computes_what_the_model_does(dense, plain, sparse):
    model = tiny_model.upcycled(dense).eval() if sparse else dense
    ids = torch.randint(0, 300, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(fast(model, ids, plain), expected, atol=1e-4, rtol=1e-4)


def test_an_upcycled_model_begins_as_the_dense_one(dense):
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(tiny_model.upcycled(dense).eval()(ids).logits, dense(ids).logits, atol=1e-4)
