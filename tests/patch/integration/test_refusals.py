"""What can't be done is refused with a reason, and the model is as it was."""

import copy
import json

import pytest
import torch
from models import make_model
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, T5Config, T5ForConditionalGeneration

import sa_patch


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "sw"}, ValueError, r"unknown mode 'sw': choose from full, swa, sa.*did you mean 'swa'"),
        ({"widnow": 5}, ValueError, r"unknown option of mode 'sa': 'widnow'.*did you mean 'window'"),
        ({"top_k": 2}, ValueError, r"'top_k' is for mode moba, not 'sa'"),
        ({"mode": "moba", "circular": True}, ValueError, r"'circular' is for mode sa and sa\+swa, not 'moba'"),
        ({"window": 0}, ValueError, r"window must be an integer >= 1 or a fraction 0 < x < 1, got 0"),
        ({"window": -3}, ValueError, r"window must be"),
        ({"window": 1.5}, ValueError, r"window=1.5 is no fraction"),
        ({"window": 0.0}, ValueError, r"window=0.0 is no fraction"),
        ({"window": float("nan")}, ValueError, r"no fraction"),
        ({"window": True}, ValueError, r"window must be an integer"),
        ({"window": "64"}, ValueError, r"window must be an integer"),
        ({"window": None}, ValueError, r"window must be an integer"),
        ({"sinks": -1}, ValueError, r"sinks must be an integer >= 0"),
        ({"window": 8, "sinks": 4, "local": 5}, ValueError, r"sinks=4 and local=5 alone exceed.*window=8"),
        ({"window": 8, "sinks": 8}, ValueError, r"alone exceed"),
        ({"seed": 0.5}, ValueError, r"seed must be an integer"),
        ({"budget": "pair"}, ValueError, r"unknown budget 'pair'.*did you mean 'pairs'"),
        ({"decode": "none"}, ValueError, r"unknown decode"),
        ({"horizon": "dyadyc"}, ValueError, r"unknown horizon 'dyadyc'.*did you mean 'dyadic'"),
        ({"horizon": "dyadic", "window": 0.1}, ValueError, r"window=0.1 is a fraction .* give a number of tokens"),
        ({"horizon": "dyadic", "circular": True}, ValueError, r"circular=True is not defined for horizon='dyadic'"),
        ({"form": "buckets"}, ValueError, r"unknown form 'buckets'.*did you mean 'bucket'"),
        ({"form": "bucket", "circular": True}, ValueError, r"circular=True has no meaning"),
        ({"circular": 1}, ValueError, r"circular must be True or False"),
        ({"dense_layers": (3,)}, ValueError, r"dense_layers has 3, but the model has layers 0..2"),
        ({"dense_layers": ("0",)}, ValueError, r"dense_layers must be an integer"),
        ({"dense_layers": 1}, ValueError, r"dense_layers must be a list of layer numbers, got 1"),
        ({"dense_tail": -1}, ValueError, r"dense_tail must be an integer >= 0"),
        ({"dense_below": "cross"}, ValueError, r"dense_below must be an integer >= 0 or 'crossover'"),
        ({"mode": "moba", "top_k": 0}, ValueError, r"top_k must be an integer >= 1"),
        ({"mode": "moba", "window": 64, "block_size": 30, "top_k": 2}, ValueError, r"block_size=30.*use block_size=43"),
        ({"mode": "moba", "window": 65, "budget": "nominal"}, ValueError, r"block_size \* top_k = window"),
        ({"mode": "moba", "window": 0.5, "block_size": 8}, ValueError, r"block_size=8 can't follow window=0.5"),
        ({"mode": "sa+swa", "local": 4}, ValueError, r"local=4 is already part of sa\+swa"),
        ({"kernel": "flush"}, ValueError, r"unknown kernel 'flush'"),
        ({"variant": "sa"}, ValueError, r"variant must be a sa_patch Variant, got str"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_and_leave_the_model_alone(qwen3, tokens, arguments, error, message):
    sa_patch.apply(qwen3, "swa", 12)
    before = logits(qwen3, tokens)
    with pytest.raises(error, match=message):
        sa_patch.apply(qwen3, **arguments)
    assert torch.equal(logits(qwen3, tokens), before), "the earlier patch must still run"
    sa_patch.restore(qwen3)


def test_options_beside_a_variant_are_refused(qwen3):
    with pytest.raises(ValueError, match="already holds its options; seed would be ignored"):
        sa_patch.apply(qwen3, variant=sa_patch.variant("sa"), seed=3)


def test_extras_that_fill_the_window_of_a_short_prompt_are_refused(qwen3, tokens):
    with (
        sa_patch.apply(qwen3, "sa", 0.1, sinks=6),
        pytest.raises(ValueError, match=r"at 48 tokens, sinks=6 .* leave nothing of window=0.1 \(5\)"),
    ):
        logits(qwen3, tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "holds no transformers model"),
        (lambda: "Qwen/Qwen3-8B", "needs a loaded model, got str"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "encoder-decoder",
        ),
        (lambda: make_model("mistral", sliding_window=16), "sliding"),
        (lambda: make_model("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1), "sliding"),
        (lambda: make_model("qwen3", is_causal=False), "not causal"),
    ],
)
def test_models_that_can_not_be_patched_are_refused_with_the_reason(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        sa_patch.apply(model, "sa", 12)


@pytest.mark.cell("Batches", "a 4D mask from the caller")
def test_a_4d_mask_is_refused(model, tokens, refused):
    for mask in (torch.ones(1, 1, 48, 48, dtype=torch.bool).tril(), torch.zeros(1, 1, 48, 48), torch.ones(1, 1, 1, 48)):
        with (
            sa_patch.apply(model, "sa", 12),
            refused(NotImplementedError, match="ready-made attention mask .* pass a 2D attention_mask"),
        ):
            logits(model, tokens, attention_mask=mask)


@pytest.mark.cell("Caches", "a piece of a prompt where the whole is needed (horizon='length', dense_tail, ...)")
@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("sa", {}, "horizon='length' permutes"),
        ("sa", {"form": "bucket"}, "horizon='length' permutes"),
        ("swa", {"dense_tail": 2}, "dense_tail=2 counts from the prompt's end"),
        ("moba", {"dense_below": 9}, "dense_below=9 asks for the whole prompt's length"),
        ("swa", {"sinks": 0.1, "window": 0.5}, "window=0.5, sinks=0.1 is a fraction of the whole prompt"),
    ],
    ids=str,
)
def test_a_piece_of_a_prompt_is_refused_where_the_whole_is_needed(model, tokens, mode, options, message, refused):
    variant = sa_patch.variant(mode, **{"window": 12, **options})
    with sa_patch.apply(model, variant=variant):
        cache = DynamicCache(config=model.config)
        logits(model, tokens[:, :40], past_key_values=cache, use_cache=True)
        with refused(NotImplementedError, match=f"8 new tokens after 40 cached ones.*{message}"):
            logits(model, tokens[:, 40:], past_key_values=cache, use_cache=True)


