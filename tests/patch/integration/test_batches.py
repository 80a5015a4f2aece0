"""Rows of a batch don't know of each other: padding, packing, masks of any kind. The yardstick is the row alone."""

import itertools

import pytest
import torch
from answers import logits
from patch_cases import make_variant
from support import close
from transformers import DynamicCache, StaticCache

import sa_patch

CASES = ("swa", "sa", "sa-bucket", "sa-dyadic", "sa-dyadic-bucket", "sa+swa", "moba", "random-keys")
CONSISTENT = ("swa", "swa-sinks", "sa-dyadic", "sa-dyadic-bucket", "sa+swa-dyadic", "moba", "random-keys")
LENGTHS = (1, 2, 37, 150, 37)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def texts(*lengths):
    """One [length] row of token ids each."""
    source = torch.Generator().manual_seed(3)
    return [torch.randint(1, 97, (length,), generator=source) for length in lengths]


def pad(rows, side, width=None):
    """(tokens, mask), both int64 [rows, columns]."""
    width = width or max(len(row) for row in rows)
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[index, place], mask[index, place] = row, 1
    return tokens, mask


def positions(mask):
    """What `generate` makes of a mask: padding takes no position."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def alone(model, rows):
    return [logits(model, row[None])[0] for row in rows]


# Padding


@pytest.mark.cell("Batches", "left-padded prompts")
@pytest.mark.cell("Batches", "right-padded prompts")
@pytest.mark.cell("Batches", "rows of one token, rows of very different lengths")
@pytest.mark.parametrize("case", CASES)
def test_padded_rows_of_very_different_lengths_are_the_rows_alone(model, case):
    rows = texts(*LENGTHS)
    with sa_patch.apply(model, variant=make_variant(case), kernel="reference"):
        expected = alone(model, rows)
    for side, kernel in (("left", "auto"), ("right", "torch")):
        tokens, mask = pad(rows, side)
        with sa_patch.apply(model, variant=make_variant(case), kernel=kernel):
            # Without position_ids, left padding shifts all positions of a row by the same: RoPE does not see it.
            for extras in ({"position_ids": positions(mask)}, {}):
                together = logits(model, tokens, attention_mask=mask, **extras)
                for found, real, row in zip(together, mask.bool(), expected, strict=True):
                    close(found[real], row, f"{side}-padded prompts", **CLOSE)


@pytest.mark.cell("Batches", "no mask: every token is real")
@pytest.mark.parametrize("case", CASES)
def test_a_batch_without_a_mask_is_its_rows_alone(model, case):
    rows = texts(48, 48, 48)
    with sa_patch.apply(model, variant=make_variant(case)):
        together = logits(model, torch.stack(rows))
        close(together, torch.stack(alone(model, rows)), "batches without a mask", **CLOSE)


@pytest.mark.cell("Batches", "2D masks of bool, integers or floats")
@pytest.mark.parametrize("case", ["sa", "moba"])
def test_a_mask_means_the_same_in_every_dtype(model, case):
    tokens, mask = pad(texts(20, 48, 33), "left")
    with sa_patch.apply(model, variant=make_variant(case)):
        expected = logits(model, tokens, attention_mask=mask)
        generated = model.generate(tokens, attention_mask=mask, max_new_tokens=3, do_sample=False)
        for dtype in (torch.bool, torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float32):
            assert torch.equal(logits(model, tokens, attention_mask=mask.to(dtype)), expected), dtype
            found = model.generate(tokens, attention_mask=mask.to(dtype), max_new_tokens=3, do_sample=False)
            assert torch.equal(found, generated), dtype


@pytest.mark.cell("Batches", "a row that is all padding, prefill, decode and gradients")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_a_row_of_padding_is_finite_and_changes_no_other_row(model, case, decode):
    rows = [text[:-1] for text in texts(31, 1, 49)]  # the second one is empty
    tokens, mask = pad(rows, "left")
    new = torch.tensor([[5], [6], [7]])
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        cache = DynamicCache(config=model.config)
        prompt = logits(model, tokens, attention_mask=mask, past_key_values=cache)
        longer = torch.cat([mask, torch.tensor([[1], [0], [1]])], dim=1)
        step = logits(model, new, attention_mask=longer, past_key_values=cache)
        assert prompt.isfinite().all() and step.isfinite().all()
        for index in (0, 2):
            cache = DynamicCache(config=model.config)
            expected = logits(model, rows[index][None], past_key_values=cache)[0]
            close(prompt[index, mask[index].bool()], expected, "beside a row of padding", **CLOSE)
            expected = logits(model, new[index : index + 1], past_key_values=cache)[0]
            close(step[index], expected, "beside a row of padding", **CLOSE)
        assert logits(model, tokens, attention_mask=torch.zeros_like(mask)).isfinite().all()
        model(tokens, attention_mask=mask).logits[[0, 2]].sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


# Padding and a cache


@pytest.mark.cell("Batches", "padded prompts, left or right, then new tokens, decode='full' and 'sparse'")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_new_tokens_after_padded_prompts_are_those_of_the_rows_alone(model, case, side, decode):
    rows, steps = texts(1, 30, 48), 4
    new = torch.stack(texts(*[steps] * len(rows)))
    tokens, mask = pad(rows, side)
    mask = torch.cat([mask, torch.ones_like(new)], dim=1)
    place, width = positions(mask), tokens.shape[1]
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)) as patch:
        cache = DynamicCache(config=model.config)
        logits(model, tokens, attention_mask=mask[:, :width], position_ids=place[:, :width], past_key_values=cache)
        found = []
        for stop in range(width + 1, width + steps + 1):
            inputs = {"attention_mask": mask[:, :stop], "position_ids": place[:, stop - 1 : stop]}
            step = new[:, stop - width - 1 : stop - width]
            found.append(logits(model, step, past_key_values=cache, **inputs))
        assert (patch.calls[0]["sparse_decode"] > 0) == (decode == "sparse")
        for index, row in enumerate(rows):
            cache = DynamicCache(config=model.config)
            logits(model, row[None], past_key_values=cache)
            expected = [logits(model, token[None, None], past_key_values=cache) for token in new[index]]
            close(torch.cat(found, dim=1)[index], torch.cat(expected, dim=1)[0], "new tokens after padding", **CLOSE)


@pytest.mark.cell("Batches", "a left-padded batch in chunks, and over turns that are padded again")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CONSISTENT)
def test_padded_batches_in_pieces_are_the_rows_in_one_call(model, case, side):
    """Two turns, each padded on its own; the first one in chunks that cut through padding."""
    rows = texts(40, 70, 71)
    turns = [[row[:first] for row, first in zip(rows, (12, 1, 60), strict=True)]]
    turns.append([row[len(start) :] for row, start in zip(rows, turns[0], strict=True)])
    pieces = [pad(turn, side) for turn in turns]
    tokens, mask = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
    place, cuts = positions(mask), [0, 20, 49, 60, tokens.shape[1]]
    with sa_patch.apply(model, variant=make_variant(case, decode="sparse")):
        cache, found = DynamicCache(config=model.config), []
        for start, stop in itertools.pairwise(cuts):
            inputs = {"attention_mask": mask[:, :stop], "position_ids": place[:, start:stop]}
            found.append(logits(model, tokens[:, start:stop], past_key_values=cache, **inputs))
        for row, real, expected in zip(torch.cat(found, dim=1), mask.bool(), alone(model, rows), strict=True):
            close(row[real], expected, "padded batches in pieces", **CLOSE)


@pytest.mark.cell("Batches", "padding between tokens without position_ids")
@pytest.mark.parametrize("make_cache", [DynamicCache, lambda config: StaticCache(config=config, max_cache_len=60)])
def test_padding_that_takes_positions_is_refused(model, make_cache, refused):
    tokens, mask = pad(texts(20, 12), "right")
    longer = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
    place = positions(longer)[:, 20:]
    with sa_patch.apply(model, "swa", 12, decode="sparse"):
        cache = make_cache(config=model.config)
        logits(model, tokens, attention_mask=mask, past_key_values=cache)
        logits(model, tokens[:, :5], attention_mask=longer, past_key_values=cache, position_ids=place)
        longer = torch.cat([longer, torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)], dim=1)
        wide = torch.arange(25, 32)[None] + torch.tensor([0, 1] * 3 + [0])
        with refused(NotImplementedError, match=r"Padding between tokens: pass position_ids that leave it out"):
            logits(model, tokens[:, :7], attention_mask=longer, past_key_values=cache, position_ids=wide)


@pytest.mark.cell("Batches", "generate over a left-padded batch, two turns on one cache")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CONSISTENT)
def test_a_batch_of_chats_is_every_chat_alone(model, case, decode):
    first, second = texts(9, 31, 48), texts(7, 12, 1)

    def chat(*turns):
        """Every row's tokens at the end, padding left out."""
        cache, tokens, mask = DynamicCache(config=model.config), *pad(turns[0], "left")
        options = {"past_key_values": cache, "max_new_tokens": 4, "do_sample": False}
        answer = model.generate(tokens, attention_mask=mask, **options)
        more, more_mask = pad(turns[1], "left")
        written = torch.ones(len(more), 4, dtype=torch.long)
        mask = torch.cat([mask, written, more_mask], dim=1)
        found = model.generate(torch.cat([answer, more], dim=1), attention_mask=mask, **options)
        return [row[real.bool()].tolist() for row, real in zip(found, torch.cat([mask, written], dim=1), strict=True)]

    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        expected = [chat([start], [more])[0] for start, more in zip(first, second, strict=True)]
        assert chat(first, second) == expected


