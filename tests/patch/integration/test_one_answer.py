"""One sequence, one answer: however its tokens arrive, where the definition does not need the whole prompt.

The yardstick is one-shot prefill with the reference kernel.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_model
from patch_cases import random_heads
from support import close
from transformers import DynamicCache

import sa_patch
from sa_patch.randomness import inverse, permutation

MODES = {
    "swa": ("swa", {}),
    "swa-sinks-local": ("swa", {"sinks": 3, "local": 5}),
    "dyadic": ("sa", {"horizon": "dyadic"}),
    "dyadic-bucket": ("sa", {"horizon": "dyadic", "form": "bucket"}),
    "dyadic-sinks-local": ("sa", {"horizon": "dyadic", "sinks": 2, "local": 4}),
    "dyadic+swa": ("sa+swa", {"horizon": "dyadic"}),
    "moba": ("moba", {}),
    "moba-top3": ("moba", {"top_k": 3, "sinks": 2}),
    "random-keys": ("random-keys", {}),
    "random-keys-extras": ("random-keys", {"sinks": 2, "local": 4}),
}
KERNELS = ("auto", "torch", "sdpa", "reference")
EXAMPLES = 200
# Noise of float32 through three layers of logits of size 10.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def consistent(name: str, window: int, **options) -> sa_patch.Variant:
    mode, extras = MODES[name]
    return sa_patch.variant(mode, window, decode="sparse", **extras, **options)


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


def in_pieces(model, tokens, cuts, cache=None):
    """Logits of a text that arrives cut before each of the given positions."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    edges = [0, *sorted(cuts), tokens.shape[1]]
    pieces = [tokens[:, start:stop] for start, stop in itertools.pairwise(edges) if stop > start]
    return torch.cat([logits(model, piece, past_key_values=cache, use_cache=True) for piece in pieces], dim=1)


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 97, (1, length), generator=torch.Generator().manual_seed(seed))


