"""Whichever cache holds the keys and values, the numbers are those of DynamicCache, or of no cache."""

import itertools

import pytest
import torch
from answers import logits
from models import make_model
from patch_cases import make_variant
from support import close
from transformers import DynamicCache, QuantizedCache, StaticCache
from transformers import cache_utils as transformers_caches
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

import sa_patch

CASES = ("swa", "sa", "sa-bucket", "sa-dyadic", "sa-dyadic-bucket", "sa+swa", "moba", "random-keys")
CONSISTENT = ("swa", "sa-dyadic", "sa-dyadic-bucket", "sa+swa-dyadic", "moba", "random-keys")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def texts(rows, length, seed=0):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(*lengths):
    """(tokens, mask), both int64 [rows, columns]."""
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return texts(len(lengths), max(lengths)) * mask, mask


def through(model, cache, tokens, cuts, mask=None):
    """Logits of texts that go into a cache in pieces: [rows, columns, vocabulary]."""
    found, place = [], None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    for start, stop in itertools.pairwise([0, *cuts, tokens.shape[1]]):
        padding = {} if mask is None else {"attention_mask": mask[:, :stop], "position_ids": place[:, start:stop]}
        found.append(logits(model, tokens[:, start:stop], past_key_values=cache, **padding))
    return torch.cat(found, dim=1)


def write(model, tokens, **options):
    return model.generate(tokens, max_new_tokens=5, do_sample=False, **options)


# No cache


@pytest.mark.cell("Caches", "no cache (use_cache=False): a forward")
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_without_a_cache_is_the_prompt_with_one(model, case):
    tokens, mask = left_padded(48, 20)
    with sa_patch.apply(model, variant=make_variant(case)):
        expected = logits(model, tokens, attention_mask=mask, use_cache=True)
        assert torch.equal(logits(model, tokens, attention_mask=mask, use_cache=False), expected)


@pytest.mark.cell("Caches", "no cache: generate with decode='sparse', where no later token changes a key")
@pytest.mark.parametrize("case", CONSISTENT)
def test_generate_without_a_cache_is_generate_with_one(model, case):
    tokens, mask = left_padded(48, 20)
    with sa_patch.apply(model, variant=make_variant(case, decode="sparse")):
        expected = write(model, tokens, attention_mask=mask)
        assert torch.equal(write(model, tokens, attention_mask=mask, use_cache=False), expected)


@pytest.mark.cell("Caches", "no cache: generate with decode='full', or where later tokens change keys")
def test_generate_without_a_cache_is_refused_where_it_means_something_else(model, refused):
    tokens = texts(1, 20)
    with (
        sa_patch.apply(model, "sa", 12, decode="sparse"),
        refused(NotImplementedError, match=r"use_cache=False reads the whole .* horizon='length' permutes"),
    ):
        write(model, tokens, use_cache=False)
    with (
        sa_patch.apply(model, "swa", 12) as patch,
        refused(NotImplementedError, match=r"use_cache=False reads .* needs decode='sparse', got 'full'"),
    ):
        write(model, tokens, use_cache=False)
    assert sum(sum(layer.values()) for layer in patch.calls) == 0, "refused before anything ran"
    expected = write(model, tokens)
    with sa_patch.apply(model, "full"):
        assert torch.equal(write(model, tokens, use_cache=False), expected)


# Static caches


@pytest.mark.cell("Caches", "StaticCache: prefill, decode full and sparse, left-padded batches")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_a_static_cache_is_a_dynamic_cache(model, case, decode):
    """Exactly long enough, longer than needed, and reset for another batch."""
    batches = [(texts(2, 54), None), left_padded(54, 31)]
    cuts = range(48, 54)
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)) as patch:
        longer = StaticCache(config=model.config, max_cache_len=150)
        for tokens, mask in batches:
            expected = through(model, DynamicCache(config=model.config), tokens, cuts, mask)
            longer.reset()
            for cache in (longer, StaticCache(config=model.config, max_cache_len=54)):
                found = through(model, cache, tokens, cuts, mask)
                real = slice(None) if mask is None else mask.bool()
                close(found[real], expected[real], "a static cache", **CLOSE)
                assert int(cache.get_seq_length()) == 54
        assert (patch.calls[0]["sparse_decode"] > 0) == (decode == "sparse")


@pytest.mark.cell("Caches", "StaticCache: chunked prefill and further turns")
@pytest.mark.parametrize("case", CONSISTENT)
def test_pieces_in_a_static_cache_are_the_whole_text(model, case):
    batches = [(texts(2, 70), None), left_padded(70, 31)]
    with sa_patch.apply(model, variant=make_variant(case, decode="sparse")):
        for tokens, mask in batches:
            whole = logits(model, tokens, **({} if mask is None else {"attention_mask": mask}))
            found = through(model, StaticCache(config=model.config, max_cache_len=96), tokens, [17, 40, 41, 69], mask)
            real = slice(None) if mask is None else mask.bool()
            close(found[real], whole[real], "pieces in a static cache", **CLOSE)


