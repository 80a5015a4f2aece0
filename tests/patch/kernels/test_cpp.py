"""The C++ program of the `cpp` kernel: its refusals, how it is compiled, and that neither threads nor company matter.

Parity with the reference, over all cases, is in test_kernels.py.
"""

from dataclasses import replace

import pytest
import torch
from patch_cases import CASES, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.kept import KEPT
from sa_patch.kernels.cpp import library as program
from sa_patch.probing import pieces_of
from sa_patch.tuning import parity

SCALING = 0.25
pytestmark = pytest.mark.skipif(program.compiler() is None, reason=program.NO_COMPILER)


def runs(case: str, length: int, *heads) -> bool:
    pattern = make_pattern(make_variant(case), length, 3, *heads[:2])
    return all(kernels.get("cpp").refusal(piece, *heads) is None for piece in pieces_of(pattern))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No program was compiled or loaded yet."""
    monkeypatch.setenv("SA_PATCH_HOME", str(tmp_path))
    for known in (program.library, program.is_compiled):
        known.cache_clear()
    yield tmp_path
    for known in (program.library, program.is_compiled):
        known.cache_clear()


def test_it_runs_every_layout_but_scattered_keys_and_lines():
    heads = random_heads(63)
    refused = {case for case in CASES if not runs(case, 63, *heads)}
    assert refused and all(any(word in case for word in ("random", "vertical", "weight", "pool")) for case in refused)


@pytest.mark.parametrize("head_dim", [8, 48, 80])
@pytest.mark.parametrize("heads", [(7, 1), (10, 2)], ids=str)
@pytest.mark.parametrize("case", ["swa-sinks", "sa", "sa-circular", "sa-bucket", "sa-sinks-local", "moba", "routed"])
def test_any_heads_and_sizes(case, heads, head_dim):
    tensors = random_heads(330, *heads, head_dim)
    pattern = make_pattern(make_variant(case, 70), 330, 0, *tensors[:2])
    output = kernels.execute("cpp", *tensors, pattern, SCALING)
    exact = parity.exact_output(*tensors, pattern, SCALING)
    assert parity.error(output, exact) <= parity.allowed_error(*tensors, pattern, SCALING)


@pytest.mark.parametrize("case", ["swa", "sa-sinks-local", "sa-bucket", "moba", "routed", "sa-dyadic"])
def test_neither_threads_nor_other_rows_change_a_bit(case):
    tensors, variant, threads = random_heads(300, batch=2), make_variant(case, 50), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sa_patch.attention(*tensors, variant, kernel="cpp")
        torch.set_num_threads(3)
        assert torch.equal(sa_patch.attention(*tensors, variant, kernel="cpp"), one)
    finally:
        torch.set_num_threads(threads)
    alone = sa_patch.attention(*(tensor[1:] for tensor in tensors), variant, kernel="cpp")
    assert torch.equal(alone, one[1:])


def test_large_scores_and_what_is_not_finite():
    """A maximum is subtracted; NaN in a visible key shows, a visible weight of infinity is NaN as in PyTorch."""
    query, key, value = random_heads(100, batch=1)
    variant = make_variant("sa", 20)
    large = sa_patch.attention(query * 1e4, key, value, variant, kernel="cpp")
    exact = sa_patch.attention(query.double() * 1e4, key.double(), value.double(), variant, kernel="reference")
    torch.testing.assert_close(large.double(), exact, rtol=1e-3, atol=1e-3)
    for spoilt in (torch.nan, torch.inf):
        keys = key.clone()
        keys[:, :, 40] = spoilt
        found = sa_patch.attention(query, keys, value, variant, kernel="cpp")
        seen = make_pattern(variant, 100).visible()[:, 40]
        expected = sa_patch.attention(query, keys, value, variant, kernel="reference")
        assert found[:, :, seen].isnan().any(-1).equal(expected[:, :, seen].isnan().any(-1))
        assert found[:, :, ~seen].isfinite().all()


@pytest.mark.parametrize("head_dim", [8, 80])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 2)], ids=str)
def test_queries_that_choose_alone(heads, head_dim):
    """Few rows show the same keys: each of them is computed alone, and what is not finite shows."""
    query, key, value = random_heads(100, *heads, head_dim)
    pattern = make_pattern(sa_patch.variant("routed", 20, share="group"), 100, 0, query, key)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [tensor.to(dtype) for tensor in (query, key, value)]
        output = kernels.execute("cpp", *tensors, pattern, SCALING)
        exact = parity.exact_output(*tensors, pattern, SCALING)
        assert parity.error(output, exact) <= parity.allowed_error(*tensors, pattern, SCALING)
    for spoilt in (torch.nan, torch.inf):
        keys = key.clone()
        keys[:, :, 40] = spoilt
        found, expected = (kernels.execute(name, query, keys, value, pattern, SCALING) for name in ("cpp", "reference"))
        assert found.isnan().any() and found.isnan().equal(expected.isnan())


def test_what_it_refuses(monkeypatch):
    heads = random_heads(40)
    with pytest.raises(NotImplementedError, match="no code for float16: use float32 or bfloat16"):
        sa_patch.attention(*(tensor.half() for tensor in heads), make_variant("sa"), kernel="cpp")
    with pytest.raises(NotImplementedError, match=r"no gradients: use kernel='torch', or torch.no_grad"):
        sa_patch.attention(heads[0].requires_grad_(), *heads[1:], make_variant("sa"), kernel="cpp")
    query, key, value = (tensor.detach() for tensor in heads)
    pattern = make_pattern(make_variant("sa"), 40)
    for mixed in ((query, key.bfloat16(), value), (query, key, value[..., :8])):
        with pytest.raises(NotImplementedError, match="have to be of one dtype and head_dim"):
            kernels.execute("cpp", *mixed, pattern, SCALING)
    monkeypatch.setenv("CXX", "/no/such/compiler -m64")
    with pytest.raises(NotImplementedError, match=r"that CXX names, '/no/such/compiler -m64', is not there"):
        sa_patch.attention(query, key, value, make_variant("sa"), kernel="cpp")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/no/such/folder")
    with pytest.raises(NotImplementedError, match=r"needs a C\+\+ compiler .*variable CXX"):
        sa_patch.attention(query, key, value, make_variant("sa"), kernel="cpp")


def test_it_is_compiled_once_and_kept(fresh, monkeypatch):
    heads = random_heads(40)
    assert not program.is_compiled()
    expected = sa_patch.attention(*heads, make_variant("sa"), kernel="cpp")
    assert len(list((fresh / "cpp").iterdir())) == 1
    program.library.cache_clear()
    assert program.is_compiled()
    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("compiled again"))
    assert torch.equal(sa_patch.attention(*heads, make_variant("sa"), kernel="cpp"), expected)


def test_routers_compile_nothing(fresh):
    sa_patch.attention(*random_heads(300), make_variant("routed", 40), kernel="torch")
    assert not list(fresh.iterdir())


def test_a_compiler_that_fails_is_told_with_the_way_out(fresh, monkeypatch):
    """Asked for, it never falls back; nothing half-made is left."""
    monkeypatch.setattr(program, "SOURCE", fresh / "broken.cpp")
    program.SOURCE.write_text("no_such_type broken;")
    with pytest.raises(RuntimeError, match=r"(?s)could not be compiled.*no_such_type.*Use kernel='torch'"):
        sa_patch.attention(*random_heads(40), make_variant("sa"), kernel="cpp")
    assert not list((fresh / "cpp").iterdir())


def test_a_folder_that_holds_no_program_is_told(fresh):
    (fresh / "cpp").write_text("in the way")
    with pytest.raises(RuntimeError, match=r"can't be kept and loaded as .*SA_PATCH_HOME name a folder"):
        sa_patch.attention(*random_heads(40), make_variant("sa"), kernel="cpp")


def test_a_compiler_with_arguments_is_one(fresh, monkeypatch):
    (found,) = program.compiler()
    monkeypatch.setenv("CXX", f"{found} -DNDEBUG")
    assert program.compiler() == [found, "-DNDEBUG"]
    heads = random_heads(40)
    expected = sa_patch.attention(*heads, make_variant("sa"), kernel="torch")
    torch.testing.assert_close(sa_patch.attention(*heads, make_variant("sa"), kernel="cpp"), expected)


def test_generated_tokens_share_what_is_kept_of_an_order():
    """One entry per order, however many tokens read it."""
    query, key, value = random_heads(60, batch=1)
    variant = make_variant("sa-dyadic")
    with torch.no_grad():
        for length in range(40, 60):
            sa_patch.attention(query[:, :, :1], key[:, :, :length], value[:, :, :length], variant, kernel="cpp")
            if length == 40:
                before = KEPT.bytes
    assert KEPT.bytes == before


def test_any_layout_in_memory():
    query, key, value = random_heads(60)
    pattern = make_pattern(make_variant("sa-bucket"), 60)
    expected = kernels.execute("reference", -query, key, value, pattern, SCALING)
    strided = replace(pattern, order=torch.stack([pattern.order] * 2, dim=1)[:, 0])
    found = kernels.execute("cpp", torch._neg_view(query), key, value, strided, SCALING)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_describing_a_patch_compiles_nothing(fresh, qwen3):
    text = sa_patch.apply(qwen3, "sa", 12, kernel="cpp").describe()
    assert "kernel cpp, as asked for" in text
    assert not (fresh / "cpp").exists()
