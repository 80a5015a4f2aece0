"""In place of a device: FlashAttention's and FlexAttention's calls as documented; planted kernels and times."""

import functools
import itertools

import torch

from sa_patch import kernels
from sa_patch.kernels.flash import kernel as flash
from sa_patch.kernels.flex import block_masks
from sa_patch.kernels.flex import kernel as flex
from sa_patch.kernels.reference import Reference
from sa_patch.kernels.rules import layout_of
from sa_patch.tuning import timing


def stand_in_for_flash(monkeypatch):
    monkeypatch.setattr(flash, "varlen", varlen)
    monkeypatch.setattr(flash, "unavailable", lambda query: None)


def stand_in_for_flex(monkeypatch):
    monkeypatch.setattr(flex, "flexible", flexible)
    monkeypatch.setattr(flex, "unavailable", lambda device, merges: None)


def varlen(query, key, value, sequences, scaling, *, causal, window=-1):
    """FlashAttention as it is documented: per sequence, the last query sees the last key; float32; NaN beyond."""
    output, lse = torch.full_like(query, torch.nan), torch.full((query.shape[1], len(query)), torch.nan)
    ends = sequences.query_ends.tolist(), sequences.key_ends.tolist()
    assert all(low <= high for row in ends for low, high in itertools.pairwise(row))
    assert len(ends[0]) == len(ends[1]) and ends[0][0] == ends[1][0] == 0 and ends[1][-1] == len(key)
    group = query.shape[1] // key.shape[1]
    for first, last, low, high in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        if first == last:
            continue
        assert last - first <= sequences.most_queries and high - low <= sequences.most_keys
        q, k = query[first:last].float(), key[low:high].float().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scaling
        row = torch.arange(high - low - (last - first), high - low)[:, None]
        column = torch.arange(high - low)
        if causal:
            scores = scores.masked_fill((column > row) | ((window >= 0) & (row - column > window)), -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0.0)  # rows without keys
        found = torch.einsum("hqk,khd->qhd", weights, value[low:high].float().repeat_interleave(group, 1))
        output[first:last], lse[:, first:last] = found.to(output.dtype), scores.logsumexp(-1)
    return output, lse


def flexible(query, key, value, mask, scaling, *, with_lse):
    """FlexAttention as documented, in float32, seeing what its blocks and their function let through."""
    seen, group = seen_by_blocks(mask), query.shape[1] // key.shape[1]
    keys, values = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scores = (query.float() @ keys.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf)
    output = scores.softmax(-1).nan_to_num(0.0) @ values
    return output.to(query.dtype), scores.logsumexp(-1) if with_lse else None


def block_lists(mask):
    """Per block of queries: (partial, full) sets of blocks of keys, read as FlexAttention reads them."""
    lists = []
    for counts, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        assert counts.shape[:2] == indices.shape[:2] == (1, 1)
        rows = [row[:count].tolist() for row, count in zip(indices[0, 0], counts[0, 0].tolist(), strict=True)]
        assert all(len(set(row)) == len(row) for row in rows)
        lists.append([set(row) for row in rows])
    return list(zip(*lists, strict=True))


def seen_by_mask_mod(mask):
    """bool [q, k], what the function says of all pairs."""
    query_len, length = mask.seq_lengths
    query, key = torch.arange(query_len)[:, None], torch.arange(length)
    zero = torch.zeros((), dtype=torch.int64)
    return mask.mask_mod(zero, zero, query, key).expand(query_len, length)


def seen_by_blocks(mask):
    """bool [q, k], what compiled FlexAttention sees: full blocks whole, partial ones by the function, no others."""
    shown, seen = seen_by_mask_mod(mask), torch.zeros(mask.seq_lengths, dtype=torch.bool)
    size = block_masks.BLOCK
    for number, (partial, full) in enumerate(block_lists(mask)):
        assert not partial & full
        rows = slice(number * size, (number + 1) * size)
        for block in partial | full:
            columns = slice(block * size, (block + 1) * size)
            seen[rows, columns] = True if block in full else shown[rows, columns]
    return seen


def plant_kernel(monkeypatch, name, *, factor=1.0, refuses=(), compile_seconds=0.0, sizes=(), size=None):
    """A kernel in the table that gives the reference's numbers, times `factor`.

    Args:
        refuses: layouts it can't run.
        sizes: other sizes of it, as `candidates` gives them; `size` is the one it has.
    """

    class Planted(Reference):
        masks = False

        def refusal(self, pattern, *_):
            return "not on Sundays" if layout_of(pattern) in refuses else None

        def __call__(self, *arguments):
            return super().__call__(*arguments) * factor

    if sizes:
        Planted.candidates = lambda self, head_dim, dtype: list(sizes)
        Planted.sized = lambda self, asked: plant_kernel(monkeypatch, f"{name} {asked}", size=asked)
    planted = Planted()
    planted.name, planted.compile_seconds, planted.size = name, compile_seconds, size
    get = kernels.get
    monkeypatch.setitem(kernels.KERNELS, name, ("planted", name))
    monkeypatch.setattr(kernels, "get", lambda asked: planted if asked == name else get(asked))
    return planted


def plant_times(monkeypatch, milliseconds):
    """A device whose calls take the planted time, on a clock of its own; returns that clock.

    Args:
        milliseconds: (kernel's name or "full", length, window or None) -> a call's milliseconds.
    """
    now = [0.0]

    def once(call, device):
        if isinstance(call, functools.partial):
            kernel, variant, tensors = call.args
            known = [name for name in kernels.KERNELS if kernels.get(name) is kernel]
            asked = getattr(kernel, "name", known[0] if known else ""), tensors[0].shape[2], variant.window
        else:
            asked = "full", call.length, None
        taken = milliseconds(*asked) / 1e3
        now[0] += taken
        return taken

    def full(query, key, value):
        def call():
            raise AssertionError("its time is planted")

        call.length = query.shape[2]
        return call

    monkeypatch.setattr(timing, "once", once)
    monkeypatch.setattr(timing, "seconds", once)
    monkeypatch.setattr(timing, "fastest_full", full)
    return lambda: now[0]
