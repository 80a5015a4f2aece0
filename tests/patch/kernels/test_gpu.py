"""What only a GPU can show: kernels in bfloat16 at real head sizes, models, CUDA graphs, caches in host memory."""

import pytest
import torch
from models import make_model
from patch_cases import CASES, make_variant, random_heads
from transformers import StaticCache

import sa_patch
from sa_patch import kernels
from sa_patch.kept import KEPT
from sa_patch.randomness import permutation
from sa_patch.variants.moba import select_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KERNELS = [name for name in kernels.KERNELS if name != "reference"]
# flex compiles for every case anew: fewer of them.
COMPILED = ("swa-sinks", "sa", "sa-circular", "sa-bucket", "moba", "sa-sinks-local")
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


def check(name, case, shape, dtype, query_len=None, window=100):
    length, heads, kv_heads, head_dim = shape
    tensors = on_gpu(length, heads, kv_heads, head_dim, batch=1, dtype=dtype, query_len=query_len)
    group = sa_patch.geometry.Group(length, query_len or length, torch.device("cuda"))
    pattern = make_variant(case, window).sparse_pattern(group, 1, *tensors[:2])
    try:
        found, allowed = errors(name, pattern, *tensors)
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    assert found <= allowed


# Few shapes of each: every kind of pattern, dtype and head_dim is compiled anew.
@pytest.mark.filterwarnings("ignore")  # what torch's own compiler says
@pytest.mark.parametrize(
    "name,case", [(name, case) for name in KERNELS for case in (COMPILED if name == "flex" else CASES)]
)
def test_kernel_equals_reference(name, case):
    check(name, case, (1000, 32, 8, 128), torch.bfloat16)


@pytest.mark.parametrize("shape,dtype", [((257, 8, 2, 64), torch.float16), ((130, 5, 1, 80), torch.float32)], ids=str)
@pytest.mark.parametrize("case", ["swa-sinks", "sa", "sa-bucket", "moba"])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "flex"])
def test_kernel_equals_reference_at_other_sizes(name, case, shape, dtype):
    check(name, case, shape, dtype)


@pytest.mark.parametrize("case", ["swa", "swa-sinks", "sa-bucket", "sa-dyadic-bucket", "moba", "moba-top3"])
def test_flash_equals_reference(case):
    check("flash", case, (1000, 8, 2, 128), torch.float16)
    check("flash", case, (1000, 8, 2, 64), torch.bfloat16, query_len=300)


@pytest.mark.parametrize("name", ["triton", "flash", "torch"])
@pytest.mark.parametrize("case", ["swa", "sa-bucket", "moba"])
def test_two_runs_are_bit_identical(name, case):
    tensors, variant = on_gpu(3000, 8, 2, 128, dtype=torch.bfloat16), make_variant(case, 200)
    first = sa_patch.attention(*tensors, variant, kernel=name)
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel=name), first)
    KEPT.forget()
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel=name), first)


def test_routes_on_tensor_cores_are_those_of_float32():
    """Near ties aside: a chosen block's score is the best one's, to float32's rounding."""
    query, key, _ = on_gpu(4000, 8, 2, 128, batch=1, dtype=torch.bfloat16)
    found, exact = select_blocks(query, key, 100, 1), select_blocks(query.float(), key.float(), 100, 1)
    differ = found != exact
    assert differ.float().mean() < 1e-3
    means = key[:, :, :3900].float().unflatten(2, (39, 100)).mean(3).repeat_interleave(4, 1).double()
    scores = query.double() @ means.transpose(-1, -2)
    taken, best = (scores.gather(-1, x.clamp(min=0))[..., 0] for x in (found, exact))
    torch.testing.assert_close(taken, best, rtol=1e-5, atol=1e-4)


def test_launches_stay_few_and_wait_for_nothing():
    """After warm-up a layer's call makes no plan: the host is done long before the GPU is."""
    tensors, variant = on_gpu(8192, 8, 2, 128, batch=1, dtype=torch.bfloat16), make_variant("sa", 512)
    for _ in range(3):
        sa_patch.attention(*tensors, variant, kernel="triton")
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sa_patch.attention(*tensors, variant, kernel="triton")
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages() if "program" in event.key or "sort" in event.key]
    assert names == ["plan_program"]


@pytest.mark.parametrize("query_len", [1, 64, 700])
@pytest.mark.parametrize("case", LONG)
def test_the_last_queries_equal_the_reference(case, query_len):
    check("triton", case, (2000, 8, 2, 128), torch.bfloat16, query_len, window=200)


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
    """Without transformers' own compilation of static caches: compiling an offloaded one ends torch 2.11's process."""
    model.cuda()
    with sa_patch.apply(model, "swa", 12):
        expected = model.generate(tokens.cuda(), max_new_tokens=6, do_sample=False)
        options = {"do_sample": False, "cache_implementation": cache, "disable_compile": True}
        found = model.generate(tokens.cuda(), max_new_tokens=6, **options)
    assert torch.equal(found, expected)
