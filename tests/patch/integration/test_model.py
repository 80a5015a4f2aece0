"""Laws about patched models: undo, isolation, batches, generation."""

import copy
import pickle

import pytest
import torch
from models import make_model
from patch_cases import CASES, make_variant, random_heads

import sa_patch
from sa_patch.forward import KINDS
from sa_patch.kept import KEPT


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


# Undo


@pytest.mark.parametrize("case", CASES)
def test_restore_is_bit_identical(model, tokens, case):
    before = logits(model, tokens)
    config = model.config
    patch = sa_patch.apply(model, variant=make_variant(case))
    assert sa_patch.is_patched(model)
    if case != "full":
        assert not torch.equal(logits(model, tokens), before)
    patch.restore()
    assert not sa_patch.is_patched(model)
    assert torch.equal(logits(model, tokens), before)
    assert model.config is config
    patch.restore()  # idempotent
    sa_patch.restore(model)
    assert torch.equal(logits(model, tokens), before)


def test_restore_leaves_no_trace(qwen3):
    def attributes():
        return {name: sorted(module.__dict__) for name, module in qwen3.named_modules()}

    before, config = attributes(), copy.deepcopy(qwen3.config.__dict__)
    with sa_patch.apply(qwen3, "sa", 12, horizon="dyadic", decode="sparse"):
        qwen3.generate(torch.ones(1, 40, dtype=torch.long), max_new_tokens=3)
        assert len(KEPT) == 6  # two horizons, three layers
    assert len(KEPT) == KEPT.bytes == 0
    assert attributes() == before
    assert qwen3.config.__dict__ == config


def test_an_exception_inside_a_with_block_restores(qwen3, tokens):
    before = logits(qwen3, tokens)
    with pytest.raises(KeyError), sa_patch.apply(qwen3, "sa", 12):
        raise KeyError
    assert torch.equal(logits(qwen3, tokens), before)


def test_leaving_a_with_block_puts_back_what_was_there(qwen3, tokens):
    outer = sa_patch.apply(qwen3, "swa", 12)
    expected = logits(qwen3, tokens)
    with sa_patch.apply(qwen3, "sa", 12) as inner:
        assert inner.active and not outer.active
        assert not torch.equal(logits(qwen3, tokens), expected)
    assert torch.equal(logits(qwen3, tokens), expected)
    outer.restore()
    with outer:
        assert torch.equal(logits(qwen3, tokens), expected)
    assert not sa_patch.is_patched(qwen3)


def test_applying_again_replaces_the_patch(qwen3, tokens):
    before = logits(qwen3, tokens)
    sa_patch.apply(qwen3, "swa", 12)
    expected = logits(make_model(), tokens)
    last = sa_patch.apply(qwen3, "full")
    torch.testing.assert_close(logits(qwen3, tokens), expected)
    last.restore()
    assert torch.equal(logits(qwen3, tokens), before)


def test_entering_an_active_patch_again_changes_nothing(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "sa", 12)
    expected = logits(qwen3, tokens)
    with patch:
        with patch:
            pass
        assert patch.active and torch.equal(logits(qwen3, tokens), expected)
    assert not sa_patch.is_patched(qwen3)


def test_a_nested_patch_keeps_the_outer_counters(qwen3, tokens):
    outer = sa_patch.apply(qwen3, "sa", 12)
    logits(qwen3, tokens)
    with sa_patch.apply(qwen3, "swa", 12):
        logits(qwen3, tokens)
    logits(qwen3, tokens)
    assert outer.calls[0]["sparse_prefill"] == 2


def test_other_edits_of_the_config_survive_the_patch(qwen3, tmp_path):
    config = qwen3.config
    config.dropped = 1
    with sa_patch.apply(qwen3, "sa", 12):
        qwen3.resize_token_embeddings(120)
        qwen3.config.use_cache = False
        del qwen3.config.dropped
    assert qwen3.config is config and config.vocab_size == 120 and config.use_cache is False
    assert not hasattr(config, "dropped")
    qwen3.save_pretrained(tmp_path)
    assert type(qwen3).from_pretrained(tmp_path).config.vocab_size == 120


def test_a_patch_is_found_through_every_wrapper(qwen3, tokens):
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    before = logits(qwen3, tokens)
    sa_patch.apply(qwen3.model, "sa", 12)  # the backbone alone
    sparse = logits(qwen3, tokens)
    wrapper = Wrapper(qwen3)
    assert sa_patch.is_patched(wrapper) and sa_patch.is_patched(qwen3)
    sa_patch.apply(wrapper, "swa", 12)
    assert not torch.equal(logits(wrapper, tokens), sparse)
    sa_patch.restore(qwen3)
    assert torch.equal(logits(wrapper, tokens), before)
    assert wrapper.config._attn_implementation == "sdpa"


# Isolation


