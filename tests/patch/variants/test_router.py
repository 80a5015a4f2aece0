"""moba's router: official scores in float32, in bounded memory, whatever the chunks and the device's products."""

import pytest
import torch
from patch_cases import random_heads

from sa_patch import router
from sa_patch.kernels.cpp import library, routers
from sa_patch.variants import moba
from sa_patch.variants.moba import select_blocks


def by_definition(query, key, block_size):
    """Scores q . mean(keys of the block) of all earlier blocks, float64."""
    query_len, length, group = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    earlier = (length - 1) // block_size
    means = key[:, :, : earlier * block_size].double().unflatten(2, (earlier, block_size)).mean(3)
    scores = query.double() @ means.repeat_interleave(group, 1).transpose(-1, -2)
    own = torch.arange(length - query_len, length) // block_size
    return scores.masked_fill(torch.arange(earlier) >= own[:, None], -torch.inf)


def check(query, key, block_size, count):
    """What is chosen are the best, near ties aside, and -1 exactly where too few are earlier."""
    scores, found = by_definition(query, key, block_size), select_blocks(query, key, block_size, count)
    count = min(count, scores.shape[-1])
    assert found.shape == (*scores.shape[:-1], count) and found.dtype == torch.int64
    eligible = (scores > -torch.inf).sum(-1, keepdim=True).clamp(max=count)
    assert torch.equal((found >= 0).sum(-1, keepdim=True), eligible)
    best = scores.topk(count, dim=-1).values
    taken = torch.where(found < 0, -torch.inf, scores.gather(-1, found.clamp(min=0))).sort(-1, descending=True).values
    torch.testing.assert_close(taken, best, rtol=1e-5, atol=1e-5)
    distinct = found.sort(-1).values.diff(dim=-1)
    assert not ((distinct == 0) & (found.sort(-1).values[..., 1:] >= 0)).any()


@pytest.mark.parametrize("at_once", [1 << 26, 4 * 8 * 13 * 7])
@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("length,query_len,size", [(100, 100, 8), (101, 30, 7), (9, 9, 8), (8, 3, 8), (64, 1, 5)])
def test_the_best_earlier_blocks_are_chosen_in_any_chunks(length, query_len, size, count, at_once, monkeypatch):
    monkeypatch.setattr(moba, "_SCORE_BYTES", (at_once, at_once))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        query, key, _ = random_heads(length, query_len=query_len, dtype=dtype)
        check(query, key, size, count)


def test_means_are_split_into_bfloat16_without_loss():
    numbers = torch.randn(1000, dtype=torch.float32) * torch.logspace(-8, 8, 1000)
    assert torch.equal(sum(part.double() for part in moba._split(numbers)), numbers.double())


def test_products_of_bfloat16_parts_are_the_float32_scores(monkeypatch):
    """What a GPU does, with the product in float32 that its tensor cores take: exact factors, float32 sums."""
    query, key, _ = random_heads(200, heads=6, kv_heads=2, dtype=torch.bfloat16)
    means = key.float().unflatten(2, (20, 10)).mean(3)
    grouped = query.unflatten(1, (2, 3))
    expected = moba._scores(grouped, means)
    monkeypatch.setattr(moba, "_product", lambda left, right: left.float() @ right.float())

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

    found = moba._scores(grouped.as_subclass(OnGpu), means).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


def test_memory_is_the_means_and_a_chunk(monkeypatch):
    """Not heads x n x blocks of float32: 16,384 tokens of 8 heads and 128 blocks would be 64 MiB; a chunk is 1 MiB."""
    monkeypatch.setattr(moba, "_SCORE_BYTES", (1 << 20, 1 << 20))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() not in given:
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    query, key, _ = random_heads(16_384, heads=8, kv_heads=2, batch=1)
    given = {query.nbytes, key.nbytes}
    with Watch(), torch.no_grad():
        found = select_blocks(query, key, 128, 2)
    assert largest <= max(2 << 20, found.nbytes)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 11, 40])
@pytest.mark.parametrize("columns", [40, 257, 1000, 2048])
def test_the_largest_are_those_of_a_sort(columns, count, compiled, monkeypatch):
    """Also where most may not be chosen, and where many are equal."""
    if compiled and not library.compiler():
        pytest.skip(library.NO_COMPILER)
    if compiled:
        library.library()
    monkeypatch.setattr(routers, "is_compiled", lambda: compiled)
    torch.manual_seed(columns + count)
    for scores in (torch.randn(2, 3, 70, columns), torch.randint(3, (2, 3, 70, columns)).float()):
        for allowed in (columns, columns // 2, 5):
            scores[..., allowed:] = -torch.inf
            index, found = router.largest(scores, count), min(count, allowed)
            assert index.shape == (2, 3, 70, count) and index.dtype == torch.int64
            assert (index[..., : count - found] == -1).all() and (index[..., count - found :] >= 0).all()
            assert (index[..., count - found :].diff() > 0).all(), "not ascending, or a column twice"
            taken = scores.gather(-1, index[..., count - found :]).sort(-1, descending=True).values
            assert torch.equal(taken, scores.sort(-1, descending=True).values[..., :found])
