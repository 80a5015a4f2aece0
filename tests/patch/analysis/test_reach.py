"""Reach through one layer is what the mask says, for every pattern that does not depend on content."""

import pytest
import torch

import sa_patch
from sa_patch.analysis import layers, reach

LENGTH = 45
CASES = [
    ("full", {}),
    ("swa", {}),
    ("swa", {"sinks": 2, "local": 4}),
    ("swa", {"dense_tail": 5}),
    ("sa", {}),
    ("sa", {"sinks": 3, "local": 2, "dense_tail": 4}),
    ("sa-circular", {}),
    ("sa-circular", {"sinks": 1}),
    ("sa-bucket", {}),
    ("sa-bucket", {"local": 3, "sinks": 1}),
    ("sa-dyadic", {}),
    ("sa-dyadic", {"sinks": 1, "dense_tail": 20}),
    ("sa-dyadic-bucket", {"local": 3}),
    ("sa+swa", {}),
    ("sa+swa", {"horizon": "dyadic", "sinks": 1}),
    ("random-keys", {}),
    ("random-keys", {"sinks": 2, "local": 3}),
    ("moba", {"top_k": 1}),
]


def pattern_of(mode, options, length=LENGTH, window=7, seed=3):
    variant = sa_patch.variant(mode, window, **options)
    return next(iter(layers.patterns(variant, length, 1, seed)))


@pytest.mark.parametrize("length", [1, 2, 33, LENGTH])
@pytest.mark.parametrize(("mode", "options"), CASES)
def test_a_step_is_the_mask_in_every_direction(mode, options, length):
    pattern = pattern_of(mode, options, length)
    mask = pattern.visible()
    sets = torch.rand(length, 9, generator=torch.Generator().manual_seed(0)) < 0.08
    forward = (mask.float() @ sets.float() > 0) | sets
    backward = (mask.T.float() @ sets.float() > 0) | sets
    assert torch.equal(reach.step(pattern, sets, "forward"), forward)
    assert torch.equal(reach.step(pattern, sets, "backward"), backward)
    assert torch.equal(reach.step(pattern, sets, "both"), forward | backward)


@pytest.mark.parametrize(("mode", "options"), CASES)
def test_single_pairs_are_those_of_the_mask(mode, options):
    pattern = pattern_of(mode, options)
    query, key = torch.tril_indices(LENGTH, LENGTH)
    assert torch.equal(reach.sees(pattern, query, key), pattern.visible()[query, key])


def test_keys_chosen_by_content_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"prompt_coverage\(patch, input_ids\)"):
        pattern_of("moba", {})
    with pytest.raises(ValueError, match=r"prompt_coverage\(patch, input_ids\)"):
        pattern_of("routed", {}, window=32, length=100)
