"""Coverage counts what products of masks connect, exactly or from tokens that stand for all."""

import pytest
import torch

import sa_patch
from sa_patch.analysis import coverage, layers, local_coherence, receptive_field
from sa_patch.analysis.coverage import distances_of, draw_sources
from sa_patch.counting import triangle
from sa_patch.patterns import Pattern
from sa_patch.variants.gated import Gated

PLAN = sa_patch.Plan(
    (
        sa_patch.variant("swa", 4),
        sa_patch.variant("sa", 5, sinks=1),
        sa_patch.variant("full"),
        sa_patch.variant("random-keys", 3),
    )
)
CASES = [
    (sa_patch.variant("swa", 5), 4),
    (sa_patch.variant("sa", 4), 5),
    (sa_patch.variant("sa", 6, sinks=2, local=2, dense_tail=3), 3),
    (sa_patch.variant("sa-bucket", 4, dense_layers=(-1,)), 3),
    (sa_patch.variant("sa-circular", 4), 4),
    (sa_patch.variant("sa-dyadic", 5), 3),
    (sa_patch.variant("sa+swa", 5), 3),
    (sa_patch.variant("random-keys", 3), 3),
    (sa_patch.variant("sa", 0.1), 3),
    (sa_patch.variant("sa", 4, dense_below=60), 2),
    (PLAN, 4),
    (Gated(window=8), 3),
    (Gated(window=9, horizon="dyadic", sinks=1), 3),
]


def by_products(variant, length, num_layers, seed, causal):
    """[layers] of connected: bool [length, length], the slow and obvious way."""
    reached, found = torch.eye(length), []
    for pattern in layers.patterns(variant, length, num_layers, seed):
        mask = pattern.visible()
        reached = ((mask if causal else mask | mask.T).float() @ reached > 0).float()
        found.append(reached > 0)
    return found


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("variant", "depth"), CASES)
def test_coverage_is_what_products_of_masks_connect(variant, depth, causal):
    length = 50
    found = coverage(variant, length, depth, [0, 3], causal=causal)
    assert found.exact and found.sources == length and found.num_layers == depth
    pairs = triangle(length) if causal else length**2
    stacks = [by_products(variant, length, depth, seed, causal) for seed in found.seeds]
    for layer in range(depth):
        shares = [int(stack[layer].sum()) / pairs for stack in stacks]
        assert [one[layer] for one in found.per_seed] == pytest.approx(shares)
        assert found.covered[layer] == pytest.approx(sum(shares) / len(shares))
        assert found.everything[layer] == sum(share == 1 for share in shares) / len(shares)
    if causal:
        distance = torch.arange(length)[:, None] - torch.arange(length)
        for layer in range(depth):
            for (low, high), share in zip(found.distances, found.by_distance[layer], strict=True):
                some = (distance >= low) & (distance <= high)
                assert share == pytest.approx(sum(float(s[layer][some].float().mean()) for s in stacks) / len(stacks))
    assert sum(found.hops) == pytest.approx(found.covered[-1])


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_that_stand_for_all_give_the_same_shares(causal):
    variant = sa_patch.variant("sa", 12)
    exact = coverage(variant, 600, 4, range(6), causal=causal)
    sampled = coverage(variant, 600, 4, range(6), causal=causal, sources=48)
    assert not sampled.exact and sampled.sources == 48
    for one, other in zip(exact.per_seed, sampled.per_seed, strict=True):
        assert other == pytest.approx(one, abs=0.06)  # the same orders: only which tokens are followed differs
    assert sampled.covered == pytest.approx(exact.covered, abs=0.02)
    for rows, others in zip(exact.by_distance, sampled.by_distance, strict=True):
        assert others[2:] == pytest.approx(rows[2:], abs=0.12)


def test_sources_stand_for_equally_many_pairs():
    length = 5000
    drawn = torch.cat([draw_sources(length, 16, seed) for seed in range(400)])
    place = 1 - (1 - drawn.double() / length) ** 2  # the share of pairs of earlier sources: uniform on 0..1
    assert float(place.mean()) == pytest.approx(0.5, abs=0.005)
    assert float((place - 0.5).square().mean()) == pytest.approx(1 / 12, abs=0.003)
    assert torch.equal(draw_sources(9, 9, 0, causal=False), torch.arange(9))
    assert torch.equal(draw_sources(length, 16, 3), draw_sources(length, 16, 3))


