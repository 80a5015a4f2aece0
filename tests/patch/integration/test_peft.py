"""Laws about PEFT: adapters and patches go together in either order, and both come off again."""

import copy

import pytest
import torch
from answers import answers, assert_close, assert_same, greedy, logits, patched_answers
from patch_cases import make_variant

import sa_patch

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT asks transformers for it
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),  # of prompt tuning's generate
]
CASES = ("sa", "moba", "swa")


def with_lora(model):
    """The model with adapters on its attention that change every output."""
    torch.manual_seed(5)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()


def merged_by_hand(adapted, plain):
    """A copy of the plain model with scaling * B A added to its weights."""
    twin = copy.deepcopy(plain)
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A"):
            added = module.lora_B["default"].weight @ module.lora_A["default"].weight * module.scaling["default"]
            twin.get_submodule(name.removeprefix("base_model.model.")).weight.data += added.detach()
    return twin


@pytest.mark.cell("Ecosystem", "PEFT: LoRA, wrapped before or after the patch")
@pytest.mark.parametrize("case", CASES)
def test_lora_gives_what_its_merged_weights_give(model, tokens, case):
    plain = copy.deepcopy(model)
    without = patched_answers(plain, tokens, case)
    patched_first = copy.deepcopy(model)
    sa_patch.apply(patched_first, variant=make_variant(case))
    patched_first, wrapped_first = with_lora(patched_first), with_lora(model)
    bare = answers(wrapped_first, tokens)
    expected = patched_answers(merged_by_hand(wrapped_first, plain), tokens, case)
    assert (expected[0] - without[0]).abs().max() > 1, "the adapters do nothing"
    sa_patch.apply(wrapped_first, variant=make_variant(case))
    for adapted in (patched_first, wrapped_first):
        assert_close(answers(adapted, tokens), expected)
        with adapted.disable_adapter():
            assert_same(answers(adapted, tokens), without)
        assert sa_patch.is_patched(adapted)
        sa_patch.restore(adapted)
        assert_same(answers(adapted, tokens), bare)


@pytest.mark.cell("Ecosystem", "PEFT: merge_and_unload of a patched model")
@pytest.mark.parametrize("case", CASES)
def test_merging_adapters_keeps_the_patch(model, tokens, case):
    adapted = with_lora(model)
    plain = logits(adapted, tokens)
    patch = sa_patch.apply(adapted, variant=make_variant(case))
    expected = answers(adapted, tokens)
    merged = adapted.merge_and_unload()
    assert patch.active and sa_patch.is_patched(merged)
    assert_close(answers(merged, tokens), expected)
    sa_patch.restore(merged)
    torch.testing.assert_close(logits(merged, tokens), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.cell("Ecosystem", "PEFT: training LoRA adapters")
@pytest.mark.parametrize("case", CASES)
def test_adapters_get_the_gradients_of_the_reference(model, tokens, case):
    adapted = with_lora(model).train()

    def gradients(kernel):
        adapted.zero_grad()
        with sa_patch.apply(adapted, variant=make_variant(case), kernel=kernel):
            adapted(input_ids=tokens, labels=tokens).loss.backward()
        trained = {name: weight.grad for name, weight in adapted.named_parameters() if weight.grad is not None}
        assert len(trained) == 3 * 4 * 2 and all("lora" in name for name in trained)
        return torch.cat([gradient.flatten() for gradient in trained.values()])

    expected = gradients("reference")
    for kernel in ("auto", "torch", "sdpa"):
        assert (gradients(kernel) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.cell("Ecosystem", "PEFT: prompt tuning")
@pytest.mark.parametrize("case", CASES)
def test_tuned_prompts_are_the_first_tokens(model, tokens, case):
    base = copy.deepcopy(model)
    torch.manual_seed(1)
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    embedded = torch.cat([tuned.get_prompt(1), base.get_input_embeddings()(tokens)], dim=1).detach()
    with torch.no_grad(), sa_patch.apply(base, variant=make_variant(case)):
        expected = base(inputs_embeds=embedded).logits
        text = base.generate(inputs_embeds=embedded, max_new_tokens=4, do_sample=False)[:, -4:].tolist()
    assert_same(patched_answers(tuned, tokens, case), (expected, text))


def with_prefix(model):
    """The model with 5 trained keys and values before its first token, in every layer."""
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()


def read_by_definition(base, cache, tokens, masks):
    """What a bare model reads behind a filled cache when each layer sees what its mask says, bool [queries, keys]."""
    for layer, mask in zip(base.model.layers, masks, strict=True):
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask[None, None]}),
            with_kwargs=True,
        )
    return logits(base, tokens, past_key_values=cache)


@pytest.mark.cell("Ecosystem", "PEFT: prefix tuning under swa, moba and sa with horizon='dyadic'")
@pytest.mark.parametrize("case", ["swa", "sa-dyadic", "sa-dyadic-bucket", "moba"])
def test_a_tuned_prefix_is_the_tokens_before(model, tokens, case):
    base = copy.deepcopy(model)
    tuned = with_prefix(model)
    bare = answers(tuned, tokens)
    found = patched_answers(tuned, tokens, case)
    assert (found[0] - bare[0]).abs().max() > 1
    assert_close(found, patched_answers(tuned, tokens, case, kernel="reference"))
    if case != "moba":  # its keys depend on the content, so there is no mask to ask for
        with sa_patch.apply(model, variant=make_variant(case)) as patch:
            masks = [patch.mask(5 + 48, layer)[5:] for layer in range(3)]
        expected = read_by_definition(base, tuned.get_prompt(1), tokens, masks)
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert_same(answers(tuned, tokens), bare)


@pytest.mark.cell("Ecosystem", "PEFT: prefix tuning under sa with horizon='length'")
@pytest.mark.parametrize("case", ["sa", "sa-bucket"])
def test_a_tuned_prefix_is_refused_where_the_whole_prompt_is_permuted(model, tokens, case, refused):
    tuned = with_prefix(model)
    bare = answers(tuned, tokens)
    with sa_patch.apply(tuned, variant=make_variant(case)):
        with refused(NotImplementedError, match="horizon='dyadic'"):
            logits(tuned, tokens)
        with refused(NotImplementedError, match="horizon='dyadic'"):
            greedy(tuned, tokens)
    assert_same(answers(tuned, tokens), bare)
