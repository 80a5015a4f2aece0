"""The laws of gated attention: what a layer computes, what the model holds, and how it is undone."""

import copy

import pytest
import torch
from gated_models import WINDOW, logits, text, with_random_gates
from models import make_model

import sa_patch
from sa_patch import integration


def watched(model, tokens):
    """Per layer: what the layer reads [b, n, d], the heads [b, h, n, d] that attention got, and its output."""
    seen, layers = [], [layer.self_attn for layer in model.model.layers]
    state = integration.state(model)
    read, mixed = {}, {}
    handles = []
    for number, layer in enumerate(layers):
        handles.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, number=number: read.update({number: (args or [kwargs["hidden_states"]])[0]}),
                with_kwargs=True,
            )
        )
        handles.append(
            layer.o_proj.register_forward_pre_hook(lambda _, args, number=number: mixed.update({number: args[0]}))
        )
    state.observer = lambda number, *heads: seen.append((number, *heads))
    logits(model, tokens)
    state.observer = None
    for handle in handles:
        handle.remove()
    return [(read[number], heads, mixed[number]) for number, *heads in seen]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"horizon": "dyadic"},
        {"form": "bucket"},
        {"sinks": 1, "circular": True},
        {"sinks": 1, "heads": "each", "weight": "sampled"},
    ],
)
def test_a_layer_is_the_gated_sum_of_both_branches(qwen3, options):
    model = qwen3.double()
    patch = with_random_gates(model, **options)
    local, random = patch.variant.branches
    assert (local.name, random.name, local.window, random.window) == ("swa", "sa", 6, 6)
    for number, (read, (query, key, value, scaling), found) in enumerate(watched(model, text(2, 40))):
        layer = model.model.layers[number].self_attn
        expected = 0
        for gate, branch in ((layer.gate_swa, local), (layer.gate_sa, random)):
            part = sa_patch.attention(query, key, value, branch, layer_idx=number, kernel="reference", scaling=scaling)
            expected = expected + gate(read).sigmoid()[..., None] * part.transpose(1, 2)
        torch.testing.assert_close(found, expected.flatten(2), rtol=1e-9, atol=1e-12)


def test_a_fresh_layer_is_the_mean_of_both_branches(qwen3):
    patch = sa_patch.gate(qwen3, WINDOW)
    for number, (_, (query, key, value, scaling), found) in enumerate(watched(qwen3, text(1, 40))):
        parts = [
            sa_patch.attention(query, key, value, branch, layer_idx=number, scaling=scaling)
            for branch in patch.variant.branches
        ]
        torch.testing.assert_close(found, (sum(parts) / 2).transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)
    patch.restore()
    sa_patch.gate(qwen3, WINDOW, initial=0.9)
    assert qwen3.model.layers[0].self_attn.gate_sa.bias.sigmoid().allclose(torch.tensor(0.9))


def test_both_branches_are_counted(qwen3):
    patch = sa_patch.gate(qwen3, 13, sinks=1, dense_layers=[0])
    local, random = patch.variant.branches
    assert (local.window, random.window) == (7, 6)
    expected = sum(branch.sparse_budget(64, 1).pairs for branch in (local, random))
    assert [layer.pairs for layer in patch.budget(64).per_layer] == [64 * 65 // 2, expected, expected]
    assert patch.mask(64, 1).sum() <= expected
    assert not hasattr(qwen3.model.layers[0].self_attn, "gate_sa")
    assert "gated" in str(patch) and "gated" in patch.describe()


def test_restore_removes_the_gates_and_leaves_the_weights(model):
    tokens = text(2, 40)
    before, names = logits(model, tokens), list(model.state_dict())
    patch = with_random_gates(model)
    gated = logits(model, tokens)
    added = model.state_dict().keys() - set(names)
    assert not torch.equal(gated, before)
    assert {name.rpartition(".")[2] for name in added} == {"weight", "bias", "_extra_state"}
    assert all("gate_swa" in name or "gate_sa" in name or "gate_steps" in name for name in added)
    patch.restore()
    assert list(model.state_dict()) == names and torch.equal(logits(model, tokens), before)
    with patch:
        assert torch.equal(logits(model, tokens), gated)
        with sa_patch.apply(model, "swa", WINDOW):
            assert list(model.state_dict()) == names
        assert torch.equal(logits(model, tokens), gated)
    assert list(model.state_dict()) == names and torch.equal(logits(model, tokens), before)


def test_the_gates_of_a_copy_are_its_own(qwen3):
    with_random_gates(qwen3)
    tokens = text(1, 40)
    other, before = copy.deepcopy(qwen3), logits(qwen3, tokens)
    other.model.layers[0].self_attn.gate_sa.bias.data += 1
    assert torch.equal(logits(qwen3, tokens), before) and not torch.equal(logits(other, tokens), before)
    sa_patch.restore(other)
    assert torch.equal(logits(qwen3, tokens), before)


def test_a_model_that_moved_while_it_had_no_gates_has_them_again(qwen3):
    patch = with_random_gates(qwen3)
    patch.restore()
    qwen3.double()
    with patch:
        assert logits(qwen3, text(1, 40)).dtype == torch.float64


def test_mode_gated_is_gate(qwen3):
    other = copy.deepcopy(qwen3)
    sa_patch.gate(qwen3, WINDOW, seed=3)
    patch = sa_patch.apply(other, "gated", WINDOW, seed=3)
    assert patch.variant.name == "gated" and torch.equal(logits(qwen3, text(1, 40)), logits(other, text(1, 40)))


# Inference


def test_a_padded_row_a_packed_document_and_a_row_alone_agree(model):
    with_random_gates(model)
    one, two = text(1, 31), text(1, 45)
    alone = [logits(model, row, use_cache=False) for row in (one, two)]
    left = torch.cat([torch.cat([torch.zeros_like(one[:, :14]), one], 1), two])
    right = torch.cat([torch.cat([one, torch.zeros_like(one[:, :14])], 1), two])
    for batch, place in ((left, slice(14, None)), (right, slice(0, 31))):
        mask = torch.ones_like(batch)
        mask[0, (slice(0, 14) if place.start else slice(31, None))] = 0
        found = logits(model, batch, attention_mask=mask, use_cache=False)
        torch.testing.assert_close(found[:1, place], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1:], alone[1], rtol=1e-4, atol=1e-5)
    places = torch.cat([torch.arange(31), torch.arange(45)])[None]
    packed = logits(model, torch.cat([one, two], 1), position_ids=places, use_cache=False)
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


