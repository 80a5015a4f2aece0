"""The definitions: who sees whom, counted by brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_cases import CASES, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch.counting import window_pairs
from sa_patch.randomness import inverse, permutation, token_keys


def visible_by_definition(mode, length, window, layer_idx=0, seed=0, **options):
    """SA, SWA and full attention written down pair by pair."""
    rank = inverse(permutation(length, seed, layer_idx)).tolist()
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            distance = abs(rank[i] - rank[j])
            if options.get("circular"):
                distance = min(distance, length - distance)
            mask[i, j] = {
                "full": True,
                "swa": i - j < window,
                "sa": distance < window,
                "bucket": rank[i] // (2 * window - 1) == rank[j] // (2 * window - 1),
            }[options.get("form", mode)]
    return mask


@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 63])
@pytest.mark.parametrize(
    ("mode", "options"), [("full", {}), ("swa", {}), ("sa", {}), ("sa", {"circular": True}), ("sa", {"form": "bucket"})]
)
def test_masks_are_the_definitions(mode, options, length):
    pattern = make_pattern(sa_patch.variant(mode, 12, seed=5, **options), length, layer_idx=2)
    assert torch.equal(pattern.visible(), visible_by_definition(mode, length, 12, 2, 5, **options))


@pytest.mark.parametrize("length", [5, 64, 100])
def test_moba_sees_its_own_block_and_the_best_earlier_blocks(length):
    query, key, _ = random_heads(length, heads=4, kv_heads=2, batch=1)
    variant = sa_patch.variant("moba", 15, top_k=3)
    size = 6  # round(15 / 2.5)
    mask = make_pattern(variant, length, query=query, key=key).visible().expand(1, 4, length, length)
    for head in range(4):
        for i in range(length):
            scores = {}
            for block in range(i // size):
                mean = key[0, head // 2, block * size : (block + 1) * size].mean(0)
                scores[block] = float(query[0, head, i] @ mean)
            chosen = [*sorted(scores, key=scores.get, reverse=True)[:2], i // size]
            expected = [j <= i and j // size in chosen for j in range(length)]
            assert mask[0, head, i].tolist() == expected


def test_moba_with_one_block_is_the_own_block_alone():
    query, key, _ = random_heads(40)
    pattern = make_pattern(sa_patch.variant("moba", 5, top_k=1), 40, query=query, key=key)
    row = torch.arange(40)
    assert torch.equal(pattern.visible(), (row[:, None] // 10 == row // 10) & (row <= row[:, None]))


@given(
    case=st.sampled_from(list(CASES)),
    length=st.integers(1, 90),
    window=st.integers(9, 100),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=150, deadline=None)
def test_counted_pairs_are_the_visible_pairs(case, length, window, seed):
    variant = make_variant(case, window, seed=seed)
    query, key, _ = random_heads(length, batch=1)
    pattern = make_pattern(variant, length, 1, query, key)
    visible = pattern.visible()
    mean = visible.sum().item() / (visible.numel() / length**2)
    assert abs(pattern.count() - mean) <= 0.5
    assert visible.diagonal(dim1=-2, dim2=-1).all(), "a query sees itself"
    assert not visible.triu(1).any(), "no query sees the future"


@given(length=st.integers(1, 300), window=st.integers(1, 320), seed=st.integers(0, 1000), layer=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_sa_has_exactly_the_pairs_of_swa(length, window, seed, layer):
    sa = make_pattern(sa_patch.variant("sa", window, seed=seed), length, layer)
    swa = make_pattern(sa_patch.variant("swa", window), length, layer)
    assert int(sa.visible().sum()) == int(swa.visible().sum()) == window_pairs(length, window)


def test_circular_and_bucket_have_n_w_pairs():
    assert make_pattern(sa_patch.variant("sa", 10, circular=True), 190).count() == 190 * 10
    assert make_pattern(sa_patch.variant("sa", 10, form="bucket"), 190).count() == 190 * 10


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("full",)])
def test_a_window_over_the_sequence_is_full_attention(case):
    query, key, _ = random_heads(30)
    window = 48 if "dyadic" in case else 30  # a dyadic window is full from 1.5 times the horizon on
    pattern = make_pattern(make_variant(case, window), 30, query=query, key=key)
    full = torch.ones(30, 30, dtype=torch.bool).tril()
    assert pattern.covers_all
    assert torch.equal(pattern.visible().expand(1, 1, 30, 30)[0, 0], full)


def test_random_keys_are_a_hash_of_seed_layer_and_position():
    assert torch.equal(token_keys(100, 7, 3)[:40], token_keys(40, 7, 3))
    # Pinned: the same numbers on every platform, release and device.
    assert token_keys(3, 0, 0).tolist() == [6506956249790366449, 1279368494785126216, 8956835795440834090]
    orders = {tuple(permutation(64, seed, layer).tolist()) for seed in range(8) for layer in range(8)}
    assert len(orders) == 64
    assert torch.equal(permutation(50, 2**64 + 1, 0), permutation(50, 1, 0)), "seeds count modulo 2^64"


def test_ranks_are_uniform():
    """Every position is equally likely at every rank: chi-square of 4,000 permutations of 8 tokens, 7 x 8 cells."""
    table = torch.zeros(8, 8)
    for seed in range(4000):
        table[torch.arange(8), permutation(8, seed, seed % 5)] += 1
    chi_square = float(((table - 500) ** 2 / 500).sum())
    assert chi_square < 92.0  # 49 degrees of freedom, p = 0.0002


@pytest.mark.parametrize("case", ["swa-sinks", "sa-sinks-local", "sa+swa"])
@pytest.mark.parametrize("length", [200, 777, 4000])
def test_sinks_and_local_are_charged_to_the_budget(case, length):
    variant = make_variant(case, 48)
    counted = make_pattern(variant, length).count()
    assert abs(counted / window_pairs(length, 48) - 1) < 0.02
    if case == "swa-sinks":
        assert counted == window_pairs(length, 48)


@pytest.mark.parametrize("options", [{"circular": True}, {"form": "bucket"}], ids=str)
def test_sinks_and_local_keep_the_total_of_every_form(options):
    bare = make_pattern(sa_patch.variant("sa", 48, **options), 1000).count()
    charged = make_pattern(sa_patch.variant("sa", 48, sinks=3, local=8, **options), 1000).count()
    assert abs(charged / bare - 1) < 0.02


def test_nominal_sinks_come_on_top():
    matched = make_pattern(sa_patch.variant("swa", 16, sinks=4), 500).count()
    on_top = make_pattern(sa_patch.variant("swa", 16, sinks=4, budget="nominal"), 500).count()
    assert on_top > matched + 450 * 4


@pytest.mark.parametrize("window", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("top_k", [2, 3, 8])
def test_moba_meets_the_budget_on_long_prompts(window, top_k):
    budget = sa_patch.variant("moba", window, top_k=top_k).sparse_budget(65536, 0)
    half_a_step = (top_k - 0.5) / 2  # block sizes are integers
    assert abs(budget.pairs - window_pairs(65536, window)) / 65536 < half_a_step + 1
    assert budget.router_scores > 0


def test_moba_budget_is_what_a_real_pattern_has():
    query, key, _ = random_heads(333)
    for options in ({}, {"top_k": 4}, {"top_k": 1}, {"dense_tail": 20}):
        variant = sa_patch.variant("moba", 24, **options)
        budget = variant.sparse_budget(333, 0)
        assert budget.exact
        assert budget.pairs == make_pattern(variant, 333, query=query, key=key).count()
    bounded = sa_patch.variant("moba", 24, sinks=4)
    budget = bounded.sparse_budget(333, 0)
    assert not budget.exact
    assert budget.pairs >= make_pattern(bounded, 333, query=query, key=key).count()


def test_fractions_follow_the_length():
    variant = sa_patch.variant("swa", 0.25, sinks=0.05)
    assert (variant.sizes(200).window, variant.sizes(200).sinks) == (50, 10)
    assert variant.sizes(2).window == 1
    assert make_pattern(variant, 200).visible()[-1].sum() == 50


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"block_size": 8}, {"top_k": 3, "sinks": 4}], ids=str)
@pytest.mark.parametrize("length", [300, 1024])
def test_a_charged_moba_router_is_paid_by_the_window(length, options):
    variant = sa_patch.variant("moba", 96, router_cost="charged", **options)
    budget, (size, _) = variant.sparse_budget(length, 0), variant.blocks(length)
    products = sum(row // size for row in range(length)) + (length - 1) // size  # scores, and means of earlier blocks
    assert budget.router_scores == products and budget.charged == (products + 1) // 2
    query, key, _ = random_heads(length, heads=2, kv_heads=1, batch=1)
    seen = make_pattern(variant, length, query=query, key=key).count()
    assert seen == budget.pairs if budget.exact else seen <= budget.pairs
    target = window_pairs(length, 96)
    assert abs(budget.pairs + budget.charged - target) <= 0.05 * 96 * length
    free = sa_patch.variant("moba", 96, **options).sparse_budget(length, 0)
    assert free.charged == 0 < free.router_scores and budget.pairs < free.pairs


def test_a_charged_moba_router_that_leaves_no_choice_is_refused():
    with pytest.raises(ValueError, match=r"at 8192 tokens no choice of blocks fits window=64 with the router charged"):
        sa_patch.variant("moba", 64, router_cost="charged").sparse_budget(8192, 0)
    with pytest.raises(ValueError, match="use budget='pairs' and decode='full'"):
        sa_patch.variant("moba", 64, router_cost="charged", budget="nominal")
    with pytest.raises(ValueError, match="leaves nothing to choose: drop one of them"):
        sa_patch.variant("moba", 64, router_cost="charged", top_k=2, block_size=43)
    assert "needs the prompt's length" in sa_patch.variant("moba", 96, router_cost="charged").whole_prompt_reason()
