"""Every kernel of the table against the reference, which is the specification."""

import itertools
import sys
import types

import pytest
import torch
from kernel_stand_ins import stand_in_for_flash, stand_in_for_flex
from patch_cases import CASES, Largest, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.kernels.dense import causal
from sa_patch.kernels.merging import merge
from sa_patch.kernels.pytorch.parts import masked_part
from sa_patch.kernels.reference import Reference
from sa_patch.probing import pieces_of
from sa_patch.tuning import parity

SCALING = 0.25
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# Triton's interpreter and the functions in place of FlexAttention and FlashAttention are slow: longer ones are in files
# of their own. The reference is the specification: it is run for its refusals and dtypes only.
LENGTHS = {"triton": [13], "flex": [1, 63], "flash": [1, 13, 63], "reference": [13]}


def parity_runs() -> list[tuple[str, int, torch.dtype]]:
    """Every kernel of the table, with lengths and dtypes; those of triton that are missing are in its own file."""
    return [
        (name, length, dtype)
        for name in kernels.KERNELS
        for length in LENGTHS.get(name, [1, 13, 63, 400])
        for dtype in (DTYPES[:1] if name == "triton" else DTYPES)
    ]


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    """Kernels whose own call needs a GPU run on a plain function in its place; all else is theirs."""
    stand_in_for_flash(monkeypatch)
    stand_in_for_flex(monkeypatch)


def allowed_error(query, key, value, pattern) -> float:
    return parity.allowed_error(query, key, value, pattern, SCALING)


def error(output, query, key, value, pattern) -> float:
    return parity.error(output, parity.exact_output(query, key, value, pattern, SCALING))


def takes(name, pattern, *heads) -> bool:
    return all(kernels.get(name).refusal(piece, *heads) is None for piece in pieces_of(pattern))


def check_parity(name, case, length, dtype):
    """A kernel gives the reference's numbers, or refuses with a reason."""
    heads = random_heads(length, dtype=dtype)
    pattern = make_pattern(make_variant(case), length, 3, *heads[:2])
    try:
        output = kernels.execute(name, *heads, pattern, SCALING)
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    assert output.dtype == dtype
    assert error(output, *heads, pattern) <= allowed_error(*heads, pattern)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name,length,dtype", parity_runs(), ids=str)
def test_kernel_equals_reference(name, case, length, dtype):
    check_parity(name, case, length, dtype)


def test_a_kernel_in_the_table_is_held_against_the_reference(monkeypatch):
    """A right one passes, a wrong one fails, one that refuses is skipped with its reason."""

    class Right(Reference):
        masks = False

    class Wrong(Right):
        def __call__(self, *arguments):
            return super().__call__(*arguments) * 1.01

    class Refusing(Right):
        def refusal(self, *_):
            return "it is Sunday"

    module = types.ModuleType("throw_away")
    monkeypatch.setitem(sys.modules, "throw_away", module)
    for kind in (Right, Wrong, Refusing):
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(kernels.KERNELS, f"throw-away {kind.__name__}", ("throw_away", kind.__name__))
    picked_up = [name for name, *rest in parity_runs() if "throw-away" in name and rest == [63, torch.float32]]
    assert picked_up == ["throw-away Right", "throw-away Wrong", "throw-away Refusing"]
    for case in ("sa", "sa-tail", "moba", "random-keys"):
        check_parity(picked_up[0], case, 63, torch.float32)
        with pytest.raises(AssertionError):
            check_parity(picked_up[1], case, 63, torch.float32)
        with pytest.raises(pytest.skip.Exception, match="it is Sunday"):
            check_parity(picked_up[2], case, 63, torch.float32)


def test_full_attention_and_dense_tails_are_the_same_for_every_kernel_but_the_reference(monkeypatch):
    """None of them is asked for it, and each is asked once whether it takes the rest."""
    heads = random_heads(63)
    dense = make_pattern(make_variant("full"), 63)
    tailed = make_pattern(make_variant("sa-tail"), 63)
    expected = causal(*heads, SCALING)
    for name in ("torch", "triton", "flash", "flex", "sdpa", "auto"):
        assert torch.equal(kernels.execute(name, *heads, dense, SCALING), expected)
    asked = []

    class Spy(Reference):
        masks = False

        def refusal(self, pattern, *_):
            asked.append(pattern)

        def __call__(self, query, key, value, pattern, scaling):
            assert pattern.tail == 0
            return torch.full_like(query, torch.nan)

    monkeypatch.setattr(kernels, "get", lambda name: Spy())
    found = kernels.execute("spy", *heads, tailed, SCALING)
    assert asked == [tailed]
    assert found[:, :, :-6].isnan().all()
    assert torch.equal(found[:, :, -6:], causal(heads[0][:, :, -6:], *heads[1:], SCALING))