@pytest.mark.cell("Caches", "generate(cache_implementation='static'), also over turns")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_generate_with_a_static_cache_is_generate(model, case, decode):
    tokens, mask = left_padded(48, 20, 1)
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        expected = write(model, tokens, attention_mask=mask)
        found = write(model, tokens, attention_mask=mask, cache_implementation="static")
        assert torch.equal(found, expected)
        if case in CONSISTENT:
            turns = []
            for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=90)):
                said = write(model, tokens[:1], past_key_values=cache)
                turns.append(write(model, torch.cat([said, texts(1, 9)], dim=1), past_key_values=cache))
            assert torch.equal(*turns)


@pytest.mark.cell("Caches", "a StaticCache shorter than the prompt, or a mask wider than the cache")
def test_a_static_cache_that_does_not_fit_is_refused(model, refused):
    with sa_patch.apply(model, "swa", 12):
        with refused(NotImplementedError, match="shows 40 keys .* 48 new tokens: it is too short"):
            logits(model, texts(1, 48), past_key_values=StaticCache(config=model.config, max_cache_len=40))
        cache = StaticCache(config=model.config, max_cache_len=60)
        with refused(ValueError, match=r"attention_mask has shape \(1, 61\), but the cache holds 1 rows of 60 keys"):
            logits(model, texts(1, 48), past_key_values=cache, attention_mask=torch.ones(1, 61))


# Offloaded and quantized caches


@pytest.mark.cell("Caches", "offloaded and offloaded_static (CUDA)")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads caches from CUDA devices only")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_generate_with_an_offloaded_cache_is_generate(model, case, decode):
    model.cuda()
    tokens, mask = (tensor.cuda() for tensor in left_padded(48, 20, 1))
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        expected = write(model, tokens, attention_mask=mask)
        for kind in ("offloaded", "offloaded_static"):
            options = {"cache_implementation": kind, "disable_compile": True}
            assert torch.equal(write(model, tokens, attention_mask=mask, **options), expected)


SMALL_GROUPS = {"nbits": 4, "axis_key": 0, "axis_value": 0, "q_group_size": 16, "residual_length": 8}
BACKENDS = {
    "fp8": {},
    "quanto": SMALL_GROUPS,
    "hqq": {**SMALL_GROUPS, "axis_key": 1, "axis_value": 1},
}


def quantized_cache(model, backend):
    if backend == "fp8" and not hasattr(transformers_caches, "Fp8QuantizedLayer"):
        pytest.skip("this transformers has no fp8 caches")
    pytest.importorskip({"fp8": "torch", "quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    return QuantizedCache(backend=backend, config=model.config, **BACKENDS[backend])


@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", ["swa", "sa", "sa-dyadic-bucket", "moba"])
@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.cell("Caches", f"quantized cache: {name}")) for name in BACKENDS]
)
def test_a_quantized_cache_gives_what_the_reference_makes_of_its_keys(model, backend, case, decode):
    """The prompt itself still sees its own exact keys; later pieces see what the cache kept of them.

    In float64, where rounding noise of attention can't move a key to the next quantized value.
    """
    model.double().set_experts_implementation("eager")  # grouped_mm has no float64
    tokens, cuts = texts(2, 70), [48, *range(60, 70)] if case in CONSISTENT else range(60, 70)
    variant = make_variant(case, decode=decode)
    with sa_patch.apply(model, variant=variant, kernel="reference"):
        expected = through(model, quantized_cache(model, backend), tokens, cuts)
    with sa_patch.apply(model, variant=variant, kernel="torch"):
        exact = through(model, DynamicCache(config=model.config), tokens, cuts)
        found = through(model, quantized_cache(model, backend), tokens, cuts)
    close(found, expected, f"a quantized cache ({backend})", **CLOSE)
    assert torch.equal(found[:, : cuts[0]], exact[:, : cuts[0]])
    assert not torch.allclose(found[:, cuts[0] :], exact[:, cuts[0] :], atol=0.01), "nothing was quantized"


# What is done with caches


@pytest.mark.cell("Caches", "batch_repeat_interleave, batch_select_indices, reorder_cache")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_cache_can_be_repeated_selected_and_reordered(model, case, decode):
    (tokens, mask), new = left_padded(48, 20), texts(4, 3, seed=7)
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):

        def after(change, rows):
            """Logits of new tokens after a cache was changed, and those the rows give alone."""
            found, expected = DynamicCache(config=model.config), []
            through(model, found, tokens, [], mask)
            change(found)
            longer = torch.cat([mask[rows], torch.ones(len(rows), 3, dtype=torch.long)], dim=1)
            together = []
            for step in range(3):
                width = 49 + step
                together.append(
                    logits(
                        model,
                        new[: len(rows), step : step + 1],
                        past_key_values=found,
                        attention_mask=longer[:, :width],
                        position_ids=longer[:, :width].sum(1, keepdim=True) - 1,
                    )
                )
            for index, row in enumerate(rows):
                text = torch.cat([tokens[row][mask[row].bool()], new[index]])[None]
                cuts = range(text.shape[1] - 3, text.shape[1])
                expected.append(through(model, DynamicCache(config=model.config), text, cuts)[:, -3:])
            close(torch.cat(together, dim=1), torch.cat(expected), "a cache with its rows moved", **CLOSE)

        after(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1])
        after(lambda cache: cache.batch_select_indices(torch.tensor([1])), [1])
        after(lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0])