def test_two_models_hold_different_patches(tokens):
    first, second = make_model(), make_model()
    plain = logits(first, tokens)
    sa_patch.apply(first, "swa", 12)
    sa_patch.apply(second, "sa", 12)
    assert not torch.equal(logits(first, tokens), logits(second, tokens))
    sa_patch.restore(first)
    assert torch.equal(logits(first, tokens), plain)
    assert sa_patch.is_patched(second)


def test_a_model_that_shares_the_config_stays_untouched(tokens):
    first = make_model()
    second = type(first)(first.config).eval()
    before = logits(second, tokens)
    assert second.config is first.config
    with sa_patch.apply(first, "sa", 12):
        assert torch.equal(logits(second, tokens), before)
        assert second.config._attn_implementation == "sdpa"
    assert first.config is second.config


def test_deepcopy_and_pickle_keep_the_patch_and_can_be_restored(qwen3, tokens):
    before = logits(qwen3, tokens)
    sa_patch.apply(qwen3, "sa", 12)
    expected = logits(qwen3, tokens)
    for twin in (copy.deepcopy(qwen3), pickle.loads(pickle.dumps(qwen3))):
        assert torch.equal(logits(twin, tokens), expected)
        sa_patch.restore(twin)
        assert torch.equal(logits(twin, tokens), before)
    assert torch.equal(logits(qwen3, tokens), expected), "restoring a copy must not touch the original"


def test_state_dict_and_save_pretrained_are_those_of_the_bare_model(qwen3, tokens, tmp_path):
    names, before = list(qwen3.state_dict()), logits(qwen3, tokens)
    qwen3.save_pretrained(tmp_path / "bare")
    sa_patch.apply(qwen3, "sa", 12)
    assert list(qwen3.state_dict()) == names
    qwen3.save_pretrained(tmp_path / "patched")
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "bare" / file).read_bytes() == (tmp_path / "patched" / file).read_bytes()
    loaded = type(qwen3).from_pretrained(tmp_path / "patched").eval()
    assert torch.equal(logits(loaded, tokens), before)


# What runs


@pytest.mark.parametrize("case", [case for case in CASES if case != "full"])
def test_a_window_over_the_prompt_is_the_bare_model(model, tokens, case):
    before = logits(model, tokens)
    window = 96 if "dyadic" in case else 48  # a dyadic window is full from 1.5 times the horizon on
    with sa_patch.apply(model, variant=make_variant(case, window)):
        torch.testing.assert_close(logits(model, tokens), before, rtol=1e-5, atol=1e-5)


def test_layers_have_independent_permutations(qwen3):
    patch = sa_patch.apply(qwen3, "sa", 8)
    masks = [patch.mask(40, layer) for layer in range(3)]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    other = sa_patch.apply(qwen3, "sa", 8, seed=1).mask(40, 0)
    assert not torch.equal(other, masks[0])


def test_dense_layers_are_full(qwen3, tokens):
    before = logits(qwen3, tokens)
    with sa_patch.apply(qwen3, "sa", 12, dense_layers=(0, -1)) as patch:
        logits(qwen3, tokens)
        kinds = [max(calls, key=calls.get) for calls in patch.calls]
        assert kinds == ["dense_layer", "sparse_prefill", "dense_layer"]
        assert [layer.kind for layer in patch.budget(48).per_layer] == ["dense", "sparse", "dense"]
        assert torch.equal(patch.mask(20, 2), torch.ones(20, 20, dtype=torch.bool).tril())
    with sa_patch.apply(qwen3, "sa", 12, dense_layers=(0, 1, 2)):
        assert torch.equal(logits(qwen3, tokens), before)


def test_dense_below_keeps_short_prompts_full(qwen3, tokens):
    before = logits(qwen3, tokens)
    with sa_patch.apply(qwen3, "sa", 12, dense_below=48) as patch:
        assert torch.equal(logits(qwen3, tokens), before)
        assert patch.budget(48).density == 1.0 and patch.budget(49).density < 1.0
    with sa_patch.apply(qwen3, "sa", 12, dense_below=47):
        assert not torch.equal(logits(qwen3, tokens), before)
    with sa_patch.apply(qwen3, "sa", 12, dense_below="crossover") as patch:
        assert torch.equal(logits(qwen3, tokens), before)
        assert patch.budget(48).density == 1.0 and patch.budget(100_000).density < 0.01


def test_calls_prove_that_the_patch_ran(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "sa", 12)
    assert patch.calls == (dict.fromkeys(KINDS, 0),) * 3
    qwen3.generate(tokens, max_new_tokens=4, do_sample=False)
    assert patch.calls == ({**dict.fromkeys(KINDS, 0), "sparse_prefill": 1, "full_decode": 3},) * 3
    patch = sa_patch.apply(qwen3, "sa", 12, decode="sparse", dense_layers=(1,), dense_below=16)
    qwen3.generate(tokens[:, :15], max_new_tokens=4, do_sample=False)
    short = {**dict.fromkeys(KINDS, 0), "dense_short": 1, "full_decode": 1, "sparse_decode": 2}
    layer = {**dict.fromkeys(KINDS, 0), "dense_layer": 1, "full_decode": 3}
    assert patch.calls == (short, layer, short)


