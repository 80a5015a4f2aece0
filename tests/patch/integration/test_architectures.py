"""Every architecture runs the pattern it is patched with, also where transformers builds masks that no layer uses."""

import pytest
import torch
from models import make_model
from patch_cases import make_variant
from transformers import StaticCache

import sa_patch

ARCHITECTURES = ["qwen3", "qwen3_moe", "llama", "mistral", "qwen2", "qwen2_moe", "llama4_text"]


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(tokens, **kwargs).logits


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", ["swa", "sa", "moba", "sa-bucket"])
def test_architectures_give_what_the_reference_gives(kind, case, tokens):
    model = make_model(kind)
    variant = make_variant(case)
    with sa_patch.apply(model, variant=variant, kernel="reference"):
        expected = logits(model, tokens)
    with sa_patch.apply(model, variant=variant, kernel="torch") as patch:
        torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)
    assert patch.config["mode"] == variant.name


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", ["swa", "sa", "sa-bucket", "sa+swa"])
def test_architectures_give_what_the_plain_model_gives_under_the_mask(kind, case, tokens):
    model = make_model(kind, num_hidden_layers=1)  # transformers takes one mask for all layers
    with sa_patch.apply(model, variant=make_variant(case)) as patch:
        found = logits(model, tokens)
    expected = logits(model, tokens, attention_mask=patch.mask(48)[None, None])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.cell("Execution", "architectures that build a sliding or chunked mask which no layer uses (Qwen2-MoE)")
@pytest.mark.parametrize("kind", ["qwen2_moe", "llama4_text"])
def test_a_mask_that_no_layer_uses_is_no_reason_to_refuse(kind, tokens):
    model = make_model(kind, num_hidden_layers=2)
    padded = torch.ones(1, 48, dtype=torch.long)
    padded[0, :5] = 0
    with sa_patch.apply(model, "swa", 12, decode="sparse"):
        expected = logits(model, tokens)
        alone = logits(model, tokens[:, 5:])
        torch.testing.assert_close(logits(model, tokens, attention_mask=padded)[:, 5:], alone, rtol=1e-4, atol=1e-4)
        cache = StaticCache(config=model.config, max_cache_len=64)
        torch.testing.assert_close(logits(model, tokens, past_key_values=cache), expected, rtol=1e-4, atol=1e-4)
        packed = torch.cat([torch.arange(30), torch.arange(18)])[None]
        found = logits(model, tokens, position_ids=packed, use_cache=False)[:, 30:]
        torch.testing.assert_close(found, logits(model, tokens[:, 30:]), rtol=1e-4, atol=1e-4)
        texts = [
            model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=cached) for cached in (True, False)
        ]
        assert torch.equal(*texts)


def test_compiling_does_not_take_an_unused_sliding_mask_for_packed_documents(tokens):
    model = make_model("qwen2_moe", num_hidden_layers=1, mlp_only_layers=[0])  # experts break a full graph
    with sa_patch.apply(model, "sa", 12), torch.no_grad():
        run = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(run(tokens, use_cache=False).logits, logits(model, tokens, use_cache=False))


@pytest.mark.cell("Execution", "a sliding window that the config gets after the patch")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_sliding_mask_is_refused_where_a_layer_uses_it(tokens, compiled, refused):
    model = make_model("mistral", num_hidden_layers=1)
    run = torch.compile(model, backend="eager") if compiled else model
    with sa_patch.apply(model, "sa", 12):
        model.config.sliding_window = 16
        with refused(NotImplementedError, match="sliding window or chunks of 16 tokens, .* restore the patch"):
            logits(run, tokens, use_cache=False)
