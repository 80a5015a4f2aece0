"""Every shape of head, text and window gives what the reference kernel gives, in a whole model."""

import pytest
import torch
from answers import logits
from models import make_model
from patch_cases import make_variant
from support import close
from transformers import DynamicCache

import sa_patch

CASES = ("swa", "sa", "sa-bucket", "sa-dyadic", "sa-dyadic-bucket", "sa+swa", "moba", "random-keys")
KERNELS = ("auto", "torch")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WINDOW = 12


def text(length, rows=1):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(length))


def compare(model, variant, tokens, law):
    with sa_patch.apply(model, variant=variant, kernel="reference"):
        expected = logits(model, tokens)
    for kernel in KERNELS:
        with sa_patch.apply(model, variant=variant, kernel=kernel):
            close(logits(model, tokens), expected, law, **CLOSE)


def shape(head_dim, heads, kv_heads, bias):
    ratio = heads // kv_heads
    name = f"head_dim {head_dim}, {ratio} query heads per key head, attention_bias={bias}"
    changes = {"head_dim": head_dim, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return pytest.param({**changes, "attention_bias": bias}, marks=pytest.mark.cell("Shapes", name), id=name)


@pytest.mark.parametrize(
    "changes", [shape(16, 4, 4, True), shape(48, 4, 2, False), shape(80, 5, 1, False), shape(256, 8, 1, True)]
)
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("case", CASES)
def test_heads_of_every_shape_give_what_the_reference_gives(kind, changes, case):
    model, tokens = make_model(kind, num_hidden_layers=2, **changes), text(70)
    for layer in model.model.layers:
        for bias in (module.bias for module in layer.self_attn.children() if getattr(module, "bias", None) is not None):
            torch.nn.init.normal_(bias, generator=torch.Generator().manual_seed(1))
    assert (model.model.layers[0].self_attn.q_proj.bias is not None) == changes["attention_bias"]
    bare = logits(model, tokens)
    with sa_patch.apply(model, variant=make_variant(case, 200)):
        close(logits(model, tokens), bare, "heads of every shape", **CLOSE)
    compare(model, make_variant(case, WINDOW), tokens, "heads of every shape")
    for decode in ("full", "sparse"):
        variant, steps = make_variant(case, WINDOW, decode=decode), []
        for kernel in ("reference", *KERNELS):
            with sa_patch.apply(model, variant=variant, kernel=kernel):
                cache = DynamicCache(config=model.config)
                logits(model, tokens[:, :-1], past_key_values=cache)
                steps.append(logits(model, tokens[:, -1:], past_key_values=cache))
        for step in steps[1:]:
            close(step, steps[0], "heads of every shape", **CLOSE)


@pytest.mark.cell("Shapes", "texts of 1, 2, w - 1, w, w + 1, 63 and 1000 tokens")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 63, 1000])
def test_texts_of_every_length_give_what_the_reference_gives(model, length, case):
    compare(model, make_variant(case, WINDOW), text(length), "texts of every length")


@pytest.mark.cell("Shapes", "window 1")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 48, 300])
def test_a_window_of_one_key_gives_what_the_reference_gives(model, length, case):
    variant = make_variant(case, 1)
    compare(model, variant, text(length), "window 1")
    with sa_patch.apply(model, variant=variant) as patch:
        assert patch.budget(length).keys_per_query <= (1 if case != "moba" else 2)


@pytest.mark.cell("Shapes", "a window larger than the model's context")
@pytest.mark.parametrize("case", [*CASES, "full"])
@pytest.mark.parametrize("kernel", ["auto", "torch", "sdpa", "reference"])
def test_a_window_over_the_context_is_the_bare_model(model, case, kernel):
    tokens = text(100, rows=2)
    expected, answer = logits(model, tokens), model.generate(tokens, max_new_tokens=3, do_sample=False)
    with sa_patch.apply(model, variant=make_variant(case, 2 * model.config.max_position_embeddings), kernel=kernel):
        close(logits(model, tokens), expected, "a window over the context", rtol=1e-5, atol=1e-5)
        assert torch.equal(model.generate(tokens, max_new_tokens=3, do_sample=False), answer)
