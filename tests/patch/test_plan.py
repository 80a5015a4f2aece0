"""Laws about plans: another variant per layer, one budget over all."""

import json

import pytest
import torch

import sa_patch
from sa_patch import Plan, variant
from sa_patch.counting import triangle, window_pairs


@pytest.fixture
def long_tokens():
    return torch.randint(1, 97, (1, 90), generator=torch.Generator().manual_seed(3))


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_equal_layers_are_the_single_variant(model, long_tokens):
    one = variant("sa", 12, sinks=1)
    with sa_patch.apply(model, variant=one):
        expected = logits(model, long_tokens)
    with sa_patch.apply(model, plan=Plan((one,) * model.config.num_hidden_layers)) as patch:
        assert torch.equal(logits(model, long_tokens), expected)
        assert patch.variant == one and patch.config["version"] == 1


def test_every_layer_runs_its_own_variant(qwen3, long_tokens):
    """Layer by layer against models in which that layer alone is sparse, composed by hand."""
    layers = qwen3.config.num_hidden_layers
    kinds = [variant("routed", 12, sinks=1), variant("full"), variant("swa", 20), variant("sa", 12)]
    plan = Plan(tuple(kinds[layer % len(kinds)] for layer in range(layers)))
    inputs, outputs = {}, {}

    def see(module, args, output):
        layer = module.self_attn.layer_idx
        inputs[layer], outputs[layer] = args[0].clone(), (output[0] if isinstance(output, tuple) else output).clone()

    for block in qwen3.model.layers:
        block.register_forward_hook(see)
    plain = logits(qwen3, long_tokens)
    with sa_patch.apply(qwen3, plan=plan) as patch:
        found = logits(qwen3, long_tokens)
        seen = dict(inputs), dict(outputs)
        kinds_run = [{kind for kind, count in calls.items() if count} for calls in patch.calls]
    assert not torch.equal(found, plain) and torch.equal(logits(qwen3, long_tokens), plain)
    assert kinds_run == [{"dense_layer" if one.always_dense else "sparse_prefill"} for one in plan.variants]
    for layer in range(layers):  # the same layer with the same input, its variant on all layers
        with sa_patch.apply(qwen3, variant=plan.variants[layer]):
            replaced = qwen3.model.layers[layer].register_forward_pre_hook(
                lambda module, args, layer=layer: (seen[0][layer], *args[1:])
            )
            logits(qwen3, long_tokens)
            replaced.remove()
        torch.testing.assert_close(outputs[layer], seen[1][layer], rtol=1e-5, atol=1e-5)


def test_the_budget_is_counted_over_all_layers(qwen3):
    count = qwen3.config.num_hidden_layers
    plan = Plan((variant("full"), *[variant("swa", 8)] * (count - 1)), window=16)
    patch = sa_patch.apply(qwen3, plan=plan)
    budget = patch.budget(40)
    assert budget.pairs == triangle(40) + (count - 1) * window_pairs(40, 8)
    assert budget.target_keys_per_query == window_pairs(40, 16) / 40
    assert budget.off_target == pytest.approx(budget.pairs / count / window_pairs(40, 16) - 1)
    assert patch.mask(40, 0).sum() == triangle(40) and patch.mask(40, 1).sum() == window_pairs(40, 8)


def test_a_plan_is_saved_and_loaded(qwen3, long_tokens, tmp_path):
    count = qwen3.config.num_hidden_layers
    plan = Plan((variant("full"), *[variant("routed", 12, block_size=4)] * (count - 1)), window=30)
    patch = sa_patch.apply(qwen3, plan=plan, kernel="reference")
    expected = logits(qwen3, long_tokens)
    patch.save(tmp_path)
    patch.restore()
    held = json.loads((tmp_path / "sa_patch.json").read_text())
    assert held["version"] == 2 and held["layers"] == [0] + [1] * (count - 1) and len(held["variants"]) == 2
    loaded = sa_patch.load(qwen3, tmp_path)
    assert loaded.plan == plan and loaded.kernel == "reference" and torch.equal(logits(qwen3, long_tokens), expected)
    (tmp_path / "sa_patch.json").write_text(json.dumps({**held, "layers": [0, 7]}))
    with pytest.raises(ValueError, match="must number its 2 variants from 0, found 7"):
        sa_patch.load(qwen3, tmp_path)
    (tmp_path / "sa_patch.json").write_text(json.dumps({**held, "layer": 1}))
    with pytest.raises(ValueError, match="did you mean 'layers'"):
        sa_patch.load(qwen3, tmp_path)


def test_generation_follows_the_plan(model, tokens):
    count = model.config.num_hidden_layers
    plan = Plan((variant("swa", 12), *[variant("routed", 12)] * (count - 1)))
    with sa_patch.apply(model, plan=plan) as patch:
        whole = model.generate(tokens, max_new_tokens=6, do_sample=False)
        pieces = model.generate(tokens, max_new_tokens=6, do_sample=False, prefill_chunk_size=16)
        assert torch.equal(whole, pieces)
        assert [layer["full_decode"] for layer in patch.calls] == [10] * count
    sa_patch.apply(model, plan=Plan((variant("sa", 12), *plan.variants[1:])))
    with pytest.raises(NotImplementedError, match="cuts the prompt, but horizon='length' permutes"):
        model.generate(tokens, max_new_tokens=6, do_sample=False, prefill_chunk_size=16)


def test_compiled_plans_are_eager_plans(qwen3, long_tokens):
    count = qwen3.config.num_hidden_layers
    plan = Plan((variant("full"), *[variant("routed", 12)] * (count - 1)))
    with sa_patch.apply(qwen3, plan=plan):
        expected = logits(qwen3, long_tokens)
        compiled = torch.compile(qwen3, backend="eager")
        torch.testing.assert_close(logits(compiled, long_tokens), expected, rtol=1e-5, atol=1e-5)


def test_what_a_plan_tells(qwen3):
    count = qwen3.config.num_hidden_layers
    patch = sa_patch.apply(qwen3, plan=Plan((variant("full"), *[variant("routed", 12)] * (count - 1)), window=16))
    text = patch.describe()
    assert "a plan of 2 variants, 16 keys per query on average, active" in text
    assert f"layers     1-{count - 1}: routed, window=12" in text
    assert max(map(len, str(patch).splitlines())) <= 80
    with pytest.raises(ValueError, match=r"several variants: see patch\.plan"):
        _ = patch.variant


def test_bad_plans_are_refused_and_the_model_is_as_it_was(qwen3, tokens):
    plain = logits(qwen3, tokens)
    with pytest.raises(ValueError, match="the plan has 1 layers, the model"):
        sa_patch.apply(qwen3, plan=Plan((variant("swa", 8),)))
    with pytest.raises(ValueError, match=r"one way, found decode="):
        Plan((variant("swa", 8), variant("swa", 8, decode="sparse")))
    with pytest.raises(ValueError, match=r"dense_layers=.* has no meaning in a plan"):
        Plan((variant("swa", 8), variant("swa", 9, dense_layers=(0,))))
    with pytest.raises(ValueError, match="plan= already holds its options; window, sinks would be ignored"):
        sa_patch.apply(qwen3, window=3, sinks=1, plan=Plan((variant("swa", 8),)))
    with pytest.raises(ValueError, match=r"must be a sa_patch\.Plan, got dict"):
        sa_patch.apply(qwen3, plan={})
    assert torch.equal(logits(qwen3, tokens), plain) and not sa_patch.is_patched(qwen3)