# Packing


def packed(*documents):
    """(tokens, position_ids), both [1, all tokens]."""
    return torch.cat(documents)[None], torch.cat([torch.arange(len(text)) for text in documents])[None]


def ends(*lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@pytest.mark.cell("Batches", "packed documents by position_ids (no mask, use_cache=False)")
@pytest.mark.parametrize("case", CASES)
def test_documents_packed_by_their_positions_are_the_documents_alone(model, case):
    rows = [texts(30, 1, 50, 1, 18), texts(64, 36)]
    inputs = [packed(*documents) for documents in rows]
    tokens, place = (torch.cat(parts) for parts in zip(*inputs, strict=True))
    with sa_patch.apply(model, variant=make_variant(case)):
        found = logits(model, tokens, position_ids=place, use_cache=False)
        for row, documents in zip(found, rows, strict=True):
            close(row, torch.cat(alone(model, documents)), "packed documents", **CLOSE)


@pytest.mark.cell("Batches", "packed documents by cu_seq_lens_q and cu_seq_lens_k, zero-length documents too")
@pytest.mark.parametrize("case", CASES)
def test_documents_packed_by_their_ends_are_the_documents_alone(model, case):
    lengths = (30, 0, 1, 50, 0, 19)
    documents = [text for text in texts(*lengths) if len(text)]
    tokens, place = packed(*documents)
    cuts = {"cu_seq_lens_q": ends(*lengths), "cu_seq_lens_k": ends(*lengths), "max_length_q": 50, "max_length_k": 50}
    with sa_patch.apply(model, variant=make_variant(case)):
        expected = torch.cat(alone(model, documents))
        plain = torch.arange(tokens.shape[1])[None]  # RoPE sees distances only
        for extras in ({"position_ids": place, "use_cache": False}, {"position_ids": plain}, {}):
            close(logits(model, tokens, **cuts, **extras)[0], expected, "packed documents", **CLOSE)


@pytest.mark.cell("Batches", "packed documents with padding inside, cu_seq_lens rewritten in place")
@pytest.mark.parametrize("case", CASES)
def test_the_ends_of_a_call_say_nothing_of_the_next(model, case):
    row, buffer = texts(60)[0], ends(10, 50)
    with sa_patch.apply(model, variant=make_variant(case)):
        for cuts, padded in (((10, 50), 0), ((25, 35), 0), ((25, 35), 7)):
            buffer.copy_(ends(*cuts))
            mask = (torch.arange(60) >= padded).long()[None]
            found = logits(model, row[None], cu_seq_lens_q=buffer, cu_seq_lens_k=buffer, attention_mask=mask)
            expected = alone(model, [row[padded : cuts[0]], row[cuts[0] :]])
            close(found[0, padded:], torch.cat(expected), "packed documents", **CLOSE)


@pytest.mark.cell("Batches", "packed documents in a static cache, cu_seq_lens that don't fit")
def test_ends_that_do_not_fit_are_refused(model, refused):
    tokens = torch.stack(texts(40, 40))
    right, wrong = ends(10, 30), ends(20, 20)
    with sa_patch.apply(model, "sa", 12):
        with refused(NotImplementedError, match=r"cu_seq_lens_k=\[0, 20, 40\] cuts the keys elsewhere .* the same"):
            logits(model, tokens[:1], cu_seq_lens_q=right, cu_seq_lens_k=wrong)
        with refused(NotImplementedError, match=r"cu_seq_lens_k=\[0, 10, 40\] .* cu_seq_lens_q=None"):
            logits(model, tokens[:1], cu_seq_lens_k=right)
        for extras in ({"cu_seq_lens_q": right}, {"cu_seq_lens_k": right}):
            with refused(NotImplementedError, match="packs documents into one row without a cache; this call has 2 ro"):
                logits(model, tokens, **extras)
        place = torch.cat([torch.arange(10), torch.arange(30)])[None]
        for extras, message in (
            ({"cu_seq_lens_q": right, "cu_seq_lens_k": right}, "packs documents into one row without a cache"),
            ({"position_ids": place}, "Packed documents: .* pass use_cache=False and no mask"),
        ):
            cache = StaticCache(config=model.config, max_cache_len=50)
            with refused(NotImplementedError, match=message):
                logits(model, tokens[:1], past_key_values=cache, **extras)
        with refused(ValueError, match=r"must ascend from 0 to the row's 40 tokens, got \[0, 10, 39\]"):
            logits(model, tokens[:1], cu_seq_lens_q=ends(10, 29))
