"""Laws about `routed`: which blocks are chosen, what they cost, and how a prompt may be cut into pieces."""

import pytest
import torch
from patch_cases import make_pattern, random_heads

import sa_patch
from sa_patch.counting import window_pairs
from sa_patch.geometry import Group
from sa_patch.variants.routed import Routed


def scores_by_hand(query, keys, router, scaling):
    """log of the mean weight of some keys [block, head_dim] for a query [head_dim], to the order that is asked for."""
    if router == "minmax":
        return scaling * float(torch.maximum(query * keys.amax(0), query * keys.amin(0)).sum())
    first = scaling * float(query @ keys.mean(0))
    spread = float((scaling * query).square() @ (keys - keys.mean(0)).square().mean(0))
    return first + (spread / 4 if router == "variance" else 0)


def visible_by_hand(variant, query, key):
    """The definition, one query at a time: bool [heads, n, n]."""
    heads, length, head_dim = query.shape
    group, shares = heads // key.shape[0], variant.shares(length)
    mask = torch.zeros(heads, length, length, dtype=torch.bool)
    choosers = range(heads) if variant.share == "head" else range(key.shape[0])
    for first in range(0, length, variant.query_block):
        rows = range(first, min(first + variant.query_block, length))
        blocks = []
        begin = shares.sinks
        while begin + shares.block_size <= first + 1 - shares.local:
            blocks.append(range(begin, begin + shares.block_size))
            begin += shares.block_size
        for chooser in choosers:
            members = [chooser] if variant.share == "head" else range(chooser * group, (chooser + 1) * group)
            votes = torch.zeros(len(blocks))
            for head in members:
                for row in rows:
                    scores = torch.tensor(
                        [
                            scores_by_hand(query[head, row], key[head // group, block], variant.router, head_dim**-0.5)
                            for block in blocks
                        ]
                    )
                    votes += scores if len(members) * variant.query_block == 1 else scores.softmax(0)
            best = votes.topk(min(shares.count, len(blocks))).indices.tolist() if blocks else []
            for head in members:
                for row in rows:
                    mask[head, row, : shares.sinks] = True
                    mask[head, row, max(0, row + 1 - shares.local) : row + 1] = True
                    for block in best:
                        mask[head, row, blocks[block]] = True
                    if row < shares.keys:
                        mask[head, row] = True
    return mask.tril()


def pooled_by_hand(variant, query, key):
    """Which blocks [heads, n, blocks] the heads take together, one query at a time, in float64."""
    heads, length, head_dim = query.shape
    group, shares = heads // key.shape[0], variant.shares(length)
    total = (length - shares.sinks) // shares.block_size
    taken = torch.zeros(heads, length, total, dtype=torch.bool)
    for row in range(shares.keys, length):
        count = (row + 1 - shares.local - shares.sinks) // shares.block_size
        share = torch.zeros(heads, count, dtype=torch.float64)
        for head in range(heads):
            keys = key[head // group].double()
            certain = [j for j in range(row + 1) if j < shares.sinks or row - j < shares.local]
            seen = (head_dim**-0.5 * (keys[certain] @ query[head, row].double())).exp().sum()
            for block in range(count):
                begin = shares.sinks + block * shares.block_size
                some = keys[begin : begin + shares.block_size]
                score = scores_by_hand(query[head, row].double(), some, variant.router, head_dim**-0.5)
                share[head, block] = shares.block_size * torch.tensor(score, dtype=torch.float64).exp()
            share[head] /= share[head].sum() + seen
        best = share.flatten().topk(min(heads * shares.count, share.numel())).indices
        taken[best // count, row, best % count] = True
    return taken


@pytest.mark.parametrize("router", ["mean", "variance"])
def test_pooled_heads_take_the_blocks_with_the_largest_shares(router):
    query, key, value = random_heads(90, heads=4, kv_heads=2, batch=1)
    variant = sa_patch.variant("routed", 24, block_size=4, sinks=2, local=6, router=router, pool="layer")
    mask = make_pattern(variant, 90, 0, query * 3, key).visible()[0]
    expected = pooled_by_hand(variant, query[0] * 3, key[0])
    assert torch.equal(mask[:, 24:, 2:90].view(4, 66, 22, 4).all(-1), expected[:, 24:] | near_blocks(variant, 90)[24:])
    counts = expected.sum(-1)[:, 24:]
    assert counts.sum(0).tolist() == [4 * variant.shares(90).count] * 66, "the heads together see what they always do"
    assert counts.min() < counts.max()
    found = sa_patch.attention(query * 3, key, value, variant, kernel="torch")
    exact = sa_patch.attention(query * 3, key, value, variant, kernel="reference")
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def near_blocks(variant, length):
    """Blocks that the local window shows whole: bool [n, blocks]."""
    shares = variant.shares(length)
    begin = shares.sinks + torch.arange((length - shares.sinks) // shares.block_size) * shares.block_size
    row = torch.arange(length)[:, None]
    return (begin > row - shares.local) & (begin + shares.block_size <= row + 1)


def test_pooled_groups_and_tiles_see_as_many_pairs_and_their_own_choice_is_prefix_consistent():
    query, key, _ = random_heads(96, heads=4, kv_heads=2, batch=2)
    for options in ({"share": "group"}, {"query_block": 8}, {"share": "group", "query_block": 8}, {}):
        variant = sa_patch.variant("routed", 40, block_size=4, sinks=2, pool="layer", **options)
        visible = make_pattern(variant, 96, 0, query * 3, key).visible()
        per_query = visible.float().mean(1).sum(-1)
        assert torch.equal(per_query, torch.arange(1, 97).clamp(max=40).float().expand(2, 96)), options
        piece = make_pattern(variant, 80, 0, query[:, :, 64:80] * 3, key[:, :, :80], query_len=16)
        assert torch.equal(piece.visible(), visible[:, :, 64:80, :80])


def test_pooling_needs_shares_and_a_kernel_that_pads(qwen3):
    with pytest.raises(ValueError, match="shares of the attention's mass, which router='minmax' does not estimate"):
        sa_patch.variant("routed", 40, pool="layer", router="minmax")
    with pytest.raises(NotImplementedError, match="different numbers of blocks: use kernel='torch'"):
        sa_patch.apply(qwen3, "routed", 40, pool="layer", kernel="triton")


@pytest.mark.parametrize("router", ["mean", "variance", "minmax"])
@pytest.mark.parametrize("options", [{}, {"share": "group"}, {"query_block": 4}, {"share": "group", "query_block": 5}])
def test_the_best_blocks_are_seen(options, router):
    query, key, _ = random_heads(90, heads=4, kv_heads=2, batch=1)
    variant = sa_patch.variant("routed", 24, block_size=4, sinks=2, router=router, **options)
    found = make_pattern(variant, 90, 0, query * 3, key).visible()[0]
    assert torch.equal(found, visible_by_hand(variant, query[0] * 3, key[0]))


@pytest.mark.parametrize("share", ["head", "group"])
@pytest.mark.parametrize("stride", [2, 4])
def test_antidiagonals_are_summed(stride, share):
    query, key, _ = random_heads(88, heads=4, kv_heads=2, batch=1)
    options = {"block_size": 8, "query_block": 8, "router": "antidiagonal", "stride": stride, "share": share}
    variant = sa_patch.variant("routed", 40, sinks=2, **options)
    shares, mask = variant.shares(88), make_pattern(variant, 88, 0, query * 3, key).visible()[0]
    for tile in range(5, 11):
        blocks = (8 * tile + 1 - shares.local - 2) // 8
        votes = torch.zeros(4, blocks)
        for head in range(4):
            for row in range(8 * tile, 8 * tile + 8, stride):  # one row of samples per stride of queries
                products = torch.zeros(8 * blocks // stride)
                for column in range(len(products)):
                    for step in range(stride):  # queries backwards, keys forwards
                        one, two = (
                            query[0, head, row + stride - 1 - step] * 3,
                            key[0, head // 2, 2 + column * stride + step],
                        )
                        products[column] += one @ two / 4 / stride
                votes[head] += products.softmax(0).view(blocks, -1).sum(1)
        if share == "group":
            votes = votes.view(2, 2, -1).sum(1).repeat_interleave(2, 0)
        for head in range(4):
            best = sorted(votes[head].topk(min(shares.count, blocks)).indices.tolist())
            seen = mask[head, 8 * tile, 2 : 2 + 8 * blocks].view(blocks, 8)
            assert [block for block in range(blocks) if seen[block].all()] == best
    products = variant.sparse_budget(88, 0).router_scores
    assert products == sum(max(0, row // 8 * 8 + 1 - shares.local - 2) // 8 * 8 for row in range(88)) // stride
    with pytest.raises(
        ValueError, match="a stride that divides query_block and block_size, got stride=4, query_block=1"
    ):
        sa_patch.variant("routed", 40, router="antidiagonal")


@pytest.mark.parametrize("window", [1, 2, 5, 24, 33, 128, 200])
@pytest.mark.parametrize("options", [{}, {"sinks": 0}, {"router": "mean", "share": "group"}])
def test_pairs_are_those_of_swa(window, options):
    for length in (1, window, window + 1, 300):
        budget = sa_patch.variant("routed", window, **options).sparse_budget(length, 0)
        assert budget.pairs == window_pairs(length, window) and budget.exact


def test_defaults_follow_the_window():
    for window, sinks, local, size, count in [
        (128, 4, 36, 8, 11),
        (64, 4, 16, 4, 11),
        (12, 1, 3, 2, 4),
        (4, 0, 2, 2, 1),
    ]:
        shares = sa_patch.variant("routed", window).shares(1000)
        assert (shares.sinks, shares.local, shares.block_size, shares.count) == (sinks, local, size, count)
    with pytest.raises(ValueError, match="leaves no room for a block of 64 beside 4 sinks and a local window of 16"):
        sa_patch.variant("routed", 64, block_size=64)


@pytest.mark.parametrize("length", [1024, 2048, 4096])
@pytest.mark.parametrize("router", ["mean", "variance"])
def test_a_charged_router_is_paid_by_the_window(length, router):
    variant = sa_patch.variant("routed", 256, block_size=16, router=router, router_cost="charged")
    budget, target = variant.sparse_budget(length, 0), window_pairs(length, 256)
    # The router's products, counted by hand: every earlier block's score, and the blocks' own statistics.
    shares = variant.shares(length)
    scores = sum(max(0, row + 1 - shares.local - shares.sinks) // 16 for row in range(length))
    products = (scores + (length - shares.sinks) // 16) * (2 if router == "variance" else 1)
    assert budget.router_scores == products and budget.charged == (products + 1) // 2
    assert abs(budget.pairs + budget.charged - target) <= length  # a key per query is the finest step
    free = sa_patch.variant("routed", 256, block_size=16, router=router).sparse_budget(length, 0)
    assert free.pairs == target and free.charged == 0 < free.router_scores


def test_a_charged_router_that_costs_too_much_is_refused():
    variant = sa_patch.variant("routed", 64, router_cost="charged")
    with pytest.raises(ValueError, match=r"at 8192 tokens the router alone costs \d+ of window=64 .* raise window"):
        variant.sparse_budget(8192, 0)
    with pytest.raises(ValueError, match="use budget='pairs' and decode='full'"):
        sa_patch.variant("routed", 64, router_cost="charged", decode="sparse")


def test_tiles_take_pieces_that_begin_at_their_first_query(qwen3):
    tokens = torch.randint(1, 97, (1, 96), generator=torch.Generator().manual_seed(2))
    with sa_patch.apply(qwen3, "routed", 24, query_block=8, share="group"), torch.no_grad():
        whole = qwen3(tokens).logits
        cache = qwen3(tokens[:, :64]).past_key_values
        piece = qwen3(tokens[:, 64:], past_key_values=cache).logits
        torch.testing.assert_close(piece, whole[:, 64:], rtol=1e-4, atol=1e-4)
        cache = qwen3(tokens[:, :60]).past_key_values
        with pytest.raises(NotImplementedError, match="pieces may begin at its multiples only"):
            qwen3(tokens[:, 60:], past_key_values=cache)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="generated tokens come one by one: use query_block=1"):
        sa_patch.variant("routed", 64, query_block=4, decode="sparse")
    with pytest.raises(ValueError, match="depend on the content"):
        Routed(window=8).sparse_pattern(Group(20, 20, torch.device("cpu")), 0, None, None)
