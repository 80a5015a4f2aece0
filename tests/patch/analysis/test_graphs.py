"""Mixing and small worlds: closed forms on a ring, and what was measured against what graphs really are."""

import pytest
import torch

import sa_patch
from sa_patch.analysis import layers, mixing, small_world
from sa_patch.analysis import mixing as mixing_of
from sa_patch.analysis.mixing import averaged_gap, layer_gap, mixing_time, ring_gap


@pytest.mark.parametrize(("length", "window"), [(40, 3), (61, 8), (100, 20)])
def test_one_layer_on_a_ring_has_the_gap_of_the_ring_whatever_its_order(length, window):
    for seed in range(2):
        mask = next(iter(layers.patterns(sa_patch.variant("sa-circular", window), length, 1, seed))).visible()
        assert layer_gap(mask | mask.T) == pytest.approx(ring_gap(length, window), abs=1e-9)


def test_the_averaged_operator_is_the_mean_over_orders():
    length, window, seeds = 30, 4, 800
    total = torch.zeros(length, length)
    for seed in range(seeds):
        mask = next(iter(layers.patterns(sa_patch.variant("sa-circular", window), length, 1, seed))).visible()
        total += (mask | mask.T).float() / (2 * window - 1)
    k = 2 * window - 1
    expected = torch.full((length, length), (k - 1) / (k * (length - 1))).fill_diagonal_(1 / k)
    assert float((total / seeds - expected).abs().max()) < 5 / k * (k / length / seeds) ** 0.5
    values = torch.linalg.eigvalsh(expected.double())
    assert 1 - float(values[-2]) == pytest.approx(averaged_gap(length, window), abs=1e-6)


def test_mass_gets_even_as_fast_as_the_averaged_operator_says():
    """A layer shrinks the squared distance from even by 1 - gap, expected over its order."""
    length, window, seeds = 200, 6, 40
    shrunk, before = 0.0, 0.0
    for seed in range(seeds):
        mass = torch.eye(length, dtype=torch.float64)
        for number, pattern in enumerate(layers.patterns(sa_patch.variant("sa-circular", window), length, 2, seed)):
            mask = pattern.visible()
            mass = mass @ ((mask | mask.T).double() / (2 * window - 1))
            squared = float((mass - 1 / length).square().sum())
            shrunk, before = (shrunk, before + squared) if number == 0 else (shrunk + squared, before)
    assert shrunk / before == pytest.approx(1 - averaged_gap(length, window), rel=0.03)


def test_layers_of_their_own_mix_fast_and_one_window_does_not():
    swa = mixing(sa_patch.variant("swa", 12), 200, 6, [0])
    sa = mixing(sa_patch.variant("sa", 12), 200, 6, range(4))
    assert swa.layer_gap == pytest.approx(sa.layer_gap) and swa.averaged_gap == swa.layer_gap
    assert sa.averaged_gap > 20 * sa.layer_gap
    assert swa.mixing_time is None and sa.mixing_time is not None and sa.mixing_time <= 3
    assert swa.distance_intervals[0] == (swa.distance[0], swa.distance[0])
    low, high = sa.distance_intervals[1]
    assert low < sa.distance[1] < high
    assert mixing_time(200, 12) == 1
    assert (1 - 1 / 200) * (1 - averaged_gap(200, 2)) ** mixing_time(200, 2) <= 0.25
    with pytest.raises(ValueError, match="nothing spreads"):
        mixing_time(10, 1)


def test_the_average_of_several_layers_is_measured_as_eigenvalues_are():
    total = torch.zeros(120, 120)
    for pattern in layers.patterns(sa_patch.variant("sa+swa", 12), 120, 5, 0):
        mask = pattern.visible()
        weight = (mask | mask.T).float()
        total += weight / weight.sum(1, keepdim=True) / 5
    values = torch.linalg.eigvals(total).abs().sort(descending=True).values
    found = mixing(sa_patch.variant("sa+swa", 12), 120, 5, [0])
    assert found.averaged_gap == pytest.approx(1 - float(values[1]), abs=1e-3)


def test_causal_mixing_is_measured_against_full_attention():
    full = mixing(sa_patch.variant("full"), 60, 3, [0], causal=True)
    assert full.distance == pytest.approx((0.0, 0.0, 0.0), abs=1e-6) and full.mixing_time == 1
    found = mixing(sa_patch.variant("swa", 5), 60, 3, [0], causal=True)
    assert found.layer_gap == pytest.approx(0.5)  # the second token sees two


def test_matrices_that_would_not_fit_are_refused():
    with pytest.raises(ValueError, match="takes at most 2,048 tokens"):
        mixing_of(sa_patch.variant("sa", 8), 4096, 2, [0])


def by_brute_force(variant, length, depth):
    """(degree, mean local clustering, mean hops) of the union of the layers."""
    graph = torch.zeros(length, length, dtype=torch.bool)
    for pattern in layers.patterns(variant, length, depth, 0):
        graph |= pattern.visible() | pattern.visible().T
    graph.fill_diagonal_(False)
    edges = graph.double()
    degree = edges.sum(1)
    triangles = (edges @ edges * edges).sum(1)
    clustering = float((triangles / (degree * (degree - 1))).nan_to_num().mean())
    hops, reached, total = 1, torch.eye(length) > 0, 0
    while True:
        wider = reached | ((graph.float() @ reached.float()) > 0)
        new = int(wider.sum() - reached.sum())
        if not new:
            return float(degree.mean()), clustering, total / (int(reached.sum()) - length)
        total, hops, reached = total + hops * new, hops + 1, wider


@pytest.mark.parametrize(("mode", "depth"), [("swa", 2), ("sa", 1), ("sa", 2), ("sa+swa", 2)])
def test_a_small_world_is_that_of_the_graph(mode, depth):
    variant, length = sa_patch.variant(mode, 6), 120
    degree, clustering, hops = by_brute_force(variant, length, depth)
    found = small_world(variant, length, depth, [0])
    assert found.degree == pytest.approx(degree, rel=0.06)
    assert found.clustering == pytest.approx(clustering, abs=0.04)
    assert found.path_length == pytest.approx(hops, rel=0.08)
    assert found.index == pytest.approx(
        found.clustering / found.random_clustering / (found.path_length / found.random_path_length)
    )


def test_a_ring_and_a_random_graph_are_what_they_are_called():
    ring = small_world(sa_patch.variant("swa", 8), 1200, 2, range(3))
    assert ring.degree == pytest.approx(14, rel=0.03) and ring.clustering == pytest.approx(
        ring.ring_clustering, abs=0.03
    )
    assert ring.path_length == pytest.approx(1200 / (3 * 7), rel=0.12)  # a line, not a ring: its ends lie apart
    drawn = small_world(sa_patch.variant("random-keys", 8), 1200, 1, range(2))
    # A control, not a random graph: early tokens are seen more often, so it clusters more. Its hops are few.
    assert drawn.path_length == pytest.approx(drawn.random_path_length, rel=0.15)
