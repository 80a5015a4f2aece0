"""Hostile arguments, configs and activations: one clear error or the right numbers, and the model intact."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_model
from patch_cases import random_heads

import sa_patch

MODEL = make_model(num_hidden_layers=2)
TOKENS = torch.randint(1, 97, (1, 40), generator=torch.Generator().manual_seed(1))
HUGE = 10**18

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-HUGE, HUGE),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
sizes = st.one_of(st.integers(0, 60), st.floats(0, 1), st.just(HUGE))
options = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.one_of(st.sampled_from([*sa_patch.VARIANTS]), anything),
        "window": st.one_of(sizes, anything),
        "kernel": st.one_of(st.sampled_from(["auto", "torch", "sdpa", "reference"]), anything),
        "seed": st.one_of(st.integers(-HUGE, HUGE), anything),
        "budget": st.one_of(st.sampled_from(["pairs", "nominal"]), anything),
        "decode": st.one_of(st.sampled_from(["full", "sparse"]), anything),
        "sinks": st.one_of(sizes, anything),
        "local": st.one_of(sizes, anything),
        "dense_layers": st.one_of(st.lists(st.integers(-2, 1), max_size=2), anything),
        "dense_tail": st.one_of(st.integers(0, 60), st.just(HUGE), anything),
        "dense_below": st.one_of(st.integers(0, 60), st.sampled_from(["crossover", HUGE]), anything),
        "form": st.one_of(st.sampled_from(["sliding", "bucket"]), anything),
        "horizon": st.one_of(st.sampled_from(["length", "dyadic"]), anything),
        "circular": st.one_of(st.booleans(), anything),
        "top_k": st.one_of(st.integers(1, 5), anything),
        "block_size": st.one_of(st.integers(1, 60), anything),
        "variant": anything,
        "no_such_option": anything,
    },
)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


BARE = logits(MODEL, TOKENS)


@pytest.mark.cell("Input", "any arguments to apply: one clear error or the right numbers (fuzzed)")
@given(options)
@settings(max_examples=1500, deadline=None)
def test_any_arguments_give_one_clear_error_or_the_right_numbers(asked):
    try:
        patch = sa_patch.apply(MODEL, **asked)
    except (ValueError, NotImplementedError) as error:
        assert str(error) and "\n" not in str(error)
        assert not sa_patch.is_patched(MODEL)
        assert "_sa_patch" not in MODEL.model.layers[0].self_attn.__dict__
        return
    try:
        assert json.loads(json.dumps(patch.config)) == patch.config
        patch.describe()
        found = logits(MODEL, TOKENS)
        with sa_patch.apply(MODEL, variant=patch.variant, kernel="reference"):
            torch.testing.assert_close(found, logits(MODEL, TOKENS), rtol=1e-4, atol=1e-4)
    except ValueError as error:  # sinks and local may fill a window that is a fraction of the prompt
        assert "leave nothing of window" in str(error)
    finally:
        patch.restore()
    assert torch.equal(logits(MODEL, TOKENS), BARE)


@pytest.mark.cell("Input", "any sa_patch.json: one clear error or the patch it names (fuzzed)")
@given(st.one_of(anything, options), st.one_of(st.integers(-1, 3), anything), st.integers(0, 200))
@settings(max_examples=500, deadline=None)
def test_any_config_file_gives_one_clear_error_or_a_patch(tmp_path_factory, content, version, cut):
    file = tmp_path_factory.getbasetemp() / "fuzzed.json"
    if isinstance(content, dict):
        content = {"version": version, **content}
    text = json.dumps(content)
    file.write_text(text[: len(text) - cut] if cut < 100 else text)
    try:
        sa_patch.load(MODEL, file).restore()
    except (ValueError, NotImplementedError) as error:
        assert str(error)
    assert not sa_patch.is_patched(MODEL)


@pytest.mark.cell("Input", "windows, sinks, tails and seeds beyond any size")
@pytest.mark.parametrize(
    "asked",
    [
        {"window": HUGE},
        {"mode": "swa", "window": 12, "local": HUGE, "budget": "nominal"},
        {"mode": "moba", "window": HUGE},
        {"form": "bucket", "window": HUGE},
        {"horizon": "dyadic", "window": HUGE},
        {"window": 12, "sinks": HUGE, "budget": "nominal"},
        {"window": 12, "dense_tail": HUGE},
        {"window": 12, "dense_below": HUGE},
    ],
    ids=str,
)
def test_sizes_beyond_the_prompt_are_full_attention(model, tokens, asked):
    expected = logits(model, tokens)
    with sa_patch.apply(model, **asked) as patch:
        torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)
        assert patch.calls[0]["dense_short"] == 1 and patch.budget(48).density == 1


def test_no_queries_are_refused():
    query, key, value = random_heads(6)
    with pytest.raises(ValueError, match="0 < Q <= N"):
        sa_patch.attention(query[:, :, :0], key, value, sa_patch.variant("sa"))
