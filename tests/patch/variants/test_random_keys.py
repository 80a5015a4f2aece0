"""The control `random-keys`: what it draws is its definition, uniform, and independent of everything but the query."""

import pytest
import torch
from models import make_model
from patch_cases import CPU, Largest, make_pattern, random_heads
from scipy.stats import chi2

import sa_patch
from sa_patch import draws, kernels
from sa_patch.counting import window_pairs
from sa_patch.draws import draw_earlier
from sa_patch.geometry import Group
from sa_patch.patterns import Scattered

GOLDEN, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1


def splitmix(value):
    value = ((value ^ (value & WORD) >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31


def drawn_by_definition(query, count, seed, layer, sinks=0, reach=1):
    """The first values of a query's permutation, number by number: six rounds, 4^half >= 256, cycle walking."""
    candidates = max(0, query - reach - sinks + 1)
    if candidates <= count:
        return set(range(sinks, sinks + candidates))
    start = splitmix(splitmix(seed + GOLDEN & WORD) + GOLDEN * (layer + 1) & WORD)
    own = splitmix(GOLDEN * query + splitmix(start + 1) & WORD)
    half = 4
    while 4**half < candidates:
        half += 1
    drawn = []
    for number in range(count):
        while True:
            left, right = divmod(number, 1 << half)
            for turn in range(1, 7):
                key = splitmix(own + GOLDEN * turn & WORD)
                left, right = right, left ^ splitmix(GOLDEN * right + key & WORD) % (1 << half)
            number = left * (1 << half) + right
            if number < candidates:
                break
        drawn.append(number + sinks)
    return set(drawn)


def p_value(counts: torch.Tensor) -> float:
    """Chi-square against all cells being equally likely."""
    expected = counts.double().mean()
    return float(chi2.sf(float(((counts - expected) ** 2 / expected).sum()), counts.numel() - 1))


@pytest.mark.parametrize(
    ("first", "stop", "count", "extras"),
    [(0, 40, 7, {}), (250, 265, 3, {}), (1020, 1031, 40, {}), (0, 30, 4, {"sinks": 3, "reach": 5}), (9, 12, 0, {})],
)
def test_draws_are_the_definition(first, stop, count, extras):
    for seed, layer in ((0, 0), (2**63 + 5, 11)):
        drawn = draw_earlier(first, stop, count, seed, layer, CPU, **extras)
        assert drawn.shape == (stop - first, count) and drawn.dtype == torch.int32
        for query, row in zip(range(first, stop), drawn.tolist(), strict=True):
            found = [key for key in row if key >= 0]
            assert len(set(found)) == len(found)
            assert set(found) == drawn_by_definition(query, count, seed, layer, **extras)


def test_draws_are_pinned():
    """The same numbers on every platform, release and device."""
    assert draw_earlier(1000, 1002, 4, 7, 3, CPU).tolist() == [[638, 813, 390, 146], [123, 573, 385, 84]]


@pytest.mark.parametrize("length", [1, 2, 12, 13, 100])
@pytest.mark.parametrize("options", [{}, {"sinks": 3}, {"local": 5}, {"sinks": 2, "local": 4}], ids=str)
def test_every_query_has_exactly_as_many_keys_as_in_swa(length, options):
    own = make_pattern(sa_patch.variant("random-keys", 12, seed=4, **options), length, 1)
    swa = make_pattern(sa_patch.variant("swa", 12), length)
    assert torch.equal(own.visible().sum(dim=1), swa.visible().sum(dim=1))
    assert own.count() == window_pairs(length, 12)
    visible, position = own.visible(), torch.arange(length)
    opened = (position < options.get("sinks", 0)) | (position[:, None] - position < options.get("local", 1))
    assert bool(visible[opened & (position <= position[:, None])].all())


def test_pairs_of_any_list_of_keys_are_counted_once():
    """Also where the list holds keys that sinks, local and tail show anyway, which the variant never draws."""
    keys = draw_earlier(10, 50, 9, 0, 0, CPU)
    for extras in ({}, {"sinks": 3}, {"local": 6}, {"sinks": 4, "local": 5, "tail": 7}):
        pattern = Scattered(length=50, query_len=40, keys=keys, **extras)
        assert pattern.count() == int(pattern.visible().sum())


@pytest.mark.parametrize(("query", "count"), [(4, 2), (5, 3), (40, 2), (200, 2)])
def test_every_ordered_draw_is_equally_likely(query, count):
    samples = 60_000  # many queries' permutations, all of so many candidates
    round_keys = draws._round_keys(torch.arange(samples), 0, 0)
    rows = draws._permuted(count, torch.full((samples,), query), round_keys, 4)
    code = rows[:, 0]
    for column in range(1, count):
        code = code * query + rows[:, column]
    cells = torch.bincount(code, minlength=query**count).view(*[query] * count)
    place = torch.arange(query)
    distinct = torch.ones_like(cells, dtype=torch.bool)
    for one in range(count):
        for other in range(one):
            shape = [[-1 if axis == kept else 1 for axis in range(count)] for kept in (one, other)]
            distinct &= place.view(shape[0]) != place.view(shape[1])
    assert not bool(cells[~distinct].any())
    assert p_value(cells[distinct]) > 0.001


@pytest.mark.parametrize("other", ["layer", "seed", "query"])
def test_layers_seeds_and_queries_draw_independently(other):
    """The same slot of two draws, where it holds one of the first 256 positions, in 8 x 8 cells."""
    pairs = torch.zeros(64, dtype=torch.int64)
    for seed in range(20):
        one, two = {
            "layer": ((300, 800, seed, 0), (300, 800, seed, 1)),
            "seed": ((300, 800, 2 * seed, 0), (300, 800, 2 * seed + 1, 0)),
            "query": ((300, 800, seed, 0), (301, 801, seed, 0)),
        }[other]
        first, second = (draw_earlier(*place[:2], 16, *place[2:], CPU) for place in (one, two))
        low = torch.maximum(first, second) < 256
        pairs += torch.bincount((first[low] // 32 * 8 + second[low] // 32).long(), minlength=64)
    assert pairs.sum() > 20_000
    assert p_value(pairs) > 0.001


def test_other_layers_and_seeds_draw_other_keys_and_nothing_of_the_orders():
    drawn = {tuple(draw_earlier(500, 501, 6, seed, layer, CPU)[0].tolist()) for seed in range(8) for layer in range(8)}
    assert len(drawn) == 64
    assert torch.equal(draw_earlier(90, 95, 6, 2**64 + 1, 0, CPU), draw_earlier(90, 95, 6, 1, 0, CPU))


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    whole = draw_earlier(0, 700, 20, 1, 2, CPU)
    assert torch.equal(draw_earlier(300, 513, 20, 1, 2, CPU), whole[300:513])
    monkeypatch.setattr(draws, "_AT_ONCE_CPU", 50)
    assert torch.equal(draw_earlier(0, 700, 20, 1, 2, CPU), whole)


@pytest.mark.parametrize("query_len", [400, 37, 1])
@pytest.mark.parametrize("options", [{}, {"sinks": 2, "local": 4, "dense_tail": 5}], ids=str)
@pytest.mark.parametrize("dense_keys", [0, 4, 100])
def test_masked_and_gathered_stretches_equal_the_reference(dense_keys, options, query_len, monkeypatch):
    module = "sa_patch.kernels.pytorch.scattered"
    monkeypatch.setattr(f"{module}._DENSE_KEYS", dense_keys)
    monkeypatch.setattr(f"{module}._GATHERED_CPU", 30_000)
    monkeypatch.setattr(f"{module}.CHUNK_ENTRIES", 30_000)
    gradients = []
    for name in ("reference", "torch"):
        tensors = [tensor.double().requires_grad_() for tensor in random_heads(400, query_len=query_len)]
        pattern = make_pattern(sa_patch.variant("random-keys", 12, **options), 400, 3, query_len=query_len)
        output = kernels.execute(name, *tensors, pattern, 0.25)
        output.square().sum().backward()
        gradients.append([output, *(tensor.grad for tensor in tensors)])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_memory_grows_with_the_length_not_its_square(monkeypatch):
    tensors = random_heads(6000, heads=2, kv_heads=1, batch=1)
    variant = sa_patch.variant("random-keys", 32, sinks=2, local=3)
    with Largest() as largest, torch.no_grad():
        sa_patch.attention(*tensors, variant, kernel="torch")
    assert largest.nbytes <= 6000 * 32 * 16  # bytes; a bool mask would be 36 million


def test_the_budget_of_long_prompts_is_counted_without_drawing():
    for options in ({}, {"sinks": 4, "local": 8, "dense_tail": 30}, {"budget": "nominal", "sinks": 4}):
        variant = sa_patch.variant("random-keys", 24, **options)
        assert variant.sparse_budget(333, 0).pairs == make_pattern(variant, 333).count()
    million = sa_patch.variant("random-keys", 512).sparse_budget(1_000_000, 0)
    assert million.pairs == window_pairs(1_000_000, 512) and million.exact


def test_it_says_that_it_is_a_control_and_which_kernel_has_no_code_for_it(qwen3):
    text = sa_patch.apply(qwen3, "random-keys", 12).describe()
    assert "control: random keys, drawn anew per query" in text and "a control, not a method" in text
    with pytest.raises(NotImplementedError, match=r"kernel 'triton' can't run this Scattered pattern: it has no code"):
        sa_patch.attention(*random_heads(40), sa_patch.variant("random-keys", 12), kernel="triton")


def test_one_generated_token_draws_one_row():
    variant = sa_patch.variant("random-keys", 12, decode="sparse")
    pattern = variant.sparse_pattern(Group(5000, 1, CPU), 0, None, None)
    assert isinstance(pattern, Scattered) and pattern.keys.shape == (1, 11)


def test_a_compiled_model_gives_the_eager_numbers_in_one_graph():
    model = make_model(num_hidden_layers=2)
    tokens = torch.randint(1, 97, (2, 50), generator=torch.Generator().manual_seed(0))
    with sa_patch.apply(model, "random-keys", 12, decode="sparse"), torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        torch._dynamo.reset()
        found = torch.compile(model, backend="eager", fullgraph=True)(tokens, use_cache=False).logits
        torch._dynamo.reset()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_go_through_gradient_checkpointing():
    gradients = []
    for again in (False, True):
        model = make_model(num_hidden_layers=2).train()
        if again:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with sa_patch.apply(model, "random-keys", 12, kernel="torch"):
            tokens = torch.randint(1, 97, (1, 400), generator=torch.Generator().manual_seed(0))
            model(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
