"""On a prompt: what layers connect where content decides, which mass visible keys hold, who sees a needle."""

import pytest
import torch

import sa_patch
from sa_patch.analysis import coverage, kept_mass, needle_sight, prompt_coverage


def test_coverage_on_a_prompt_is_that_of_the_masks(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "sa", window=6)
    found = prompt_coverage(patch, tokens)
    expected = coverage(patch.variant, 48, 3, [0])
    assert found.covered == pytest.approx(expected.covered)
    for row, other in zip(found.by_distance, expected.by_distance, strict=True):
        assert row == pytest.approx(other)
    assert patch.active and patch._state.observer is None


@pytest.mark.parametrize("mode", ["moba", "routed", "vertical-slash"])
def test_routing_by_content_is_measured(qwen3, tokens, mode):
    patch = sa_patch.apply(qwen3, mode, window=16)
    before = qwen3(tokens).logits
    found = prompt_coverage(patch, [tokens[0], tokens[0].flip(0)])
    assert len(found.per_seed) == 2 and found.exact
    shares = found.covered
    assert 0 < shares[0] < 1 and list(shares) == sorted(shares)
    budget = patch.budget(48).per_layer[0].pairs / (48 * 49 / 2)
    assert shares[0] >= budget - 1e-9  # the union over heads is at least what one head sees
    assert torch.equal(qwen3(tokens).logits, before)


def test_kept_mass_is_the_visible_share_of_the_softmax(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "swa", window=9)
    found = kept_mass(patch, tokens)
    assert found.mass.shape == (3, 4) and found.queries == 48
    seen = {}
    with sa_patch.apply(qwen3, "full") as full:
        full._state.observer = lambda layer, query, key, value, scaling: seen.setdefault(layer, (query, key, scaling))
        qwen3(tokens)
    for layer, (query, key, scaling) in seen.items():
        scores = query[0] @ key[0].repeat_interleave(2, 0).transpose(-1, -2) * scaling
        causal = torch.ones(48, 48, dtype=torch.bool).tril()
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        kept = (weights * patch.mask(48, layer)).sum(-1).mean(-1)
        assert torch.allclose(found.mass[layer], kept.double(), atol=1e-5)
    assert patch.active


def test_kept_mass_of_everything_is_all_and_of_less_is_less(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "swa", window=9, dense_layers=(1,))
    mass = kept_mass(patch, tokens).mass
    assert torch.allclose(mass[1], torch.ones(4, dtype=torch.float64)) and bool((mass[0] < 1).all())
    assert bool((kept_mass(sa_patch.apply(qwen3, "routed", window=16), tokens).mass[0] < 1).all())
    with sa_patch.apply(qwen3, "sa", window=9):
        pass


def test_a_needle_is_seen_where_the_mask_shows_it(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "sa", window=8)
    found = needle_sight(patch, tokens, range(10, 14), query=40)
    for layer in range(3):
        expected = patch.mask(48, layer)[40, 10:14].double().mean()
        assert torch.allclose(found.share[layer], expected.expand(4))
    reached = torch.eye(48)
    for layer in range(3):
        reached = (patch.mask(48, layer).float() @ reached > 0).float()
        assert found.connected[layer] == pytest.approx(float(reached[40, 10:14].mean()))


def test_what_can_not_be_measured_is_refused(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "sa", window=8)
    with pytest.raises(ValueError, match="of one length"):
        prompt_coverage(patch, [tokens[0], tokens[0, :20]])
    with pytest.raises(ValueError, match="up to 4,096 tokens"):
        prompt_coverage(patch, torch.ones(1, 5000, dtype=torch.int64))
    with pytest.raises(ValueError, match="one prompt"):
        kept_mass(patch, torch.cat([tokens, tokens]))
    with pytest.raises(ValueError, match="consecutive positions up to query"):
        needle_sight(patch, tokens, range(40, 48), query=30)
    patch.restore()
    with pytest.raises(RuntimeError, match="does not run"):
        prompt_coverage(patch, tokens)
