"""Laws on a real pretrained model, SmolLM2-135M, where it is present: scripts/get_smollm2.py makes the folder."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sa_patch

VARIABLE = "SA_PATCH_SMOLLM2"
FOLDER = Path(os.environ.get(VARIABLE) or "nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "config.json").is_file(),
        reason=f"{VARIABLE} names no folder of SmolLM2-135M: python scripts/get_smollm2.py FOLDER",
    ),
]
LENGTH, WINDOW = 300, 64
TEXT = (
    "The river rose for three days before anyone in the village spoke of leaving. On the fourth the miller, who had "
    "never been known to hurry, was seen carrying his accounts to the church. "
)
WITH_MASK = {
    "swa": {},
    "swa + 1 sink": {"sinks": 1},
    "sa": {},
    "sa-bucket": {},
    "sa-dyadic": {},
    "sa+swa": {"sinks": 4},
    "random-keys": {},
}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.tensor([AutoTokenizer.from_pretrained(FOLDER)(TEXT * 10)["input_ids"][:LENGTH]])


@torch.inference_mode()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def patched(model, name, **options):
    mode, _, form = name.partition(" ")[0].partition("-")
    if mode == "random":
        return sa_patch.apply(model, "random-keys", WINDOW, **options)
    shapes = {"bucket": {"form": "bucket"}, "dyadic": {"horizon": "dyadic"}}
    return sa_patch.apply(model, mode, WINDOW, **shapes.get(form, {}), **options)


@contextmanager
def masked(model, masks):
    """The plain model, every layer under its own 4D mask."""

    def hook(mask):
        return lambda module, args, given: (args, {**given, "attention_mask": mask[None, None]})

    layers = [layer.self_attn for layer in model.model.layers]
    pairs = zip(layers, masks, strict=True)
    handles = [layer.register_forward_pre_hook(hook(mask), with_kwargs=True) for layer, mask in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", WITH_MASK)
def test_a_patched_model_is_the_plain_one_under_the_patchs_masks(model, ids, name):
    with patched(model, name, **WITH_MASK[name]) as patch:
        found = logits(model, ids)
        masks = [patch.mask(LENGTH, layer) for layer in range(patch.num_layers)]
    with masked(model, masks):
        expected = logits(model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)
    assert not torch.allclose(expected, logits(model, ids), atol=0.1)  # the masks do something


def test_moba_is_the_reference_kernels_moba(model, ids):
    options = {"top_k": 4, "sinks": 4, "local": 16}
    with patched(model, "moba", **options):
        found = logits(model, ids)
    with patched(model, "moba", kernel="reference", **options):
        expected = logits(model, ids)
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean()  # a block within rounding may be another one
    assert same > 0.98 and torch.median((found - expected).abs()) < 1e-3


@pytest.mark.parametrize("name", [*WITH_MASK, "moba"])
def test_restore_is_bit_identical(model, ids, name):
    before = logits(model, ids)
    with patched(model, name):
        assert not torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("name", WITH_MASK)
def test_the_budget_is_the_count_of_the_masks(model, name):
    with patched(model, name, **WITH_MASK[name]) as patch:
        for layer in patch.budget(LENGTH).per_layer:
            assert layer.pairs == int(patch.mask(LENGTH, layer.layer_idx).sum())


@pytest.mark.parametrize("name", ["swa", "sa", "moba"])
def test_what_is_generated_with_the_whole_cache_follows_the_sparse_prompt(model, ids, name):
    with patched(model, name, sinks=1), torch.inference_mode():
        found = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=2)
        first = logits(model, ids)[:, -1].argmax(-1)
    assert found.shape[1] > LENGTH and torch.equal(found[:, LENGTH], first)