@pytest.mark.parametrize("case", CASES)
def test_any_strides_and_float64_are_as_exact_as_the_reference(case):
    query, key, value = (tensor.double() for tensor in random_heads(100))
    variant = make_variant(case)
    expected = sa_patch.attention(query, key, value, variant, kernel="reference")
    layouts = [
        lambda x: x,
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    pattern = make_pattern(variant, 100, 0, query, key)
    able = [name for name in kernels.KERNELS if takes(name, pattern, query, key, value)]
    assert {"torch", "sdpa"} <= {*able}
    for name, change in itertools.product(able, layouts):
        found = sa_patch.attention(change(query), change(key), change(value), variant, kernel=name)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (10, 2), (8, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [16, 48, 80])
@pytest.mark.parametrize("case", ["swa", "sa", "sa-bucket", "sa-sinks-local", "moba"])
def test_kernel_equals_reference_for_any_heads(case, heads, head_dim):
    tensors = random_heads(130, *heads, head_dim)
    pattern = make_pattern(make_variant(case), 130, 0, *tensors[:2])
    output = kernels.execute("torch", *tensors, pattern, SCALING)
    assert error(output, *tensors, pattern) <= allowed_error(*tensors, pattern)


@pytest.mark.parametrize("window", [1, 11, 12, 63, 64, 65, 399, 400, 401])
@pytest.mark.parametrize("case", ["swa", "sa", "sa-circular", "sa-bucket", "moba"])
def test_kernel_equals_reference_at_the_edges_of_the_window(case, window):
    tensors = random_heads(400, batch=1)
    pattern = make_pattern(make_variant(case, window), 400, 0, *tensors[:2])
    output = kernels.execute("torch", *tensors, pattern, SCALING)
    assert error(output, *tensors, pattern) <= allowed_error(*tensors, pattern)


@pytest.mark.parametrize("case", ["swa", "sa", "sa-sinks-local", "moba", "moba-sinks-local-tail", "sa-bucket"])
def test_long_sequences_in_several_chunks_equal_the_reference(case, monkeypatch):
    for module in ("parts", "tiles", "blocks"):
        monkeypatch.setattr(f"sa_patch.kernels.pytorch.{module}.CHUNK_ENTRIES", 20_000)
    tensors = random_heads(1000, batch=1)
    pattern = make_pattern(make_variant(case, 50), 1000, 0, *tensors[:2])
    output = kernels.execute("torch", *tensors, pattern, SCALING)
    assert error(output, *tensors, pattern) <= allowed_error(*tensors, pattern)


@pytest.mark.parametrize("query_len", [1, 7, 39])
@pytest.mark.parametrize("case", CASES)
def test_the_last_queries_alone_are_the_rows_of_the_whole(case, query_len):
    query, key, value = random_heads(40)
    variant = make_variant(case)
    whole = sa_patch.attention(query, key, value, variant, kernel="reference")
    if (40 - query_len) % getattr(variant, "query_block", 1):
        with pytest.raises(NotImplementedError, match="inside a tile of query_block=3: begin at a multiple"):
            sa_patch.attention(query[:, :, -query_len:], key, value, variant)
        return
    if query_len < min(40, getattr(variant, "probe", 0)):
        with pytest.raises(NotImplementedError, match=rf"queries .* choose its lines, and this call has {query_len}"):
            sa_patch.attention(query[:, :, -query_len:], key, value, variant)
        return
    some = sa_patch.attention(query[:, :, -query_len:], key, value, variant)
    torch.testing.assert_close(some, whole[:, :, -query_len:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["swa-sinks", "sa", "sa-sinks-local", "sa-bucket", "sa+swa", "moba", "sa-tail"])
def test_gradients_equal_the_reference(case):
    gradients = []
    for name in ("reference", "torch"):
        tensors = [tensor.requires_grad_() for tensor in random_heads(100)]
        pattern = make_pattern(make_variant(case), 100, 0, *tensors[:2])
        kernels.execute(name, *tensors, pattern, SCALING).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_future_tokens_never_change_earlier_outputs(case):
    """Content of the future, that is: its length takes part in the definition of sa. A variant whose keys are chosen by
    the last queries says so, and there earlier outputs do change."""
    query, key, value = random_heads(90)
    variant = make_variant(case)
    before = sa_patch.attention(query, key, value, variant, kernel="torch")
    changed = [torch.cat([tensor[:, :, :60], tensor[:, :, 60:] + 9.0], dim=2) for tensor in (query, key, value)]
    after = sa_patch.attention(*changed, variant, kernel="torch")
    if hasattr(variant, "probe"):
        assert "depend on its end" in variant.caveat and not torch.allclose(before[:, :, :60], after[:, :, :60])
        return
    torch.testing.assert_close(before[:, :, :60], after[:, :, :60], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_two_runs_are_bit_identical(case):
    tensors, variant = random_heads(300), make_variant(case)
    assert torch.equal(*(sa_patch.attention(*tensors, variant, kernel="torch") for _ in range(2)))


@pytest.mark.parametrize(
    "case", ["swa", "sa", "sa-bucket", "sa-sinks-local", "sa+swa", "moba", "moba-sinks-local-tail"]
)
def test_memory_grows_with_the_length_not_its_square(case):
    """No tensor of an O(n w) run comes near n x n entries."""
    length = 6000
    tensors = random_heads(length, heads=2, kv_heads=1, batch=1)
    with Largest() as largest, torch.no_grad():
        sa_patch.attention(*tensors, make_variant(case, 32), kernel="torch")
    assert largest.nbytes < length * length  # bytes: a bool mask would be as large, float scores four times


def test_parts_merge_to_the_whole():
    query, key, value = random_heads(50, heads=2, kv_heads=2)
    whole = masked_part(query, key, value, None, SCALING)
    parts = [
        masked_part(query, key[:, :, piece], value[:, :, piece], None, SCALING) for piece in (slice(20), slice(20, 50))
    ]
    empty = masked_part(query, key, value, torch.zeros(50, 50, dtype=torch.bool), SCALING)
    assert (empty[1] == -torch.inf).all() and (empty[0] == 0).all()
    for found, expected in zip(merge([*parts, empty]), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_an_explicit_kernel_never_falls_back():
    query, key, value = random_heads(40)
    long = random_heads(4097, heads=1, kv_heads=1, batch=1, head_dim=8)
    with pytest.raises(NotImplementedError, match=r"sdpa.*over the limit"):
        sa_patch.attention(*long, make_variant("sa"), kernel="sdpa")
    with pytest.raises(ValueError, match=r"unknown kernel 'torhc'.*did you mean 'torch'"):
        sa_patch.attention(query, key, value, make_variant("sa"), kernel="torhc")


def test_padded_rows_equal_the_same_rows_alone():
    query, key, value = random_heads(60, batch=3)
    mask = torch.ones(3, 60, dtype=torch.long)
    mask[0, :25], mask[1, 40:] = 0, 0
    for case in CASES:
        variant = make_variant(case)
        together = sa_patch.attention(query, key, value, variant, attention_mask=mask)
        for row, real in enumerate((slice(25, 60), slice(0, 40), slice(0, 60))):
            alone = sa_patch.attention(*(x[row : row + 1, :, real] for x in (query, key, value)), variant)
            torch.testing.assert_close(together[row : row + 1, :, real], alone, rtol=1e-5, atol=1e-5)
        assert (together[0, :, :25] == 0).all()


def test_shapes_that_do_not_fit_are_refused():
    query, key, value = random_heads(10)
    with pytest.raises(ValueError, match=r"H a multiple of Hkv.*\(2, 3, 10, 16\)"):
        sa_patch.attention(query[:, :3], key, value, make_variant("sa"))
    for shape in ((0, 4, 10, 16), (2, 0, 10, 16)):
        with pytest.raises(ValueError, match="attention needs query"):
            sa_patch.attention(torch.empty(shape), torch.empty(shape), torch.empty(shape), make_variant("sa"))
    with pytest.raises(ValueError, match=r"one dtype, got torch.float32, torch.bfloat16 and"):
        sa_patch.attention(query, key.bfloat16(), value.bfloat16(), make_variant("sa"))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        sa_patch.attention(query, key, value, make_variant("sa"), attention_mask=torch.zeros(2, 9))
