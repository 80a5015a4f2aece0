"""Laws about `sa`'s permutations per kv head and about the weights of sampled keys."""

import math

import pytest
import torch
from patch_cases import CPU, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch.analysis.layers import patterns
from sa_patch.geometry import Group
from sa_patch.horizons import horizon_of
from sa_patch.patterns import Heads
from sa_patch.randomness import inverse, permutation, token_keys

FORMS = [{}, {"circular": True}, {"form": "bucket"}, {"horizon": "dyadic"}, {"horizon": "dyadic", "form": "bucket"}]


def near_by_hand(variant, width, length, head, layer_idx=2):
    """The random part of the definition, pair by pair: bool [n, n], with pi of one kv head."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        horizon = horizon_of(i) if variant.horizon == "dyadic" else length
        rank = inverse(permutation(horizon, variant.seed, layer_idx, head=head)).tolist()
        for j in range(i + 1):
            apart = abs(rank[i] - rank[j])
            apart = min(apart, horizon - apart) if variant.circular else apart
            run = 2 * width - 1
            mask[i, j] = rank[i] // run == rank[j] // run if variant.form == "bucket" else apart < width
    return mask


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_every_kv_head_has_a_permutation_of_its_own(options):
    variant = sa_patch.variant("sa", 9, seed=5, heads="each", **options)
    width = 6 if "horizon" in options else 9  # a dyadic window is two thirds of the window
    query, key, _ = random_heads(70, heads=6, kv_heads=3, batch=1)
    mask = make_pattern(variant, 70, 2, query, key).visible()[0]
    for head in range(6):
        assert torch.equal(mask[head], near_by_hand(variant, width, 70, head // 2))
    assert not torch.equal(mask[0], mask[2])


def test_the_keys_of_a_head_follow_its_number_in_the_layer():
    """What a process with some of the heads computes is what it is in the whole layer."""
    # Pinned: the same numbers on every platform, release and device.
    assert token_keys(3, 0, 0, head=0).tolist() == [2558780209272432293, 3506973470606319485, 86475431788152653]
    assert len({tuple(permutation(64, 0, 0, head=head).tolist()) for head in (None, *range(8))}) == 9
    variant = make_variant("sa+swa-dyadic-weighted")
    whole = variant.sparse_pattern(Group(80, 80, CPU, kv_heads=3), 1, None, None).visible()[0]
    for head in range(3):
        alone = variant.sparse_pattern(Group(80, 80, CPU, first_head=head), 1, None, None)
        assert torch.equal(alone.visible(), whole[head])


def test_one_kv_head_or_a_full_pattern_is_no_pattern_of_heads():
    variant = sa_patch.variant("sa", 9, heads="each")
    assert not isinstance(variant.sparse_pattern(Group(40, 40, CPU), 0, None, None), Heads)
    assert variant.sparse_pattern(Group(9, 9, CPU, kv_heads=4), 0, None, None).visible().dim() == 2


def attention_by_hand(query, key, value, visible, variant, scaling):
    """Softmax with the weights, one query at a time, in float64: [heads, n, head_dim]."""
    output = torch.zeros_like(query)
    sizes, group = variant.sizes(query.shape[1]), query.shape[0] // key.shape[0]
    for head in range(query.shape[0]):
        for i in range(query.shape[1]):
            certain = [j for j in range(i + 1) if j < sizes.sinks or i - j < max(1, sizes.local)]
            others = [j for j in range(i + 1) if j not in certain]
            sampled = [j for j in others if visible[head, i, j]]
            if i >= query.shape[1] - variant.dense_tail:
                sampled = others
            scores = {j: scaling * float(query[head, i] @ key[head // group, j]) for j in certain + sampled}
            for j in sampled:
                scores[j] += variant.weight_power * math.log(len(others) / len(sampled))
            total = sum(math.exp(score) for score in scores.values())
            for j, score in scores.items():
                output[head, i] += math.exp(score) / total * value[head // group, j]
    return output


@pytest.mark.parametrize("more", [{"sinks": 2}, {"local": 4, "weight_power": 1, "dense_tail": 5}], ids=str)
@pytest.mark.parametrize("heads", ["shared", "each"])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_sampled_keys_stand_for_those_that_were_not_drawn(options, heads, more):
    query, key, value = (tensor.double() for tensor in random_heads(75, heads=2, kv_heads=2, batch=1, head_dim=8))
    variant = sa_patch.variant("sa", 12, heads=heads, weight="sampled", **options, **more)
    plain = sa_patch.variant("sa", 12, heads=heads, **options, **{**more, "weight_power": 0.5})
    pattern = make_pattern(plain, 75, 0, query, key)
    visible = pattern.visible().expand(1, 2, 75, 75)[0]
    expected = attention_by_hand(query[0], key[0], value[0], visible, variant, 0.3)
    for kernel in ("reference", "torch", "sdpa"):
        found = sa_patch.attention(query, key, value, variant, kernel=kernel, scaling=0.3)
        torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-10)
    assert make_pattern(variant, 75, 0, query, key).count() == pattern.count(), "weights show no other pairs"


def test_power_0_is_no_weight_and_power_1_makes_alike_keys_count_as_full_attention_does():
    query, key, value = random_heads(200, heads=2, kv_heads=1, batch=1)
    options = {"sinks": 3, "local": 5}
    none = sa_patch.attention(query, key, value, sa_patch.variant("sa", 20, **options))
    zero = sa_patch.variant("sa", 20, weight="sampled", weight_power=0, **options)
    torch.testing.assert_close(sa_patch.attention(query, key, value, zero), none, rtol=1e-5, atol=1e-5)
    # Keys that are all alike, values that tell certain from sampled: the certain keys' share must be full attention's.
    value = torch.zeros_like(value)
    value[:, :, :3], value[:, :, 195:] = 1, 1
    one = sa_patch.variant("sa", 20, weight="sampled", weight_power=1, **options)
    found = sa_patch.attention(query, torch.ones_like(key), value, one)[0, :, -1]
    torch.testing.assert_close(found, torch.full_like(found, 8 / 200), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["torch", "sdpa"])
def test_gradients_are_those_of_the_reference(kernel):
    gradients = []
    for name in ("reference", kernel):
        tensors = [tensor.requires_grad_() for tensor in random_heads(100)]
        variant = make_variant("sa+swa-dyadic-weighted")
        sa_patch.attention(*tensors, variant, kernel=name).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_without_certain_keys_and_powers_without_weights_are_refused():
    for options in ({}, {"local": 1}):
        with pytest.raises(ValueError, match=r"no key but the query's own is certain .*: give sinks or local"):
            sa_patch.variant("sa", 12, weight="sampled", **options)
    with pytest.raises(ValueError, match="weight_power=1 has no meaning for weight='none'"):
        sa_patch.variant("sa", 12, weight_power=1, sinks=2)
    for kernel in ("triton", "flex"):
        with pytest.raises(NotImplementedError, match="no code for weights of sampled keys: use kernel='torch'"):
            sa_patch.attention(*random_heads(40), make_variant("sa-bucket-weighted"), kernel=kernel)


def test_the_budget_is_what_the_heads_see_on_average(qwen3):
    with sa_patch.apply(qwen3, "sa", 12, heads="each", sinks=2, local=3) as patch:
        for layer, counted in enumerate(patch.budget(90).per_layer):
            mask = patch.mask(90, layer)
            assert mask.shape == (2, 90, 90)
            assert abs(counted.pairs - mask.sum().item() / 2) <= 0.5


def test_heads_that_something_else_split_are_refused(qwen3):
    with sa_patch.apply(qwen3, "sa", 12, heads="each") as patch:
        for layer in patch._state.layers:
            layer.kv_heads = 4
        with pytest.raises(NotImplementedError, match="layer 0 gets 2 kv heads where the model's weights hold 4"):
            qwen3(torch.ones(1, 20, dtype=torch.long))


def test_what_has_one_mask_per_layer_refuses_a_mask_per_head(qwen3):
    with sa_patch.apply(qwen3, "sa", 12, heads="each") as patch, pytest.raises(ValueError, match="mask per kv head"):
        patch.plot_mask(40)
    with pytest.raises(ValueError, match=r"every kv head other keys .* use heads='shared'"):
        next(patterns(sa_patch.variant("sa", 12, heads="each"), 40, 2, 0))