@pytest.mark.cell("Input", "output_attentions")
def test_output_attentions_is_refused(model, tokens, refused):
    with sa_patch.apply(model, "sa", 12), refused(NotImplementedError, match="output_attentions"):
        logits(model, tokens, output_attentions=True)


@pytest.mark.cell("Input", "attention dropout while training")
def test_dropout_is_refused(model, tokens, refused):
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with sa_patch.apply(model, "sa", 12), refused(NotImplementedError, match=r"dropout 0\.1"):
        model(tokens)


@pytest.mark.cell("Batches", "packed documents beside a cache or a mask")
def test_packed_positions_are_refused_with_a_cache_or_a_mask(model, tokens, refused):
    positions = torch.cat([torch.arange(20), torch.arange(28)])[None]
    mask = torch.ones_like(tokens)
    padded = mask.clone()
    padded[0, :5] = 0
    with sa_patch.apply(model, "sa", 12):
        for extras in ({"use_cache": True}, {"attention_mask": mask}, {"attention_mask": padded}):
            with refused(NotImplementedError, match="position_ids restart .* use_cache=False"):
                logits(model, tokens, position_ids=positions, **extras)
        logits(model, tokens, position_ids=torch.arange(48)[None] + 3)  # shifted is no restart


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 4}, {"assistant_model": True}], ids=str)
def test_assisted_generation_is_refused_before_it_starts(qwen3, options):
    if "assistant_model" in options:
        options = {"assistant_model": make_model()}
    prompt = torch.arange(1, 16).repeat(3)[None]
    expected = qwen3.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=0)
    with sa_patch.apply(qwen3, "sa", 12):
        with pytest.raises(NotImplementedError, match=r"assisted_generation .* needs decode='sparse', got 'full'"):
            qwen3.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=0, **options)
        qwen3.generate(prompt, max_new_tokens=2, do_sample=False)
    assert torch.equal(qwen3.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=0, **options), expected)