def test_generated_tokens_read_both_patterns(qwen3):
    patch = with_random_gates(qwen3, horizon="dyadic")
    tokens = text(1, 70)
    with torch.no_grad():
        cache = qwen3(tokens[:, :40]).past_key_values
        steps = [qwen3(tokens[:, i : i + 1], past_key_values=cache).logits for i in range(40, 70)]
    torch.testing.assert_close(torch.cat(steps, 1), logits(qwen3, tokens)[:, 40:], rtol=1e-4, atol=1e-5)
    assert patch.calls[0]["sparse_decode"] == 30 and patch.calls[0]["full_decode"] == 0
    text_ids = qwen3.generate(tokens[:, :20], max_new_tokens=6, do_sample=False)
    assert text_ids.shape == (1, 26)


def test_a_prompt_of_the_papers_form_comes_in_one_call(qwen3):
    with_random_gates(qwen3)
    with torch.no_grad():
        cache = qwen3(text(1, 40)).past_key_values
        with pytest.raises(NotImplementedError, match="horizon='length' permutes"):
            qwen3(text(1, 5), past_key_values=cache)


def test_a_prompt_that_both_branches_show_whole_is_told(qwen3, recwarn):
    with_random_gates(qwen3)
    logits(qwen3, text(1, 7))
    assert not recwarn
    logits(qwen3, text(1, 6))
    assert "6 tokens, not more than window=6: 'gated' is full attention" in str(recwarn.pop(UserWarning).message)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window=1 has no two halves"),
        ({"window": 0.5}, "window=0.5 is a fraction of the prompt"),
        ({"window": 8, "sinks": 4}, "each branch has half of window=8, and sinks=4"),
        ({"decode": "full"}, "decode='full' shows both branches the whole cache"),
        ({"local": 4}, "local=4 is for variants that are not trained"),
        ({"dense_tail": 4}, "dense_tail=4 is for variants that are not trained"),
        ({"initial": 1.0}, "initial must be a gate's value between 0 and 1"),
        ({"initial": True}, "initial must be a gate's value between 0 and 1"),
        ({"resample": "always"}, "unknown resample 'always'"),
        ({"horizn": "dyadic"}, "unknown option of gated attention: 'horizn'.*did you mean 'horizon'"),
        ({"kernel": "none"}, "unknown kernel"),
    ],
)
def test_what_has_no_meaning_is_refused_and_changes_nothing(qwen3, options, message):
    names, before = list(qwen3.state_dict()), logits(qwen3, text(1, 40))
    with pytest.raises(ValueError, match=message):
        sa_patch.gate(qwen3, **{"window": WINDOW, **options})
    assert list(qwen3.state_dict()) == names and torch.equal(logits(qwen3, text(1, 40)), before)


def test_gates_are_made_by_gate_and_not_twice(qwen3, tmp_path):
    from sa_patch.variants.gated import Gated

    with pytest.raises(ValueError, match=r"make them with sa_patch.gate"):
        sa_patch.apply(qwen3, variant=Gated(window=WINDOW))
    patch = sa_patch.gate(qwen3, WINDOW)
    with pytest.raises(ValueError, match="patched or gated already"):
        sa_patch.gate(qwen3, WINDOW)
    with pytest.raises(ValueError, match=r"model.save_pretrained\(folder\) writes both"):
        patch.save(tmp_path)
    qwen3.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"sa_patch.from_pretrained\(folder\)"):
        sa_patch.load(make_model("qwen3"), tmp_path)
    with pytest.raises(NotImplementedError, match="upload it"):
        qwen3.save_pretrained(tmp_path, push_to_hub=True)


def test_a_layer_with_some_of_the_heads_is_refused():
    from sa_patch.integration.gates import gated

    with pytest.raises(NotImplementedError, match="the gates are for 4 heads, this process has 2"):
        gated((torch.ones(1, 5, 4),) * 2, [torch.ones(1, 2, 5, 8)] * 2)
