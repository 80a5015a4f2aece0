"""The bundled models: small, loadable with no network, their tokenizer keeps the suite's words whole, and they know
the suite. The full measurement is in the model cards; here a few documents stand for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sa_eval
from sa_eval.tasks import TASKS, document, scene
from sa_eval.tasks.words import NUMBERS, vocabulary

_ASSETS = Path(sa_eval.__file__).parent / "assets"
_NAMES = ("qwen3-tiny", "qwen3-moe-tiny")
EACH = pytest.mark.parametrize("name", _NAMES)


@pytest.fixture(scope="module", autouse=True)
def no_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module", params=_NAMES)
def bundle(request):
    folder = _ASSETS / request.param
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def count(tokenizer):
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


@EACH
def test_a_bundle_is_whole_and_a_few_megabytes(name):
    files = {path.name: path.stat().st_size for path in (_ASSETS / name).iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= files.keys()
    assert {"tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert sum(files.values()) < 10 * 2**20


@EACH
def test_the_models_are_of_the_families_they_stand_for(name):
    model = AutoModelForCausalLM.from_pretrained(_ASSETS / name)
    assert type(model).__name__ == {"qwen3-tiny": "Qwen3ForCausalLM", "qwen3-moe-tiny": "Qwen3MoeForCausalLM"}[name]
    assert model.config.num_hidden_layers >= 4
    assert model.config.max_position_embeddings >= 2048
    assert model.generation_config.eos_token_id == model.config.eos_token_id is not None


def test_suite_words_and_numbers_are_one_token_each(bundle):
    _, tokenizer = bundle
    for word in (*vocabulary(), *NUMBERS):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word
    assert len(tokenizer.encode(" 1234567")) == 3


@pytest.mark.parametrize(
    "text", ["Hello, world!\n\n  x", "Grüße ✓ 東京\t1234567", " harbor harbormaster", "a\r\nb", ""]
)
def test_any_text_comes_back_as_it_went_in(bundle, text):
    _, tokenizer = bundle
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_token_is_added_and_the_end_pads(bundle):
    _, tokenizer = bundle
    assert tokenizer.decode(tokenizer.encode("word")[:1]) != tokenizer.eos_token
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("task", list(TASKS))
def test_prompt_and_target_tokenize_the_same_apart_and_together(bundle, task):
    _, tokenizer = bundle
    made = scene(task, count(tokenizer), 512, 0, 0)
    for question in made.questions:
        apart = tokenizer.encode(made.context + question.tail) + tokenizer.encode(question.target)
        assert apart == tokenizer.encode(made.context + question.tail + question.target)


def test_every_parameter_is_finite(bundle):
    model, _ = bundle
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def _accuracy(bundle, task: str, length: int, documents: int) -> float:
    model, tokenizer = bundle
    made = [document(task, count(tokenizer), length, 11, index) for index in range(documents)]
    return sum(_points(model, tokenizer, task, one) for one in made) / documents


@torch.inference_mode()
def _points(model, tokenizer, task: str, made) -> float:
    prompt = torch.tensor([tokenizer.encode(made.prompt)])
    if TASKS[task].output == "generate":
        mask = torch.ones_like(prompt)
        output = model.generate(prompt, attention_mask=mask, max_new_tokens=TASKS[task].max_new_tokens, do_sample=False)
        text = tokenizer.decode(output[0, prompt.shape[1] :])
        return sum(answer in text for answer in made.answers) / len(made.answers)
    logits = model(prompt, logits_to_keep=1).logits[0, 0]
    ids = [tokenizer.encode(choice)[0] for choice in made.choices]
    if TASKS[task].output == "cloze":
        return float(logits.argmax() == ids[0])
    return float(logits[ids].argmax() == made.gold)


@pytest.mark.parametrize("task", list(TASKS))
def test_full_attention_knows_the_suite(bundle, task):
    assert _accuracy(bundle, task, 512, 8) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("length", [1024, 2048])
@pytest.mark.parametrize("task", list(TASKS))
def test_full_attention_knows_the_suite_at_every_length(bundle, task, length):
    assert _accuracy(bundle, task, length, 40) >= 0.9  # 0.95 and more in the cards: here two more may be wrong


def test_the_experts_differ_and_none_is_idle():
    folder = _ASSETS / "qwen3-moe-tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = document("needle_multikey", count(tokenizer), 1024, 0, 0).prompt
    with torch.inference_mode():
        routed = model(torch.tensor([tokenizer.encode(prompt)]), output_router_logits=True).router_logits
    for layer, logits in zip(model.model.layers, routed, strict=True):
        chosen = logits.topk(model.config.num_experts_per_tok, -1).indices.flatten()
        share = torch.bincount(chosen, minlength=model.config.num_experts) / len(chosen)
        assert share.min() > 0.02
        weights = layer.mlp.experts.down_proj
        assert (weights[0] - weights[1]).abs().max() > 1e-3