def dyadic_by_definition(length, window, form, layer_idx, seed):
    """Written down query by query: smallest power of two above i, its permutation, round(2w/3)."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    width = round(2 * window / 3)
    for i in range(length):
        horizon = 32
        while horizon <= i:
            horizon *= 2
        rank = inverse(permutation(horizon, seed, layer_idx)).tolist()
        for j in range(i + 1):
            if form == "sliding":
                mask[i, j] = abs(rank[i] - rank[j]) < width
            else:
                mask[i, j] = rank[i] // (2 * width - 1) == rank[j] // (2 * width - 1)
    return mask


@pytest.mark.parametrize("form", ["sliding", "bucket"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100])
def test_a_dyadic_mask_is_the_definition(form, length):
    model = make_model()
    for window in (1, 2, 12, 24, 47, 48, 150):
        patch = sa_patch.apply(model, "sa", window, horizon="dyadic", form=form, seed=7)
        assert torch.equal(patch.mask(length, 2), dyadic_by_definition(length, window, form, 2, 7)), window


@given(
    name=st.sampled_from(list(MODES)),
    kernel=st.sampled_from(KERNELS),
    window=st.integers(9, 80),
    length=st.integers(2, 90),
    query_len=st.integers(1, 90),
    heads=st.sampled_from([(4, 4), (4, 2), (5, 1), (8, 1)]),
    head_dim=st.sampled_from([16, 48, 80, 256]),
    seed=st.integers(0, 2**63),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=4 * EXAMPLES, deadline=None)
def test_the_last_queries_see_what_they_see_in_the_whole(
    name, kernel, window, length, query_len, heads, head_dim, seed, dtype
):
    query, key, value = random_heads(length, *heads, head_dim, batch=2, dtype=dtype)
    variant = consistent(name, window, seed=seed)
    whole = sa_patch.attention(query, key, value, variant, kernel="reference", layer_idx=1)
    last = query[:, :, -query_len:]
    found = sa_patch.attention(last, key, value, variant, kernel=kernel, layer_idx=1)
    noise = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    close(found, whole[:, :, -query_len:], "the last queries of a sequence alone", noise, noise)


@pytest.mark.cell("One answer", "prefill in any chunks = in one call (swa, moba, sa with horizon='dyadic')")
@given(
    kind=st.sampled_from(["qwen3", "qwen3_moe"]),
    name=st.sampled_from(list(MODES)),
    kernel=st.sampled_from(KERNELS),
    window=st.integers(9, 60),
    length=st.integers(2, 140),
    cuts=st.lists(st.integers(1, 139), max_size=5),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_chunked_prefill_is_one_shot_prefill(kind, name, kernel, window, length, cuts):
    model, tokens = make_model(kind), text(length)
    variant = consistent(name, window)
    with sa_patch.apply(model, variant=variant, kernel="reference"):
        expected = logits(model, tokens)
    with sa_patch.apply(model, variant=variant, kernel=kernel):
        found = in_pieces(model, tokens, [cut for cut in cuts if cut < length])
        close(found, expected, "prefill in chunks", **CLOSE)


@pytest.mark.cell("One answer", "token by token with decode='sparse' = in one call")
@pytest.mark.parametrize("name", MODES)
def test_token_by_token_is_one_shot_prefill(model, name):
    tokens = text(75)
    with sa_patch.apply(model, variant=consistent(name, 12)) as patch:
        expected = logits(model, tokens)
        close(in_pieces(model, tokens, range(1, 75)), expected, "token by token", **CLOSE)
        assert patch.calls[0]["sparse_decode"] > 40 and patch.calls[0]["full_decode"] < 35


@pytest.mark.cell("One answer", "a prefix alone = the same prefix inside a longer text")
@given(
    name=st.sampled_from(list(MODES)),
    window=st.integers(9, 60),
    length=st.integers(2, 200),
    share=st.floats(0.05, 0.95),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_prefix_does_not_know_what_follows(name, window, length, share):
    model, tokens = make_model(), text(length)
    prefix = max(1, round(share * length))
    with sa_patch.apply(model, variant=consistent(name, window)):
        close(logits(model, tokens[:, :prefix]), logits(model, tokens)[:, :prefix], "a prefix alone", **CLOSE)


@pytest.mark.cell("One answer", "a cache cropped and continued = the text itself")
@pytest.mark.parametrize("name", MODES)
def test_a_cropped_cache_goes_on_as_if_nothing_had_been_there(model, name):
    tokens, other = text(70), text(30, seed=5)
    with sa_patch.apply(model, variant=consistent(name, 12)):
        expected = logits(model, tokens)[:, 40:]
        cache = DynamicCache(config=model.config)
        in_pieces(model, torch.cat([tokens[:, :40], other], dim=1), [], cache)
        cache.crop(-30)
        close(in_pieces(model, tokens[:, 40:], [9, 10], cache), expected, "a cropped cache continued", **CLOSE)


@pytest.mark.cell("One answer", "a prefix cache shared by two continuations")
@pytest.mark.parametrize("name", MODES)
def test_two_continuations_share_a_prefix(model, name):
    prefix, ends = text(50), (text(20, seed=2), text(31, seed=3))
    with sa_patch.apply(model, variant=consistent(name, 12)):
        shared = DynamicCache(config=model.config)
        in_pieces(model, prefix, [], shared)
        for end in ends:
            expected = logits(model, torch.cat([prefix, end], dim=1))[:, 50:]
            close(in_pieces(model, end, [], copy.deepcopy(shared)), expected, "a shared prefix continued", **CLOSE)


@pytest.mark.cell("One answer", "chat over several turns with one cache = the whole conversation in one call")
@pytest.mark.parametrize("name", MODES)
def test_a_chat_that_keeps_its_cache_is_the_whole_conversation(model, name):
    with sa_patch.apply(model, variant=consistent(name, 12)):
        cache, said = DynamicCache(config=model.config), text(40)
        for turn in range(3):
            all_real = torch.ones_like(said)  # or generate takes a token 0 that was generated for padding
            found = model.generate(
                said, attention_mask=all_real, past_key_values=cache, max_new_tokens=7, do_sample=False
            )
            expected = said
            for _ in range(7):  # no cache at all: every step is a prefill of everything
                expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
            assert torch.equal(found, expected)
            said = torch.cat([found, text(9 if turn else 1, seed=turn)], dim=1)


@pytest.mark.cell("One answer", "assisted and prompt-lookup decoding with decode='sparse' = plain greedy")
@pytest.mark.parametrize("name", MODES)
def test_assisted_decoding_is_greedy_decoding(model, name):
    prompt = text(15).repeat(1, 3)
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 0}  # prompt lookup needs some end token
    with sa_patch.apply(model, variant=consistent(name, 12)):
        expected = model.generate(prompt, **greedy)
        for helper in ({"prompt_lookup_num_tokens": 4}, {"assistant_model": make_model(num_hidden_layers=1)}):
            assert torch.equal(model.generate(prompt, **greedy, **helper), expected)


@pytest.mark.cell("One answer", "generate with prefill_chunk_size = without")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("name", MODES)
def test_generate_with_chunked_prefill_is_generate(model, name, decode):
    prompt = text(49)
    mode, extras = MODES[name]
    with sa_patch.apply(model, mode, 12, decode=decode, **extras):
        states = []
        for chunk in (None, 8, 48):  # both leave a last chunk of one token, which is no generated token
            states.append(
                model.generate(
                    prompt, max_new_tokens=6, do_sample=False, prefill_chunk_size=chunk, return_dict_in_generate=True
                )
            )
    for state in states[1:]:
        assert torch.equal(state.sequences, states[0].sequences)
        for layer, expected in zip(state.past_key_values.layers, states[0].past_key_values.layers, strict=True):
            close(layer.keys, expected.keys, "generate with chunked prefill", **CLOSE)


@pytest.mark.parametrize("form", [{}, {"form": "bucket"}, {"circular": True}, {"sinks": 2, "local": 3}], ids=str)
@pytest.mark.parametrize("mode", ["sa", "sa+swa", "swa"])
def test_a_token_decoded_sparsely_sees_the_last_row_of_the_text_so_far(mode, form):
    """Also where the definition depends on the length: it is the length at that token."""
    known = {name: value for name, value in form.items() if not (mode != "sa" and name in ("circular", "local"))}
    variant = sa_patch.variant(mode, 12, decode="sparse", **(known if mode != "swa" else {"sinks": 2}))
    model, tokens = make_model(num_hidden_layers=1), text(61)
    with sa_patch.apply(model, variant=variant, kernel="reference") as patch:
        whole = logits(model, tokens)[:, -1]
    with sa_patch.apply(model, variant=variant) as patch:
        # One layer: its keys and values are the same however they were computed.
        found = in_pieces(model, tokens, [60])[:, -1]
        assert patch.calls[0]["sparse_decode"] == 1
    close(found, whole, "a token decoded sparsely", **CLOSE)