@pytest.mark.parametrize("chunk", [8, 47])
def test_chunked_prefill_is_refused_even_when_the_last_chunk_is_one_token(qwen3, tokens, chunk):
    with sa_patch.apply(qwen3, "sa", 12), pytest.raises(NotImplementedError, match=f"prefill_chunk_size={chunk}"):
        qwen3.generate(tokens, max_new_tokens=3, do_sample=False, prefill_chunk_size=chunk)


def test_a_model_built_from_a_patched_config_names_the_ways_out(qwen3, tokens):
    def build(config, **kind):
        model = AutoModelForCausalLM.from_config(config, **kind).eval()
        model.load_state_dict(qwen3.state_dict())
        return model

    plain = logits(qwen3, tokens)
    with sa_patch.apply(qwen3, "sa", 12):
        sparse = logits(qwen3, tokens)
        sharing = build(qwen3.config)
        with pytest.raises(RuntimeError, match=r"carries no patch.*from_config\(copy.deepcopy\(config\), attn_impl"):
            logits(sharing, tokens)
        with pytest.raises(
            ValueError, match=r"carries no patch.*restore the patch of the model whose config it shares"
        ):
            sa_patch.apply(sharing, "sa", 12)
        alone = build(copy.deepcopy(qwen3.config))
        alone.set_attn_implementation("sdpa")
        models = [alone, build(copy.deepcopy(qwen3.config), attn_implementation="sdpa")]
        assert torch.equal(logits(qwen3, tokens), sparse), "the patched model must still be patched"
    for model in (*models, sharing):
        assert torch.equal(logits(model, tokens), plain)
        with sa_patch.apply(model, "sa", 12):
            assert torch.equal(logits(model, tokens), sparse)


def test_mode_and_window_beside_a_variant_are_refused(qwen3):
    with pytest.raises(ValueError, match="mode, window would be ignored"):
        sa_patch.apply(qwen3, "swa", 64, variant=sa_patch.variant("sa", 8))


