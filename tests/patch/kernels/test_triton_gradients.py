"""The triton kernel's backward pass against the reference's: on a GPU where there is one, else in the interpreter."""

import pytest
import torch
from patch_cases import make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.kernels.triton.tile_sizes import Tile
from sa_patch.patterns import Band, Blocks

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
SCALING = 0.25
CASES = ["swa", "swa-sinks", "swa-local", "sa", "sa-circular", "sa-bucket", "sa-dyadic", "sa-dyadic-bucket"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that short sequences fall into several tiles, lists and steps."""
    monkeypatch.setattr("sa_patch.kernels.triton.kernel.tile_for", lambda head_dim, exact: Tile(32, 16, 4, 2))
    monkeypatch.setattr("sa_patch.kernels.triton.gradients.backward_tile_for", lambda *_: Tile(16, 16, 4, 2))
    monkeypatch.setattr("sa_patch.kernels.triton.gradient_plans._SEGMENT", 32)
    for module in ("kernel", "gradient_plans"):
        monkeypatch.setattr(f"sa_patch.kernels.triton.{module}.tiles_per_list", lambda width, tokens: 2)


def gradients_of(name, heads, pattern, scaling=SCALING):
    heads = [x.detach().requires_grad_() for x in heads]
    output = kernels.execute(name, *heads, pattern, scaling)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return output.detach(), *torch.autograd.grad(output, heads, weights)


def check(pattern, heads, scaling=SCALING):
    heads = [x.to(DEVICE) for x in heads]
    exact = gradients_of("reference", [x.double() for x in heads], pattern, scaling)
    plain, found = (gradients_of(name, heads, pattern, scaling) for name in ("sdpa", "triton"))
    for one, other, wanted in zip(found, plain, exact, strict=True):
        assert one.dtype == heads[0].dtype and one.shape == wanted.shape and not one.isnan().any()
        rounding = torch.finfo(one.dtype).eps * float(wanted.abs().max())
        assert float((one - wanted).abs().max()) <= 2 * float((other - wanted).abs().max()) + 2 * rounding


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_as_near_to_the_reference_as_those_of_plain_pytorch(case):
    for dtype in DTYPES:
        check(make_pattern(make_variant(case, 9), 40), random_heads(40, 2, 1, batch=1, dtype=dtype))


@pytest.mark.parametrize("case", ["swa-sinks", "sa", "sa-dyadic-bucket"])
def test_gradients_of_the_last_queries_alone(case):
    pattern = make_pattern(make_variant(case, 9), 40, query_len=19)
    check(pattern, random_heads(40, query_len=19))


def test_two_backward_passes_give_the_same_bits():
    heads = [x.to(DEVICE) for x in random_heads(40, 2, 1, batch=1)]
    pattern = make_pattern(make_variant("swa-sinks", 9), 40)
    assert all(
        torch.equal(*pair) for pair in zip(*(gradients_of("triton", heads, pattern) for _ in range(2)), strict=True)
    )


def test_gradients_with_sinks_in_a_permuted_band_and_in_buckets():
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    check(Band(length=48, query_len=48, width=5, order=order, sinks=18), random_heads(48, 2, 1, batch=1))
    runs = order.view(-1, 12).sort(dim=1).values.flatten()
    check(Blocks(length=48, query_len=48, block_size=12, order=runs, sinks=3), random_heads(48, 2, 1, batch=1))


@pytest.mark.parametrize("heads,head_dim,scaling", [((3, 1), 48, 1.0), ((2, 2), 80, -0.3), ((5, 1), 16, 0.0)])
def test_gradients_of_odd_heads_and_any_scaling(heads, head_dim, scaling):
    check(make_pattern(make_variant("sa", 5), 24), random_heads(24, *heads, head_dim, batch=1), scaling)


def test_what_has_no_backward_pass_is_refused_and_auto_takes_none_that_was_not_measured(monkeypatch):
    heads = [x.to(DEVICE).requires_grad_() for x in random_heads(40, batch=1)]
    for case, what in (("sa-sinks-local", "a local window beside"), ("moba", "selected runs"), ("routed", "Selected")):
        with pytest.raises(NotImplementedError, match=rf"no gradients of {what}.*use kernel='torch', or torch.no_grad"):
            sa_patch.attention(*heads, make_variant(case), kernel="triton")
    monkeypatch.setattr(kernels, "_measured", lambda *_: ["triton", "torch"])
    pattern = make_pattern(make_variant("sa"), 40)
    assert kernels.choose("auto", pattern, *heads) == "torch"
    with torch.no_grad():
        assert kernels.choose("auto", pattern, *heads) == "triton"
    with pytest.raises(NotImplementedError, match="kernel 'triton' has no second derivatives"):
        (first,) = torch.autograd.grad(
            sa_patch.attention(*heads, make_variant("sa"), kernel="triton").square().sum(), heads[:1], create_graph=True
        )
        first.sum().backward()
