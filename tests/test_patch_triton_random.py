"""The triton kernel against the reference at random shapes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_cases import TILED
from test_patch_triton import check, small_tiles  # noqa: F401


@given(
    case=st.sampled_from(TILED),
    length=st.integers(2, 50),
    query_len=st.integers(1, 50),
    heads=st.sampled_from([(2, 2), (3, 1), (5, 1), (8, 1)]),
    head_dim=st.sampled_from([16, 48, 80]),
    window=st.integers(9, 30),
)
@settings(max_examples=25, deadline=None)
def test_triton_equals_reference_for_odd_shapes(case, length, query_len, heads, head_dim, window):
    check(case, length, min(length, query_len), heads, head_dim, torch.float32, window)