def test_full_attention_continues_a_cache(qwen3, tokens):
    expected = logits(qwen3, tokens)
    with sa_patch.apply(qwen3, "full"):
        cache = DynamicCache(config=qwen3.config)
        pieces = [logits(qwen3, piece, past_key_values=cache, use_cache=True) for piece in tokens.split(20, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_moba_has_no_mask_without_content(qwen3):
    with pytest.raises(ValueError, match="depend on the content"):
        sa_patch.apply(qwen3, "moba", 12).mask(100)
    assert sa_patch.apply(qwen3, "moba", 12, top_k=1).mask(100).sum() == 24 * 25 // 2 * 4 + 10
    assert sa_patch.apply(qwen3, "moba", 100).mask(100).all() == torch.tensor(False)


@pytest.mark.parametrize("length", [0, -1, 2.0, True])
def test_lengths_must_be_tokens(qwen3, length):
    patch = sa_patch.apply(qwen3, "sa", 12)
    for ask in (patch.mask, patch.budget):
        with pytest.raises(ValueError, match="length must be a number of tokens"):
            ask(length)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no patch config"),
        ("[]", "it has no version"),
        ('{"mode": "sa"}', "it has no version"),
        ('{"version": true, "mode": "sa"}', "it has no version"),
        ('{"version": 99, "mode": "sa"}', "version 99, this release of sa_patch reads up to 2: upgrade"),
        ('{"version": 1, "mode": ["sa"]}', "unknown mode"),
        ('{"version": 1, "mode": "sa", "variant": "sa"}', "holds 'variant', which is no option"),
        ('{"version": 1, "mode": "sa", "model": "sa"}', "holds 'model', which is no option"),
        ('{"version": 1, "mode": "sa", "window": NaN}', "window=nan is no fraction"),
        ("[" * 100_000, "no patch config"),
        ("\x00\xff", "no patch config"),
        ('{"version": 1, "mode": "se"}', "unknown mode 'se'"),
        ('{"version": 1, "mode": "sa", "window": 8, "color": 1}', "unknown option of mode 'sa': 'color'"),
    ],
)
def test_configs_that_are_not_ours_are_refused(qwen3, tmp_path, text, message):
    (tmp_path / "patch.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        sa_patch.load(qwen3, tmp_path / "patch.json")
    assert not sa_patch.is_patched(qwen3)


@pytest.mark.parametrize("decode", ["full", "sparse"])
def test_a_saved_patch_loads_to_the_same_patch(qwen3, tokens, tmp_path, decode):
    patch = sa_patch.apply(qwen3, "sa", 12, seed=4, form="bucket", dense_layers=[0], kernel="torch", decode=decode)
    expected = logits(qwen3, tokens)
    patch.save(tmp_path / "patch.json")
    patch.restore()
    loaded = sa_patch.load(qwen3, tmp_path / "patch.json")
    assert loaded.config == patch.config == json.loads(json.dumps(patch.config))
    assert torch.equal(logits(qwen3, tokens), expected)


def test_a_patch_lies_beside_its_checkpoint(qwen3, tokens, tmp_path):
    patch = sa_patch.apply(qwen3, "sa", 12, horizon="dyadic")
    expected = logits(qwen3, tokens)
    qwen3.save_pretrained(tmp_path)
    patch.save(tmp_path)
    assert (tmp_path / "sa_patch.json").is_file()
    again = type(qwen3).from_pretrained(tmp_path).eval()
    sa_patch.load(again, tmp_path)
    assert torch.equal(logits(again, tokens), expected)
    with pytest.raises(ValueError, match=r"there is no patch config .*elsewhere.*: write one with Patch.save"):
        sa_patch.load(again, tmp_path / "elsewhere")


def test_tokens_beside_fractions_are_weighed_once_the_length_is_known():
    variant = sa_patch.variant("swa", 0.5, sinks=4, local=0.1)
    sizes = variant.sizes(100)
    assert (sizes.window, sizes.sinks, sizes.local) == (50, 4, 10)
    with pytest.raises(ValueError, match=r"at 6 tokens, sinks=4 .* leave nothing"):
        variant.sizes(6)


def test_a_crossover_is_refused_in_a_precision_it_was_not_measured_in():
    model = make_model("qwen3").bfloat16()
    with pytest.raises(
        NotImplementedError, match=r"not been measured .*'cpu' device in bfloat16: give a number of tokens"
    ):
        sa_patch.apply(model, mode="sa", window=8, dense_below="crossover")
    assert model.config._attn_implementation != "sa_patch"
