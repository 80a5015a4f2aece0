"""Laws about `vertical-slash`: which lines are chosen, that they never exceed the budget, and whose lines they are."""

import math

import pytest
import torch
from patch_cases import CPU, Largest, make_pattern, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.counting import window_pairs
from sa_patch.geometry import Group
from sa_patch.patterns import Lines

OPTIONS = [
    {},
    {"probe": 5, "sinks": 0},
    {"vertical_share": 0.2, "sinks": 3, "local": 7},
    {"vertical_share": 1, "local": 1},
    {"vertical_share": 0},
    {"router_cost": "charged", "probe": 9},
]


def weights_by_hand(query, key, probe):
    """{(i, j): weight} of the last `probe` queries [n, head_dim] for keys [n, head_dim], in float64."""
    length, head_dim = query.shape
    weights = {}
    for i in range(length - min(probe, length), length):
        scores = [float(query[i].double() @ key[j].double()) / math.sqrt(head_dim) for j in range(i + 1)]
        total = sum(math.exp(score - max(scores)) for score in scores)
        weights |= {(i, j): math.exp(score - max(scores)) / total for j, score in enumerate(scores)}
    return weights


def seen_by_hand(query, key, *, window, probe=64, sinks=None, local=0, vertical_share=0.5, router_cost="reported"):
    """The definition with sets of pairs, of one head of one row: (set of pairs, pairs that one more line would add)."""
    length = len(query)
    budget = sum(min(i + 1, window) for i in range(length))
    if router_cost == "charged":
        products = sum(i + 1 for i in range(length - min(probe, length), length))
        budget -= math.ceil(products / 2)
        window = max(w for w in range(window + 1) if sum(min(i + 1, w) for i in range(length)) <= budget)
    sinks = min(4, window // 8) if sinks is None else sinks
    local = local or max(1, window // 4)
    seen = {(i, j) for i in range(length) for j in range(i + 1) if j < sinks or i - j < local}
    for_lines = budget - len(seen)
    weights = weights_by_hand(query, key, probe)

    def best(line_of, wanted):
        """Lines by falling sum of weights, of equal ones the lowest first, with the pairs that they have."""
        pairs: dict[int, set] = {}
        score: dict[int, float] = {}
        for i in range(length):
            for j in range(i + 1):
                pairs.setdefault(line_of(i, j), set()).add((i, j))
                score[line_of(i, j)] = score.get(line_of(i, j), 0.0) + weights.get((i, j), 0.0)
        ordered = sorted(pairs, key=lambda line: (-score[line], line))
        return [(line, pairs[line]) for line in ordered if wanted(line)]

    room = int(vertical_share * for_lines)
    for _, pairs in best(lambda i, j: j, lambda c: sinks <= c < length - local):
        room -= len(pairs - seen)
        if room < 0:
            break
        seen |= pairs
    for _, pairs in best(lambda i, j: i - j, lambda d: local <= d < length - sinks):
        if len(seen | pairs) > budget:
            return seen, len(pairs - seen)
        seen |= pairs
    return seen, 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("length", "window"), [(13, 12), (60, 12), (90, 33)])
def test_it_shows_what_its_definition_says(length, window, options):
    query, key, _ = random_heads(length, batch=1, seed=length)
    if options.get("router_cost") and length == 13:
        options = {**options, "probe": 2}
    given = {"sinks": 1, **options} if "router_cost" in options else options
    variant = sa_patch.variant("vertical-slash", window, **given)
    pattern = make_pattern(variant, length, query=query, key=key)
    visible, budget, total = pattern.visible(), variant.sparse_budget(length, 0), 0
    for head in range(4):
        seen, next_line = seen_by_hand(query[0, head], key[0, head // 2], window=window, **given)
        assert {tuple(pair) for pair in visible[0, head].nonzero().tolist()} == seen
        assert budget.pairs - next_line < len(seen) <= budget.pairs
        total += len(seen)
    assert pattern.count() == round(total / 4) and not budget.exact
    assert budget.pairs + budget.charged == window_pairs(length, window)


def test_under_a_nominal_budget_lines_are_counted():
    query, key, _ = random_heads(80, batch=1)
    variant = sa_patch.variant("vertical-slash", 20, budget="nominal", vertical_share=0.3, sinks=2, local=3)
    pattern = make_pattern(variant, 80, query=query, key=key)
    assert isinstance(pattern, Lines) and pattern.verticals.shape[2:] == (6,) and pattern.slashes.shape[2:] == (14,)
    assert pattern.count() <= variant.sparse_budget(80, 0).pairs < 80 * 81 // 2
    weights = weights_by_hand(query[0, 3], key[0, 1], 64)
    column = [sum(weights.get((i, j), 0) for i in range(80)) for j in range(80)]
    assert pattern.verticals[0, 3].tolist() == sorted(sorted(range(2, 77), key=lambda c: -column[c])[:6])


@pytest.mark.parametrize("query_len", [120, 70])
def test_any_lines_are_counted_once(query_len):
    """Also where heads have other numbers of lines, beside a dense tail, and for the last queries alone."""
    source = torch.Generator().manual_seed(0)

    def some(first, count, missing):
        drawn = torch.stack([torch.randperm(120 - first, generator=source)[:count] + first for _ in range(6)])
        return drawn.masked_fill(torch.arange(count) >= count - missing, 120).sort(-1).values.view(2, 3, count)

    for extras in ({}, {"sinks": 3}, {"local": 6}, {"sinks": 4, "local": 5, "tail": 7}):
        reach = max(extras.get("local", 0), 1)
        lines = {"verticals": some(extras.get("sinks", 0), 30, 4), "slashes": some(reach, 40, 9)}
        pattern = Lines(length=120, query_len=query_len, **lines, **extras)
        assert pattern.count() == round(int(pattern.visible().sum()) / 6)


@pytest.mark.parametrize("query_len", [400, 70])
@pytest.mark.parametrize("options", [{}, {"sinks": 2, "local": 4, "dense_tail": 5}], ids=str)
def test_stretches_equal_the_reference_and_so_do_their_gradients(options, query_len, monkeypatch):
    monkeypatch.setattr("sa_patch.kernels.pytorch.lines._GATHERED_CPU", 10_000)
    gradients = []
    pattern = None
    for name in ("reference", "torch"):
        tensors = [tensor.double().requires_grad_() for tensor in random_heads(400, query_len=query_len)]
        pattern = pattern or make_pattern(
            sa_patch.variant("vertical-slash", 24, **options), 400, 0, *tensors[:2], query_len=query_len
        )
        output = kernels.execute(name, *tensors, pattern, 0.25)
        output.square().sum().backward()
        gradients.append([output, *(tensor.grad for tensor in tensors)])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_memory_grows_with_the_length_not_its_square():
    tensors = random_heads(6000, heads=2, kv_heads=1, batch=1)
    with Largest() as largest, torch.no_grad():
        sa_patch.attention(*tensors, sa_patch.variant("vertical-slash", 32), kernel="torch")
    assert largest.nbytes < 6000 * 1000  # bytes; a bool mask would be six times as large


def test_a_row_has_its_own_lines_in_any_batch():
    query, key, value = random_heads(150, batch=3)
    variant = sa_patch.variant("vertical-slash", 24)
    together = make_pattern(variant, 150, query=query, key=key).visible()
    for row in range(3):
        alone = make_pattern(variant, 150, query=query[row : row + 1], key=key[row : row + 1]).visible()
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[0], together[1])
    pair = sa_patch.attention(query, key, value, variant, kernel="torch")
    one = sa_patch.attention(query[1:2], key[1:2], value[1:2], variant, kernel="torch")
    assert torch.equal(pair[1:2], one)


def test_padded_packed_and_lone_rows_agree_and_seeds_say_nothing(qwen3):
    source = torch.Generator().manual_seed(0)
    first, second = (torch.randint(1, 97, (1, size), generator=source) for size in (90, 60))
    with sa_patch.apply(qwen3, "vertical-slash", 24, probe=16, seed=3), torch.no_grad():
        expected = [qwen3(row, use_cache=False).logits[0] for row in (first, second)]
    padded = torch.zeros(2, 90, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    padded[0], mask[0] = first, 1
    padded[1, 30:], mask[1, 30:] = second, 1
    positions = torch.cat([torch.arange(90), torch.arange(60)])[None]
    with sa_patch.apply(qwen3, "vertical-slash", 24, probe=16), torch.no_grad():
        left = qwen3(padded, attention_mask=mask, use_cache=False).logits
        packed = qwen3(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits[0]
    for found in ((left[0], left[1, 30:]), (packed[:90], packed[90:])):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_generated_tokens_read_the_whole_cache(qwen3):
    prompt = torch.randint(1, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    with sa_patch.apply(qwen3, "vertical-slash", 24) as patch:
        qwen3.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=0)
        assert patch.calls[0]["sparse_prefill"] == 1 and patch.calls[0]["full_decode"] == 3
        assert "charged" not in repr(patch.budget(60)) and "at most" in repr(patch.budget(60))


def test_what_depends_on_the_whole_prompt_is_refused_with_the_reason(qwen3, tokens):
    with pytest.raises(ValueError, match=r"the last 64 queries of a prompt choose its lines, .* use decode='full'"):
        sa_patch.variant("vertical-slash", 24, decode="sparse")
    with sa_patch.apply(qwen3, "vertical-slash", 12), torch.no_grad():
        cache = qwen3(tokens[:, :40], use_cache=True).past_key_values
        with pytest.raises(NotImplementedError, match=r"8 new tokens after 40 .* last 64 queries of the whole prompt"):
            qwen3(tokens[:, 40:], past_key_values=cache)
    with pytest.raises(NotImplementedError, match=r"last 40 queries .* this call has 7: give the whole prompt"):
        query, key, value = random_heads(40, query_len=7)
        sa_patch.attention(query, key, value, sa_patch.variant("vertical-slash", 12))
    with pytest.raises(ValueError, match=r"vertical_share=2 is no share: give 0, 1, or a fraction"):
        sa_patch.variant("vertical-slash", 12, vertical_share=2)
    with pytest.raises(ValueError, match="depend on the content"):
        sa_patch.variant("vertical-slash", 12).sparse_pattern(Group(40, 40, CPU), 0, None, None)
    with pytest.raises(NotImplementedError, match=r"kernel 'triton' can't run this Lines pattern: it has no code"):
        sa_patch.attention(*random_heads(80), sa_patch.variant("vertical-slash", 12), kernel="triton")


def test_a_router_that_costs_more_than_the_window_is_refused():
    variant = sa_patch.variant("vertical-slash", 24, router_cost="charged")
    with pytest.raises(ValueError, match=r"at 100 tokens the router alone costs 22 of window=24 .* lower probe"):
        variant.sparse_budget(100, 0)
    budget = sa_patch.variant("vertical-slash", 64, router_cost="charged").sparse_budget(4000, 0)
    assert budget.charged == math.ceil(budget.router_scores / 2) > 0
    assert budget.pairs + budget.charged == window_pairs(4000, 64)
    for other in ({"budget": "nominal"}, {"decode": "sparse"}):
        with pytest.raises(ValueError, match="decode='full'"):
            sa_patch.variant("vertical-slash", 24, router_cost="charged", **other)