def test_a_long_prompt_takes_no_matrix(monkeypatch):
    def refuse(*_):
        raise AssertionError("a mask was built")

    monkeypatch.setattr(Pattern, "visible", refuse)
    found = coverage(sa_patch.variant("sa", 512), 131_072, 2, [0], sources=8)
    assert not found.exact and found.covered[0] == pytest.approx(0.0078, abs=0.003)
    assert found.covered[1] == pytest.approx(found.expected[1], abs=0.03) and found.everything[-1] == 0.0


def test_a_missing_neighbour_is_found_though_no_followed_token_misses_one():
    variant = sa_patch.Plan((sa_patch.variant("random-keys", 190),) * 6)
    found = coverage(variant, 200, 6, range(8), sources=1)
    exact = coverage(variant, 200, 6, range(8))
    assert all(one >= other for one, other in zip(found.everything, exact.everything, strict=True))
    dense = sa_patch.Plan((sa_patch.variant("full"), sa_patch.variant("sa", 4)))
    assert coverage(dense, 100, 2, [0], sources=4).everything == (1.0, 1.0)


def test_what_is_not_random_needs_one_seed():
    found = coverage(sa_patch.variant("swa", 5), 60, 3, range(5))
    assert found.seeds == (0,) and found.intervals[0] == (found.covered[0], found.covered[0])
    assert len(coverage(sa_patch.variant("swa", 5), 60, 3, range(5), sources=6).seeds) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be a whole number from 1"),
        ({"length": 1 << 30}, "length must be a whole number from 1"),
        ({"num_layers": 0}, "num_layers must be a whole number"),
        ({"seeds": []}, "seeds must be whole numbers, at least one"),
        ({"seeds": [1, 1]}, "seeds holds a number twice"),
        ({"sources": 0}, "sources must be a number of tokens"),
        ({"variant": "sa"}, "variant must be a sa_patch Variant or Plan, got str"),
        ({"variant": PLAN, "num_layers": 3}, "the plan has 4 layers and num_layers=3 was asked for"),
        ({"variant": sa_patch.variant("sa", 4, dense_below="crossover")}, "give a number of tokens"),
        ({"variant": sa_patch.variant("moba", 8)}, r"prompt_coverage\(patch, input_ids\)"),
        ({"variant": sa_patch.variant("routed", 16)}, r"prompt_coverage\(patch, input_ids\)"),
    ],
)
def test_what_can_not_be_covered_is_refused(change, message):
    asked = {"variant": sa_patch.variant("sa", 4), "length": 60, "num_layers": 2, "seeds": [0], **change}
    with pytest.raises(ValueError, match=message):
        coverage(asked.pop("variant"), asked.pop("length"), asked.pop("num_layers"), asked.pop("seeds"), **asked)


@pytest.mark.parametrize(("variant", "depth"), CASES)
def test_local_coherence_reads_the_masks(variant, depth):
    length, last = 50, 6
    found = local_coherence(variant, length, depth, [2], last=last)
    masks = [pattern.visible() for pattern in layers.patterns(variant, length, depth, found.seeds[0])]
    rows = torch.arange(last, length)
    for back in range(1, last + 1):
        share = sum(float(mask[rows, rows - back].double().mean()) for mask in masks) / depth
        assert found.visible[back - 1] == pytest.approx(share)
    ever = torch.stack([mask[rows, rows - 1] for mask in masks]).any(0)
    assert found.previous_within[-1] == pytest.approx(float(ever.double().mean()))
    assert found.broken == pytest.approx(1 - float(ever.double().mean()))
    assert found.previous == found.visible[0]


@pytest.mark.parametrize(("variant", "depth"), CASES)
def test_a_receptive_field_is_a_row_of_the_product(variant, depth):
    length, query = 50, 41
    field = receptive_field(variant, length, depth, query=query, seed=1)
    row = torch.nn.functional.one_hot(torch.tensor(query), length).float()
    for layer, pattern in enumerate(reversed(list(layers.patterns(variant, length, depth, 1)))):
        row = ((row @ pattern.visible().float()) > 0).float()
        assert torch.equal(field[layer], row > 0)


def test_distances_are_octaves():
    assert distances_of(1) == [(0, 0)]
    assert distances_of(2) == [(0, 0), (1, 1)]
    assert distances_of(12) == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 11)]