# Batches


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_rows_alone(model, case, side):
    source = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, 97, (length,), generator=source) for length in (1, 30, 48, 30)]
    batch, mask = torch.zeros(4, 48, dtype=torch.long), torch.zeros(4, 48, dtype=torch.long)
    places = [slice(48 - len(row), 48) if side == "left" else slice(0, len(row)) for row in rows]
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        batch[index, place], mask[index, place] = row, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with sa_patch.apply(model, variant=make_variant(case)):
        together = logits(model, batch, attention_mask=mask, position_ids=positions)
        for index, (row, place) in enumerate(zip(rows, places, strict=True)):
            torch.testing.assert_close(together[index, place], logits(model, row[None])[0], rtol=1e-4, atol=1e-4)


def greedy_by_hand(model, row, steps, variant):
    """The definition of generation under a patch: sparse prompt, then every new token reads the whole cache."""
    with torch.no_grad():
        with sa_patch.apply(model, variant=variant, kernel="reference"):
            state = model(row, use_cache=True)
        found = []
        for _ in range(steps):  # unpatched: the new token's attention is transformers' own over the whole cache
            found.append(int(state.logits[0, -1].argmax()))
            state = model(torch.tensor([[found[-1]]]), past_key_values=state.past_key_values, use_cache=True)
    return found


@pytest.mark.parametrize("case", ["swa", "sa", "sa-bucket", "sa+swa", "moba", "sa-sinks-local"])
def test_generate_is_sparse_prefill_and_full_decode(model, tokens, case):
    variant = make_variant(case)
    expected = greedy_by_hand(model, tokens, 8, variant)
    with sa_patch.apply(model, variant=variant):
        found = model.generate(tokens, max_new_tokens=8, do_sample=False)
    assert found[0, 48:].tolist() == expected


@pytest.mark.parametrize("case", ["swa", "sa", "moba"])
def test_generate_gives_a_left_padded_row_what_it_gives_it_alone(model, tokens, case):
    short = tokens[:, :31]
    batch = torch.cat([torch.cat([torch.zeros(1, 17, dtype=torch.long), short], dim=1), tokens])
    mask = (batch != 0).long()
    with sa_patch.apply(model, variant=make_variant(case)):
        together = model.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False)
        alone = [model.generate(row, max_new_tokens=6, do_sample=False) for row in (short, tokens)]
    assert together[0, 48:].tolist() == alone[0][0, 31:].tolist()
    assert together[1, 48:].tolist() == alone[1][0, 48:].tolist()


def test_gradients_flow_through_a_patched_model(qwen3, tokens):
    grads = []
    for kernel in ("reference", "torch"):
        with sa_patch.apply(qwen3, "sa", 12, kernel=kernel):
            qwen3.zero_grad()
            qwen3(tokens, labels=tokens).loss.backward()
            grads.append(qwen3.model.layers[0].self_attn.k_proj.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["sa", "sa-sinks-local", "sa+swa", "moba"])
@pytest.mark.parametrize("kernel", ["torch", "sdpa"])
def test_autocast_runs_every_kernel_in_its_dtype(qwen3, tokens, case, kernel):
    variant = make_variant(case)
    with torch.autocast("cpu", torch.bfloat16):
        with sa_patch.apply(qwen3, variant=variant, kernel="reference"):
            expected = logits(qwen3, tokens)
        with sa_patch.apply(qwen3, variant=variant, kernel=kernel):
            for use_cache in (False, True):
                found = logits(qwen3, tokens, use_cache=use_cache)
                assert found.dtype == torch.bfloat16
                # On average: rounding may flip a route of moba, and with it single tokens.
                assert (found - expected).abs().mean() < 0.02 * expected.abs().max()


def test_dense_layers_of_the_function_are_the_layers_named():
    query, key, value = random_heads(40)
    variant = sa_patch.variant("sa", 8, dense_layers=(5,))
    sparse = sa_patch.attention(query, key, value, sa_patch.variant("sa", 8), layer_idx=2)
    assert torch.equal(sa_patch.attention(query, key, value, variant, layer_idx=2), sparse)
    full = sa_patch.attention(query, key, value, sa_patch.variant("full"))
    assert torch.equal(sa_patch.attention(query, key, value, variant, layer_idx=5), full)
    last = sa_patch.variant("sa", 8, dense_layers=(-1,))
    assert torch.equal(sa_patch.attention(query, key, value, last, layer_idx=2, num_layers=3), full)
    with pytest.raises(ValueError, match="pass num_layers"):
        sa_patch.attention(query, key, value, last, layer_idx=2)
