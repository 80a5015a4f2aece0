"""The flash kernel on a CPU: everything but FlashAttention itself, which an honest plain function stands in for."""

import pytest
import torch
from kernel_stand_ins import stand_in_for_flash, varlen
from patch_cases import TILED, make_pattern, make_variant, random_heads
from torch.nn.attention import varlen as torch_varlen

import sa_patch
from sa_patch import kernels
from sa_patch.kept import KEPT
from sa_patch.kernels.flash import kernel as flash

ACCEPTED = [
    *("swa", "swa-sinks", "swa-local", "sa-bucket", "sa-dyadic-bucket"),
    *("moba", "moba-block1", "moba-top1", "moba-top3", "full"),
]
# Sinks and dense tails beside what has no local window.
MORE = {
    "bucket-sinks": ("sa", {"form": "bucket", "sinks": 3}),
    "bucket-tail": ("sa", {"form": "bucket", "dense_tail": 4}),
    "moba-sinks": ("moba", {"sinks": 3}),
    "moba-sinks-tail": ("moba", {"sinks": 2, "dense_tail": 3, "top_k": 3}),
    "swa-sinks-tail": ("swa", {"sinks": 4, "dense_tail": 5}),
    "dyadic-bucket-sinks": ("sa", {"form": "bucket", "horizon": "dyadic", "sinks": 2}),
}


@pytest.fixture
def on_cpu(monkeypatch):
    stand_in_for_flash(monkeypatch)


def variant_of(case, window=12):
    if case not in MORE:
        return make_variant(case, window)
    mode, options = MORE[case]
    return sa_patch.variant(mode, window, **options)


def check(case, length, query_len, heads=(4, 2), dtype=torch.float32, batch=2):
    query, key, value = random_heads(length, *heads, batch=batch, query_len=query_len, dtype=dtype)
    variant = variant_of(case)
    run = {"variant": variant, "layer_idx": 1}
    exact = sa_patch.attention(query.double(), key.double(), value.double(), kernel="reference", **run)
    found = sa_patch.attention(query, key, value, kernel="flash", **run)
    plain = sa_patch.attention(query, key, value, kernel="torch", **run)
    # Parts are rounded to the dtype before they are merged, and the whole once more.
    rounding = 2 * torch.finfo(dtype).eps * float(exact.abs().max())
    assert found.dtype == dtype and not found.isnan().any()
    assert float((found - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + rounding


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (8, 1)], ids=str)
@pytest.mark.parametrize("case", [*ACCEPTED, *MORE])
def test_flash_equals_reference(on_cpu, case, heads):
    for length, query_len in ((70, 70), (70, 9), (63, 1), (13, 13), (1, 1), (70, 68)):
        check(case, length, query_len, heads)


@pytest.mark.parametrize("case", [*ACCEPTED, *MORE])
def test_flash_equals_reference_in_half_precision(on_cpu, case):
    if "moba" in case:  # routes are the content's: one dtype, one choice
        check(case, 130, 130, dtype=torch.float16)
    else:
        for dtype in (torch.float16, torch.bfloat16):
            check(case, 130, 130, dtype=dtype)


@pytest.mark.parametrize("case", sorted(set(TILED) - set(ACCEPTED)))
def test_what_flash_has_no_mask_for_is_refused_with_the_way_out(on_cpu, case):
    query, key, value = random_heads(70)
    with pytest.raises(NotImplementedError, match=r"flash.*no mask for it.*use kernel='triton' or 'flex'"):
        sa_patch.attention(query, key, value, make_variant(case), kernel="flash")


def test_flash_needs_a_gpu_half_precision_and_no_gradients(monkeypatch):
    query, key, value = random_heads(70)
    with pytest.raises(NotImplementedError, match=r"flash.*needs a GPU, the tensors are on 'cpu'"):
        sa_patch.attention(query, key, value, make_variant("swa"), kernel="flash")
    monkeypatch.setattr(flash, "unavailable", lambda query: None)
    with pytest.raises(NotImplementedError, match=r"flash.*no gradients: use kernel='torch'"):
        sa_patch.attention(query.requires_grad_(), key, value, make_variant("swa"), kernel="flash")
    pattern = make_pattern(make_variant("random-keys"), 40)
    assert kernels.get("flash").refusal(pattern, *random_heads(40)) == "it has no code for Scattered patterns"


def test_the_call_fits_the_function_torch_has(monkeypatch):
    """Torch 2.11 and 2.13 differ in it. The operator below it needs CUDA: what reaches it is looked at."""
    seen = {}

    def operator(query, key, value, *rest):
        seen.update(rest=rest, heads=(query.shape[1], key.shape[1]))
        return query, query.new_full((query.shape[1], len(query)), torch.inf), None

    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn", operator)
    monkeypatch.setattr(flash, "_call", lambda: (torch_varlen.varlen_attn, False))
    sequences = flash.window_sequences(1, 5, 9, torch.device("cpu"))
    query, key, value = torch.randn(5, 4, 16), torch.randn(9, 2, 16), torch.randn(9, 2, 16)
    for causal, window, expected in ((True, 3, [3, 0]), (True, -1, [-1, 0]), (False, -1, [-1, -1])):
        output, lse = flash.varlen(query, key, value, sequences, 0.5, causal=causal, window=window)
        assert output is query
        assert (lse == -torch.inf).all()  # FlashAttention-2's +inf for a query without keys
        query_ends, key_ends, most_queries, most_keys, is_causal, scale, reach = seen["rest"][:7]
        assert query_ends.tolist() == [0, 5] and key_ends.tolist() == [0, 9] and query_ends.dtype == torch.int32
        assert (most_queries, most_keys, scale, reach, seen["heads"]) == (5, 9, 0.5, expected, (4, 2))
        assert is_causal == (expected == [-1, 0])


def test_the_call_fits_the_function_flash_attn_has(monkeypatch):
    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        assert return_attn_probs and dropout_p == 0.0
        return (*varlen(q, k, v, sequences, softmax_scale, causal=causal, window=window_size[0]), None)

    monkeypatch.setattr(flash, "_call", lambda: (flash_attn_varlen_func, True))
    sequences = flash.window_sequences(1, 5, 9, torch.device("cpu"))
    query, key, value = torch.randn(5, 4, 16), torch.randn(9, 2, 16), torch.randn(9, 2, 16)
    expected = varlen(query, key, value, sequences, 0.5, causal=True, window=3)
    found = flash.varlen(query, key, value, sequences, 0.5, causal=True, window=3)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("case", ["swa-sinks", "sa-bucket", "moba"])
def test_two_runs_are_bit_identical_with_and_without_what_is_kept(on_cpu, case):
    tensors, variant = random_heads(130), variant_of(case)
    first = sa_patch.attention(*tensors, variant, kernel="flash")
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel="flash"), first)
    KEPT.forget()
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel="flash"), first)
