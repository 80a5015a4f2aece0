"""Gradients of the torch kernel: the reference's, and nothing is kept for them but what goes in and comes out."""

import pytest
import torch
from patch_cases import TILED, Largest, make_pattern, make_variant, random_heads
from torch.utils.checkpoint import checkpoint

import sa_patch
from sa_patch import kernels
from sa_patch.kept import KEPT
from sa_patch.kernels.pytorch import parts
from sa_patch.kernels.pytorch.disjoint import add_gradients, attention
from sa_patch.kernels.pytorch.parts import Record

SCALING = 0.25
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def heads_of(length, dtype=torch.float64, **sizes):
    return [tensor.requires_grad_() for tensor in random_heads(length, dtype=dtype, **sizes)]


def gradients_of(name, heads, pattern):
    output = kernels.execute(name, *heads, pattern, SCALING)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return torch.autograd.grad(output, heads, weights)


@pytest.fixture
def small_chunks(monkeypatch):
    for module in ("parts", "tiles", "blocks", "selected_runs", "tile_gradients"):
        monkeypatch.setattr(f"sa_patch.kernels.pytorch.{module}.CHUNK_ENTRIES", 20_000)
    monkeypatch.setattr("sa_patch.kernels.pytorch.tile_gradients._CACHED", 100_000)


@pytest.fixture(params=["cpu", "elsewhere"])
def formulas(request, monkeypatch):
    """PyTorch's operators for CPUs, and the formulas for all other devices."""
    if request.param == "elsewhere":
        monkeypatch.setattr(parts, "has_operator", lambda *_: False)


@pytest.mark.parametrize("case", TILED)
def test_gradients_are_exactly_those_of_the_reference(case, formulas, small_chunks):
    for length, query_len in ((200, 200), (90, 31)):
        heads = heads_of(length, query_len=query_len)
        pattern = make_pattern(make_variant(case, 25), length, 0, *heads[:2], query_len=query_len)
        found, expected = (gradients_of(name, heads, pattern) for name in ("torch", "reference"))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("case", ["swa", "sa", "sa-circular", "sa-bucket"])
def test_without_log_sum_exp_tiles_are_computed_again(case, small_chunks):
    """As on devices whose operators don't tell it."""
    for length, query_len in ((200, 200), (90, 31)):
        heads = heads_of(length, query_len=query_len)
        pattern = make_pattern(make_variant(case, 25), length, 0, *heads[:2], query_len=query_len)
        output, lse = attention(*(x.detach() for x in heads), pattern, SCALING, with_lse=False)
        assert lse is None
        grad, sums = torch.ones_like(output), [torch.zeros_like(x) for x in heads]
        add_gradients(Record(*(x.detach() for x in heads), output, grad, None, *sums, SCALING), pattern)
        expected = torch.autograd.grad(kernels.execute("reference", *heads, pattern, SCALING), heads, grad)
        for one, other in zip(sums, expected, strict=True):
            torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("case", ["sa", "sa-bucket", "sa-sinks-local"])
def test_finite_differences_agree(case):
    heads = heads_of(11, heads=2, kv_heads=1, head_dim=3, batch=1)
    pattern = make_pattern(make_variant(case, 7), 11, 0, *heads[:2])
    assert torch.autograd.gradcheck(lambda *some: kernels.execute("torch", *some, pattern, SCALING), heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["swa", "sa", "sa-bucket", "sa-sinks-local", "moba"])
def test_gradients_in_low_precision_are_as_near_as_the_masked_kernel_s(case, dtype):
    """Held against `sdpa` with a mask: PyTorch's own gradients in that dtype."""
    heads = heads_of(150, dtype)
    pattern = make_pattern(make_variant(case, 25), 150, 0, *heads[:2])
    exact = gradients_of("reference", [x.detach().double().requires_grad_() for x in heads], pattern)
    for one, plain, wanted in zip(
        *(gradients_of(name, heads, pattern) for name in ("torch", "sdpa")), exact, strict=True
    ):
        assert one.dtype == dtype
        rounding = torch.finfo(dtype).eps * float(wanted.abs().max())
        assert float((one - wanted).abs().max()) <= 2 * float((plain - wanted).abs().max()) + 4 * rounding


KEPT_CASES = ["swa", "sa", "sa-circular", "sa-bucket", "sa-dyadic", "sa-sinks-local", "sa+swa", "moba"]


@pytest.mark.parametrize("case", KEPT_CASES)
def test_what_is_kept_for_the_backward_pass_does_not_depend_on_the_window(case):
    """Inputs, output and log-sum-exp; no tile, mask or score."""
    heads = heads_of(1000, torch.float32, batch=1)
    for window in (20, 80):
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = sa_patch.attention(*heads, make_variant(case, window), kernel="torch")
        known = sum(x.nbytes for x in (*heads, output)) + 4 * output[..., 0].numel()
        assert sum(kept.values()) <= known
        output.sum().backward()


@pytest.mark.parametrize("case", KEPT_CASES)
def test_no_tensor_of_a_backward_pass_grows_with_the_square_of_the_length(case):
    length = 6000
    heads = heads_of(length, torch.float32, heads=2, kv_heads=1, batch=1)
    with Largest() as largest:
        sa_patch.attention(*heads, make_variant(case, 32), kernel="torch").sum().backward()
    assert largest.nbytes < length * length


@pytest.mark.parametrize("case", ["sa", "sa-bucket", "sa-sinks-local", "moba"])
def test_checkpointing_and_autocast_around_the_backward_pass_change_no_bit(case):
    heads, variant = heads_of(100, torch.float32), make_variant(case)

    def run(*some):
        return sa_patch.attention(*some, variant, kernel="torch")

    expected = torch.autograd.grad(run(*heads).square().sum(), heads)
    for reentrant in (True, False):
        output = checkpoint(run, *heads, use_reentrant=reentrant)
        assert output is not None
        output.square().sum().backward()
        assert all(torch.equal(x.grad, wanted) for x, wanted in zip(heads, expected, strict=True) if x.grad is not None)
        for x in heads:
            assert x.grad is not None
            x.grad = None
    loss = run(*heads).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, heads)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_functional_transforms_give_the_same_and_second_derivatives_are_refused():
    heads = random_heads(60)
    variant = make_variant("sa")

    def loss(*some):
        return sa_patch.attention(*some, variant, kernel="torch").square().sum()

    leaves = [x.clone().requires_grad_() for x in heads]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    KEPT.forget()  # orders that a transform makes are not kept
    for one, other in zip(torch.func.grad(loss, (0, 1, 2))(*heads), expected, strict=True):
        torch.testing.assert_close(one, other)
    singly = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)))(*(x[:, None] for x in heads))
    for one, other in zip(singly, expected, strict=True):
        torch.testing.assert_close(one[:, 0], other)
    (first,) = torch.autograd.grad(loss(*leaves), leaves[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives: use kernel='reference'"):
        torch.autograd.grad(first.square().sum() + leaves[0].sum(), leaves)
