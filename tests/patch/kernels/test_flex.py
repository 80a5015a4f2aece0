"""The flex kernel: its block masks pair by pair, its results, and FlexAttention itself where it compiles on a CPU."""

import pytest
import torch
from kernel_stand_ins import seen_by_blocks, seen_by_mask_mod, stand_in_for_flex
from patch_cases import TILED, Largest, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.kept import KEPT
from sa_patch.kernels.flex import block_masks, requests
from sa_patch.patterns import Band, Blocks, Pieces

CPU = torch.device("cpu")
BLOCK = 16


ONE_PASS = [case for case in TILED if not any(word in case for word in ("moba", "local", "extras", "full"))]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that short sequences fall into many blocks; without what was kept for other sizes."""
    monkeypatch.setattr(block_masks, "BLOCK", BLOCK)
    KEPT.forget()
    yield
    KEPT.forget()


@pytest.fixture
def on_cpu(monkeypatch):
    stand_in_for_flex(monkeypatch)


def check(case, length, query_len, heads=(4, 2), dtype=torch.float32, window=12, batch=2):
    query, key, value = random_heads(length, *heads, batch=batch, query_len=query_len, dtype=dtype)
    run = {"variant": make_variant(case, window), "layer_idx": 1}
    exact = sa_patch.attention(query.double(), key.double(), value.double(), kernel="reference", **run)
    found = sa_patch.attention(query, key, value, kernel="flex", **run)
    plain = sa_patch.attention(query, key, value, kernel="torch", **run)
    # Parts are rounded to the dtype before they are merged, and the whole once more.
    rounding = 2 * torch.finfo(dtype).eps * float(exact.abs().max())
    assert found.dtype == dtype and not found.isnan().any()
    assert float((found - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + rounding


@pytest.mark.parametrize("case", TILED)
def test_flex_equals_reference(on_cpu, case):
    for length, query_len, heads in (
        (130, 130, (4, 2)),
        (130, 9, (4, 1)),
        (63, 1, (4, 4)),
        (13, 13, (8, 1)),
        (97, 80, (4, 2)),
    ):
        check(case, length, query_len, heads)
    check(case, 130, 130, dtype=torch.float16)


def parts_of(pattern):
    return pattern.pieces if isinstance(pattern, Pieces) else (pattern,)


@pytest.mark.parametrize("query_len", [300, 70])
@pytest.mark.parametrize("window", [5, 16, 40])
@pytest.mark.parametrize("case", ONE_PASS)
def test_blocks_hold_every_visible_pair_and_full_blocks_no_other(case, window, query_len):
    """And few blocks more than the pairs need: none in the future, none beyond the band."""
    for pattern in parts_of(make_pattern(make_variant(case, window, dense_tail=0), 300, query_len=query_len)):
        if pattern.covers_all or pattern.local:
            continue
        blocked = block_masks.make_blocks(pattern, CPU, split=False)
        layout, mask = blocked.layout, blocked.mask()
        slot = slice(None) if layout.slot is None else layout.slot
        keys = torch.arange(pattern.length) if layout.keys is None else layout.keys
        seen = seen_by_blocks(mask)[slot]
        real = layout.key_pos < pattern.length
        found = torch.zeros(pattern.query_len, pattern.length, dtype=torch.int64)
        found.index_add_(1, keys[real], seen[:, real].long())
        assert not seen[:, ~real].any()
        assert torch.equal(found, pattern.visible().long())  # 2 would be a pair counted twice
        assert torch.equal(seen_by_mask_mod(mask)[slot], seen)  # the lists leave nothing out that the function shows


@pytest.mark.parametrize("case", ["swa", "sa", "sa-circular", "sa-bucket", "swa-sinks"])
def test_listed_blocks_are_few(case, monkeypatch):
    """Work per query is O(window), half of a permuted band is skipped as future, and nothing is n x n."""
    length, window = 8192, 500
    pattern = make_pattern(make_variant(case, window), length)
    with Largest() as largest:
        blocked = block_masks.make_blocks(pattern, CPU, split=False)
        mask = blocked.mask()
    listed = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) * BLOCK * BLOCK
    # Blocks are as large as queries and keys they add on each side; a superblock of a band adds its own size.
    rounding = {"swa": 2 * BLOCK, "swa-sinks": 3 * BLOCK, "sa-bucket": 4 * BLOCK}.get(case, window // 2)
    assert listed <= pattern.count() + length * rounding
    assert int(mask.full_kv_num_blocks.sum()) > 0
    assert largest.nbytes < length * length // 8


@pytest.mark.parametrize("width", [1, 64, 128, 500, 1024, 5000])
def test_superblocks_are_of_the_size_that_visits_least(width):
    size = block_masks.superblock_for(width)
    assert size % BLOCK == 0
    visited = [(2 * -(-(width - 1) // s) + 1) * (s + BLOCK) for s in (BLOCK << power for power in range(6))]
    assert (2 * -(-(width - 1) // size) + 1) * (size + BLOCK) == min(visited)


@pytest.mark.parametrize("sinks,local", [(0, 0), (3, 0), (0, 4), (20, 5)])
def test_asked_runs_hold_what_was_selected_and_nothing_else(sinks, local):
    query, key, _ = random_heads(150)
    pattern = make_pattern(make_variant("moba-top3", 30), 150, 0, query, key)
    pattern = Blocks(
        length=150, query_len=150, block_size=pattern.block_size, selected=pattern.selected, sinks=sinks, local=local
    )
    asked = requests.ask(pattern, 2)
    seen = seen_by_blocks(asked.mask)
    batch, heads, _, chosen = pattern.selected.shape
    expected = torch.zeros(pattern.selected.numel() + 1, batch * 2 * 150, dtype=torch.bool)
    for number, run in enumerate(pattern.selected.flatten().tolist()):
        at, head = number // chosen % 150, number // chosen // 150
        line = (head // heads * 2 + head % heads // (heads // 2)) * 150
        for position in range(run * pattern.block_size, (run + 1) * pattern.block_size) if run >= 0 else ():
            expected[number, line + position] = position >= sinks and at - position >= local
    found = torch.zeros_like(expected).index_copy_(0, asked.target, seen)
    assert torch.equal(found[:-1], expected[:-1])


@pytest.mark.parametrize("case", ["sa", "sa-bucket", "moba-sinks-local-tail"])
def test_two_runs_are_bit_identical_with_and_without_what_is_kept(on_cpu, case):
    tensors, variant = random_heads(130), make_variant(case)
    first = sa_patch.attention(*tensors, variant, kernel="flex")
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel="flex"), first)
    KEPT.forget()
    assert torch.equal(sa_patch.attention(*tensors, variant, kernel="flex"), first)


def test_what_flex_can_not_do_is_refused_with_the_way_out():
    query, key, value = random_heads(70)
    for case in ("moba", "sa-sinks-local"):
        with pytest.raises(NotImplementedError, match=r"flex.*no log-sum-exp to merge passes with: use kernel='torch'"):
            sa_patch.attention(query, key, value, make_variant(case), kernel="flex")
    with pytest.raises(NotImplementedError, match=r"flex.*no gradients: use kernel='torch'"):
        sa_patch.attention(query.requires_grad_(), key, value, make_variant("swa"), kernel="flex")
    with pytest.raises(NotImplementedError, match=r"flex.*use kernel='torch' for float64"):
        sa_patch.attention(*(x.detach().double() for x in (query, key, value)), make_variant("swa"), kernel="flex")
    pattern = make_pattern(make_variant("random-keys"), 40)
    assert kernels.get("flex").refusal(pattern, *random_heads(40)) == "it has no code for Scattered patterns"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("case", ["swa-sinks", "sa", "sa-bucket"])
def test_compiled_flex_attention_equals_reference(case, monkeypatch):
    """FlexAttention itself: a CPU runs patterns of one pass."""
    monkeypatch.setattr(block_masks, "BLOCK", 128)
    check(case, 1000, 700, window=90, batch=1)


def test_the_blocks_of_a_local_window_are_made_once_and_apart_from_those_with_sinks():
    near = Band(length=600, query_len=600, sinks=3, width=20)
    kept = [block_masks.kept_blocks(near, CPU, split=False, show_sinks=shown) for shown in (False, True, False)]
    assert kept[0] is kept[2] and kept[0] is not kept[1]
