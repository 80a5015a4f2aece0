"""The triton kernel against the reference: on a GPU where there is one, else in Triton's interpreter (slow, small)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_cases import CASES, TILED, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.kept import KEPT
from sa_patch.kernels.triton.tile_sizes import Tile
from sa_patch.patterns import Pieces

pytest.importorskip("triton")
launch = pytest.importorskip("sa_patch.kernels.triton.launch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUN = [*TILED, *(case for case in CASES if case.startswith("routed") and "pool" not in case)]
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that short sequences fall into several tiles, lists and steps."""
    monkeypatch.setattr("sa_patch.kernels.triton.kernel.tile_for", lambda head_dim, exact: Tile(32, 16, 4, 2))
    monkeypatch.setattr("sa_patch.kernels.triton.kernel.tiles_per_list", lambda width, tokens: 2)


def check(case, length, query_len, heads, head_dim, dtype, window=12):
    query, key, value = (
        tensor.to(DEVICE) for tensor in random_heads(length, *heads, head_dim, query_len=query_len, dtype=dtype)
    )
    variant = make_variant(case, window)
    exact = sa_patch.attention(query.double(), key.double(), value.double(), variant, kernel="reference", layer_idx=1)
    with torch.no_grad():
        found = sa_patch.attention(query, key, value, variant, kernel="triton", layer_idx=1)
    plain = sa_patch.attention(query, key, value, variant, kernel="torch", layer_idx=1)
    rounding = torch.finfo(dtype).eps * float(exact.abs().max())
    allowed = 2 * float((plain - exact).abs().max()) + 2 * rounding
    assert found.dtype == dtype and not found.isnan().any()
    assert float((found - exact).abs().max()) <= allowed


@pytest.mark.parametrize("case", RUN)
def test_triton_equals_reference(case):
    if "moba" in case or "routed" in case:  # routes are the content's: in one dtype they are the same for both kernels
        check(case, 44, 44, (4, 2), 16, torch.float32)
        return
    for dtype in DTYPES:
        check(case, 70, 70, (4, 2), 16, dtype)
    check(case, 70, 9, (4, 2), 16, torch.float32)


def test_tensors_with_any_strides_give_the_same():
    query, key, value = (tensor.to(DEVICE) for tensor in random_heads(40))
    variant = make_variant("sa")
    expected = sa_patch.attention(query, key, value, variant, kernel="triton")
    for change in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        found = sa_patch.attention(change(query), change(key), change(value), variant, kernel="triton")
        assert torch.equal(found, expected)


def test_a_known_launch_is_the_same_launch_without_looking_it_up():
    """Equal dtype, constants and regular strides: the compiled program itself, with addresses instead of tensors."""

    compiled_calls, program_calls, tile = [], [], Tile(32, 16, 4, 2)

    class Compiled:
        def __getitem__(self, grid):
            return lambda *arguments: compiled_calls.append((grid, arguments))

    class Program:
        def __getitem__(self, grid):
            def run(*arguments, num_warps, num_stages):
                program_calls.append((grid, arguments, num_warps, num_stages))
                return Compiled()

            return run

    program = Program()

    def run(heads, constants=(1, 2)):
        launch.launch(program, (3, 2, 1), heads, heads[:1], (7, 0.5), (16, 2), constants, tile)

    heads = random_heads(40)
    strides = [stride for tensor in heads for stride in tensor.stride()[:3]]
    run(heads)
    assert len(program_calls) == 1 and program_calls.pop()[2:] == (4, 2)
    run(heads)
    addresses = [tensor.data_ptr() for tensor in (*heads, *heads[:1])]
    assert compiled_calls.pop() == ((3, 2, 1), (*addresses, *strides, 7, 0.5, 16, 2, 1, 2))
    assert not program_calls
    run(heads, constants=(1, 3))  # another constant, dtype or alignment is another program
    run(tuple(x.half() for x in heads))
    run(tuple(x.repeat_interleave(2, dim=3)[..., 1:17] for x in heads))
    assert len(program_calls) == 3 and not compiled_calls


@pytest.mark.parametrize("scaling", [-0.3, 0.0, 1.0])
def test_any_scaling_gives_the_reference(scaling):
    tensors = tuple(tensor.to(DEVICE) for tensor in random_heads(40, batch=1))
    pattern = make_pattern(make_variant("sa"), 40)
    found, expected = (kernels.execute(name, *tensors, pattern, scaling) for name in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["sa", "swa-sinks", "moba-sinks-local-tail"])
def test_two_runs_are_bit_identical_with_and_without_what_is_kept(case):
    tensors, variant = tuple(tensor.to(DEVICE) for tensor in random_heads(70)), make_variant(case)
    first = sa_patch.attention(*tensors, variant, kernel="triton")
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel="triton"), first)
    KEPT.forget()
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel="triton"), first)


def test_what_triton_can_not_do_is_refused(monkeypatch):
    query, key, value = (tensor.to(DEVICE) for tensor in random_heads(40))
    with pytest.raises(NotImplementedError, match=r"triton.*computes in float32"):
        sa_patch.attention(query.double(), key.double(), value.double(), make_variant("sa"), kernel="triton")
    if DEVICE == "cpu":
        short = (tensor.detach().bfloat16() for tensor in (query, key, value))
        with pytest.raises(NotImplementedError, match="interpreter multiplies bfloat16 wrongly"):
            sa_patch.attention(*short, make_variant("sa"), kernel="triton")
        with monkeypatch.context() as real:
            real.setattr("sa_patch.kernels.triton.kernel._interpreted", lambda: False)
            with pytest.raises(NotImplementedError, match="it needs a GPU, the tensors are on 'cpu'"):
                sa_patch.attention(query, key, value, make_variant("sa"), kernel="triton")
    for case in ("sa-dyadic", "sa-dyadic-extras"):  # computed in one pass, but for a local window or a dense tail
        pattern = make_pattern(make_variant(case), 40)
        assert isinstance(pattern, Pieces)
        assert (kernels.get("triton").refusal(pattern, query, key, value) is None) == (case == "sa-dyadic")


@given(
    case=st.sampled_from(RUN),
    length=st.integers(2, 50),
    query_len=st.integers(1, 50),
    heads=st.sampled_from([(2, 2), (3, 1), (5, 1), (8, 1)]),
    head_dim=st.sampled_from([16, 48, 80]),
    window=st.integers(9, 30),
)
@settings(max_examples=8, deadline=None)
def test_triton_equals_reference_for_odd_shapes(case, length, query_len, heads, head_dim, window):
    first = max(0, length - query_len)
    first -= first % getattr(make_variant(case, window), "query_block", 1)  # queries begin at a whole tile of choosers
    check(case, length, length - first, heads, head_dim, torch.float32, window)
