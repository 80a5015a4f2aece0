"""What is kept between layers and calls: bounded, freed, and without any part in a result."""

import pytest
import torch
from patch_cases import CPU, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch.kept import KEPT, Kept
from sa_patch.kernels.triton.plans import Extras, kept_plan, make_plan


@pytest.fixture(autouse=True)
def nothing_kept():
    KEPT.forget()
    yield
    KEPT.forget()


def test_bytes_are_bounded_and_the_least_recently_used_goes_first():
    held, made = Kept(most=100 * 8), []

    def get(name, size=40):
        return held.get((name,), CPU, lambda: made.append(name) or torch.zeros(size, dtype=torch.int64))

    first = get("a")
    assert get("a") is first and made == ["a"] and held.bytes == 320
    get("b"), get("a"), get("c")
    assert (len(held), held.bytes) == (2, 640)
    assert get("a") is first and made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("larger than all", 101)
    assert (len(held), held.bytes) == (2, 640)
    held.forget()
    assert (len(held), held.bytes) == (0, 0)


def test_what_is_watched_or_made_while_inferring_does_no_harm_later():
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    held = Kept(most=1000)
    with Watch():
        held.get(("x",), CPU, lambda: torch.zeros(4))
    assert len(held) == 0
    with torch.inference_mode():
        assert not held.get(("x",), CPU, lambda: torch.zeros(4)).is_inference()


@pytest.mark.parametrize("case", ["swa", "sa", "sa-bucket", "sa-circular", "sa-dyadic"])
def test_layers_and_calls_share_plans_exactly_where_they_are_the_same(case):
    def plan(length=100, layer_idx=0, query_len=None, window=12, rows=8, seed=0):
        pattern = make_pattern(make_variant(case, window, seed=seed), length, layer_idx, query_len=query_len)
        pattern = getattr(pattern, "pieces", (pattern,))[-1]
        kept, made = (make(pattern, rows, 8, 2, Extras(), CPU) for make in (kept_plan, make_plan))
        assert all(torch.equal(getattr(kept, name), getattr(made, name)) for name in ("query_pos", "key_pos", "tiles"))
        return kept

    one = plan()
    assert plan() is one
    assert (plan(layer_idx=1) is one) == (case == "swa")  # tile lists of a window are the same in all layers
    assert (plan(seed=1) is one) == (case == "swa")
    others = [plan(length=101), plan(query_len=20), plan(window=13), plan(rows=4)]
    assert all(other is not one for other in others)


def test_nothing_is_kept_of_orders_that_nobody_can_tell_apart():
    query, key, value = random_heads(90)
    pattern = make_pattern(make_variant("sa"), 90)
    before = len(KEPT)
    for source in (None, None):
        unknown = type(pattern)(length=90, query_len=90, width=12, order=pattern.order, source=source)
        kept_plan(unknown, 8, 8, 2, Extras(), CPU)
    assert len(KEPT) == before
    assert sa_patch.attention(query, key, value, make_variant("sa")).shape == query.shape
