"""Laws of what calibration measures: errors are those of masks, and a pass that begins at a layer is the whole pass."""

import pytest
import torch
from models import make_model
from torch import nn

from sa_patch import Plan
from sa_patch.calibration import errors
from sa_patch.calibration.candidates import Candidate, candidates
from sa_patch.calibration.reading import Heads, Reader, divergence, thinned
from sa_patch.geometry import Group
from sa_patch.variants import make_variant

LENGTH = 192


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[1]))


def test_output_errors_are_those_of_masks():
    heads = Heads(1, drawn(1, 4, LENGTH, 8), drawn(1, 2, LENGTH, 8), drawn(1, 2, LENGTH, 8) + 1, 8**-0.5)
    projection = nn.Linear(32, 24)
    some = candidates(24, (LENGTH,))
    some += [Candidate("charged", make_variant("routed", {"window": 48, "block_size": 8, "router_cost": "charged"}))]
    with torch.inference_mode():
        found = errors.output_errors(heads, some, projection)
        plain = errors.output_errors(heads, some, None)
        rows = [row for start in errors._starts(LENGTH) for row in range(start, start + errors.CHUNK)]
        for place, one in enumerate(some):
            change = masked(heads, one.variant, rows) - masked(heads, make_variant("full", {}), rows)
            torch.testing.assert_close(float(plain[place]), float(change.square().mean()), rtol=1e-4, atol=1e-12)
            projected = change @ projection.weight.double().T
            torch.testing.assert_close(float(found[place]), float(projected.square().mean()), rtol=1e-4, atol=1e-12)
    assert found[0] == 0 and (found[1:] > 0).all()


def masked(heads, variant, rows):
    """Attention of some rows in float64 over the whole mask: [rows, heads * head_dim]."""
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    seen = causal
    if not variant.always_dense:
        pattern = variant.sparse_pattern(
            Group(LENGTH, LENGTH, torch.device("cpu")), heads.layer, heads.query, heads.key
        )
        seen = pattern.visible()
    query, key, value = (
        heads.query.double(),
        *(one.double().repeat_interleave(2, 1) for one in (heads.key, heads.value)),
    )
    scores = (query @ key.transpose(-1, -2) * heads.scaling).masked_fill(~(seen & causal), -torch.inf)
    return (scores.softmax(-1) @ value)[0, :, rows].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "llama"])
def test_a_pass_that_begins_at_a_layer_is_the_whole_pass(kind):
    net = make_model(kind)
    reader, ids = Reader(net), torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(5))
    full, sparse = make_variant("full", {}), make_variant("routed", {"window": 16})
    count, positions = len(reader.layers), range(40, LENGTH, 7)
    with torch.inference_mode():
        bare = reader.log_probs(ids, positions)
        with reader.running(Plan((full,) * count)), reader.outputs_kept() as kept:
            assert torch.equal(reader.log_probs(ids, positions), bare)
            outputs = list(kept)
        for layer in range(count):
            plan = Plan(tuple(sparse if place == layer else full for place in range(count)))
            with reader.running(plan):
                whole = reader.log_probs(ids, positions)
                with reader.beginning_at(layer, outputs):
                    torch.testing.assert_close(reader.log_probs(ids, positions), whole, rtol=1e-6, atol=1e-6)
                assert torch.equal(reader.log_probs(ids, positions), whole)  # and nothing stays behind
            assert divergence(bare, whole) > 0
        assert torch.equal(reader.log_probs(ids, positions), bare)


def test_divergence_is_the_mean_over_positions():
    one, other = (drawn(300, 50).log_softmax(-1), (drawn(300, 50) + drawn(300, 50).roll(1, 0)).log_softmax(-1))
    expected = torch.nn.functional.kl_div(other.double(), one.double(), log_target=True, reduction="batchmean")
    assert divergence(one, other) == pytest.approx(float(expected)) and divergence(one, one) == 0


def test_thinned_positions_are_even_and_few():
    assert thinned(range(10), 20) == list(range(10)) and thinned(range(100), 30) == list(range(0, 100, 4))
