"""What only a GPU can show: kernels in bfloat16 at real head sizes, models, CUDA graphs, caches in host memory."""

import pytest
import torch
from conftest import make_model
from patch_cases import CASES, make_variant, random_heads
from transformers import StaticCache

import sa_patch
from sa_patch import kernels
from sa_patch.randomness import permutation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KERNELS = ("triton", "torch", "sdpa")
LONG = ("swa", "swa-sinks", "sa", "sa-bucket", "sa-dyadic", "sa+swa", "moba", "moba-sinks-local-tail")


def on_gpu(*args, **kwargs):
    return tuple(tensor.cuda() for tensor in random_heads(*args, **kwargs))


def errors(name, pattern, query, key, value):
    """(largest error of a kernel, of plain PyTorch in the same dtype plus rounding), both against float64."""
    scaling, group = query.shape[-1] ** -0.5, query.shape[1] // key.shape[1]
    exact = kernels.execute("reference", query.double(), key.double(), value.double(), pattern, scaling)
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    mask = pattern.visible().to(query.device)
    plain = (query @ keys.transpose(-1, -2) * scaling).masked_fill(~mask, -torch.inf).softmax(-1) @ values
    found = kernels.execute(name, query, key, value, pattern, scaling)
    assert found.dtype == query.dtype and not found.isnan().any()
    rounding = torch.finfo(query.dtype).eps * float(exact.abs().max())
    return float((found - exact).abs().max()), 2 * float((plain - exact).abs().max()) + rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1000, 32, 8, 128), (257, 8, 2, 64), (130, 5, 1, 80)], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_reference(name, case, shape, dtype):
    length, heads, kv_heads, head_dim = shape
    tensors = on_gpu(length, heads, kv_heads, head_dim, batch=1, dtype=dtype)
    variant = make_variant(case, 100)
    group = sa_patch.geometry.Group(length, length, torch.device("cuda"))
    pattern = variant.sparse_pattern(group, 1, *tensors[:2])
    found, allowed = errors(name, pattern, *tensors)
    assert found <= allowed


@pytest.mark.parametrize("query_len", [1, 64, 700])
@pytest.mark.parametrize("case", LONG)
def test_the_last_queries_equal_the_reference(case, query_len):
    tensors = on_gpu(2000, 8, 2, 128, query_len=query_len, dtype=torch.bfloat16)
    group = sa_patch.geometry.Group(2000, query_len, torch.device("cuda"))
    pattern = make_variant(case, 200).sparse_pattern(group, 1, *tensors[:2])
    found, allowed = errors("triton", pattern, *tensors)
    assert found <= allowed


@pytest.mark.parametrize("case", LONG)
def test_long_prompts_equal_the_torch_kernel(case):
    tensors = on_gpu(20_000, 8, 2, 128, batch=1, dtype=torch.float16)
    variant = make_variant(case, 512)
    found, expected = (sa_patch.attention(*tensors, variant, kernel=name) for name in ("triton", "torch"))
    torch.testing.assert_close(found, expected, rtol=4e-3, atol=4e-3)


def test_random_orders_are_those_of_the_cpu():
    for length in (1, 1000, 100_000):
        assert torch.equal(permutation(length, 7, 3, "cuda").cpu(), permutation(length, 7, 3))


@pytest.mark.parametrize("case", ["swa", "sa", "sa-dyadic-bucket", "moba", "sa+swa"])
def test_a_model_generates_what_it_generates_on_the_cpu(model, tokens, case):
    with sa_patch.apply(model, variant=make_variant(case)):
        expected = model.generate(tokens, max_new_tokens=6, do_sample=False)
        model.cuda()
        assert torch.equal(model.generate(tokens.cuda(), max_new_tokens=6, do_sample=False).cpu(), expected)
    with sa_patch.apply(model, variant=make_variant(case), kernel="triton"), torch.no_grad():
        assert torch.equal(model.generate(tokens.cuda(), max_new_tokens=6, do_sample=False).cpu(), expected)


@pytest.mark.parametrize("decode", ["full", "sparse"])
def test_compiled_decoding_with_cuda_graphs_is_eager_decoding(tokens, decode):
    model = make_model().cuda()
    with sa_patch.apply(model, "sa", 12, horizon="dyadic", decode=decode):
        expected = model.generate(tokens.cuda(), max_new_tokens=12, do_sample=False)
        options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": "static"}
        assert torch.equal(model.generate(tokens.cuda(), **options), expected)
        compiled = torch.compile(model, mode="reduce-overhead")
        cache = StaticCache(config=model.config, max_cache_len=64)
        with torch.no_grad():
            token = model(tokens.cuda(), past_key_values=cache).logits[:, -1:].argmax(-1)
            found = [tokens.cuda(), token]
            for _ in range(11):
                token = compiled(token, past_key_values=cache).logits[:, -1:].argmax(-1).clone()
                found.append(token)
        assert torch.equal(torch.cat(found, dim=1), expected)


@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_caches_in_host_memory_give_the_same(model, tokens, cache):
    model.cuda()
    with sa_patch.apply(model, "swa", 12):
        expected = model.generate(tokens.cuda(), max_new_tokens=6, do_sample=False)
        found = model.generate(tokens.cuda(), max_new_tokens=6, do_sample=False, cache_implementation=cache)
    assert torch.equal(found, expected)