class ChunksLayer(DynamicLayer):
    """A layer of somebody else's cache: it keeps what it gets in chunks and joins them when read."""

    def update(self, key_states, value_states, *args, **kwargs):
        self.chunks = [*getattr(self, "chunks", []), (key_states, value_states)]
        self.keys, self.values = (torch.cat(parts, dim=2) for parts in zip(*self.chunks, strict=True))
        self.is_initialized = True
        return self.keys, self.values


class ForgetfulLayer(ChunksLayer):
    """One that keeps the last 16 tokens only and says so nowhere."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states)
        return keys[:, :, -16:], values[:, :, -16:]


@pytest.mark.cell("Caches", "somebody else's Cache class that keeps every token")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_a_foreign_cache_is_a_dynamic_cache(model, case, decode):
    tokens = texts(2, 54)
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        expected = through(model, DynamicCache(config=model.config), tokens, range(48, 54))
        found = through(model, Cache(layer_class_to_replicate=ChunksLayer), tokens, range(48, 54))
        assert torch.equal(found, expected)


# Caches that drop tokens


@pytest.mark.cell("Caches", "a model with sliding layers")
def test_a_model_with_sliding_layers_is_refused(refused):
    model = make_model("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1)
    with refused(ValueError, match="it has sliding_attention layers; only models with full attention"):
        sa_patch.apply(model, "sa", 12)


@pytest.mark.cell("Caches", "a cache with sliding layers, or one that drops keys")
@pytest.mark.parametrize("decode", ["full", "sparse"])
def test_a_cache_that_drops_tokens_is_refused_where_it_does(model, decode, refused):
    """Not only where the first layer's mask shows it: any layer may be the one."""
    sliding, kept = (lambda: DynamicSlidingWindowLayer(sliding_window=16)), DynamicLayer
    caches = [
        Cache(layers=[sliding(), sliding(), sliding()]),
        Cache(layers=[kept(), sliding(), kept()]),
        Cache(layers=[kept(), kept(), ForgetfulLayer()]),
        DynamicCache(config=make_model(use_sliding_window=True, sliding_window=16, max_window_layers=1).config),
        StaticCache(
            config=make_model(use_sliding_window=True, sliding_window=16, max_window_layers=1).config, max_cache_len=64
        ),
    ]
    tokens = texts(1, 48)
    with sa_patch.apply(model, "swa", 12, decode=decode):
        for cache in caches:
            with refused(NotImplementedError, match="drops tokens"):
                through(model, cache, tokens, [40, 41])
            with refused(NotImplementedError, match="drops tokens"):
                write(model, tokens, past_key_values=cache)


@pytest.mark.cell("Caches", "a tuple of keys and values, the cache of old")
def test_a_tuple_as_cache_is_refused_by_transformers(model, refused):
    cache = tuple((torch.zeros(1, 2, 4, 16),) * 2 for _ in range(3))
    with sa_patch.apply(model, "sa", 12):
        with refused(ValueError, match="tuple (of|for) `.*` is not supported anymore"):
            write(model, texts(1, 8), past_key_values=cache)
        with pytest.raises(AttributeError, match="tuple"):
            logits(model, texts(1, 8), past_key_values=cache)


@pytest.mark.cell("Caches", "StaticCache: an attention_mask that covers only the new tokens")
def test_a_mask_without_the_cached_columns_is_refused_in_a_static_cache(model, refused):
    cache, tokens = StaticCache(config=model.config, max_cache_len=60), texts(1, 45)
    with sa_patch.apply(model, "swa", 12):
        logits(model, tokens[:, :40], past_key_values=cache, attention_mask=torch.ones(1, 40))
        with refused(ValueError, match="no real token among the 5 new columns up to 45: pass one column per token"):
            logits(model, tokens[:, 40:], past_key_values=cache, attention_mask=torch.ones(1, 5))


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_prompt_may_fill_a_static_cache_to_the_last_column(kind, padded):
    """generate then asks for the mask twice, and hands the first one back."""
    model = make_model(kind)
    tokens, mask = left_padded(12, 20) if padded else (texts(2, 20), torch.ones(2, 20, dtype=torch.long))
    options = {"attention_mask": mask, "max_new_tokens": 1, "do_sample": False}
    with sa_patch.apply(model, "sa", 8):
        expected = model.generate(tokens, **options)
        assert torch.equal(model.generate(tokens, cache_implementation="static", **options), expected)
