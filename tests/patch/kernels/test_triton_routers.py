"""Routers as Triton programs against those with torch: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from patch_cases import random_heads

from sa_patch import router
from sa_patch.variants import moba

routers = pytest.importorskip("sa_patch.kernels.triton.routers")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(*args, **kwargs):
    return tuple(tensor.to(DEVICE) for tensor in random_heads(*args, **kwargs)[:2])


def without_programs(monkeypatch):
    monkeypatch.setattr(router, "programs", lambda query, key: None)
    monkeypatch.setattr(moba, "programs", lambda query, key: None)


@pytest.mark.parametrize("length,query_len,size", [(100, 100, 8), (101, 30, 7), (9, 9, 8), (64, 1, 5), (300, 300, 11)])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_the_nearest_earlier_block_is_the_one_torch_finds(length, query_len, size, heads, monkeypatch):
    query, key = on_device(length, *heads, query_len=query_len)
    without_programs(monkeypatch)
    assert torch.equal(routers.nearest(query, key, size), moba.select_blocks(query, key, size, 1))


@pytest.mark.parametrize(
    "length,query_len,options",
    [
        (100, 100, {"block_size": 8, "query_block": 4, "choosers": 4, "local": 9, "start": 3, "count": 3}),
        (101, 61, {"block_size": 5, "query_block": 4, "choosers": 2, "local": 7, "start": 2, "count": 4}),
        (150, 150, {"block_size": 4, "query_block": 16, "choosers": 2, "local": 20, "start": 4, "count": 2}),
        (90, 90, {"block_size": 4, "query_block": 1, "choosers": 2, "local": 11, "start": 1, "count": 30}),
    ],
)
@pytest.mark.parametrize("second_order", [False, True])
def test_votes_choose_what_torch_chooses(length, query_len, options, second_order, monkeypatch):
    query, key = on_device(length, 4, 2, query_len=query_len)
    options = {**options, "second_order": second_order, "scaling": 0.25}
    monkeypatch.setattr(router, "SCORE_BYTES", (1 << 11, 1 << 11))  # several chunks
    monkeypatch.setattr(router, "programs", lambda query, key: routers)
    found = router.choose_blocks(query, key, **options)
    without_programs(monkeypatch)
    assert torch.equal(found, router.choose_blocks(query, key, **options))
