"""Training gated models: gradients, permutations of a step, and everything that computes a layer twice."""

import copy

import gated_models
import pytest
import torch
from gated_models import text
from models import make_model
from torch.nn.functional import cross_entropy, rms_norm
from torch.utils.checkpoint import checkpoint

import sa_patch


def gated(kind="qwen3", **options):
    return gated_models.gated(kind, **options).train()


def loss_of(model, tokens, run=None):
    return (model if run is None else run)(tokens, labels=tokens, use_cache=False).loss


def gradients(model, *batches, run=None, together=False):
    """Of some batches: one backward pass after each, or one after all of them."""
    model.zero_grad()
    if together:
        sum(loss_of(model, tokens, run) for tokens in batches).backward()
    else:
        for tokens in batches:
            loss_of(model, tokens, run).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def close(found, expected, rtol=1e-5, atol=1e-6):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [{}, {"form": "bucket"}, {"horizon": "dyadic", "sinks": 1}])
def test_gradients_are_those_of_finite_differences(options):
    model = gated(resample="never", **options).double()
    for norm in (module for module in model.modules() if "RMSNorm" in type(module).__name__):  # theirs is in float32
        norm.forward = lambda x, norm=norm: rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    tokens, source, step = text(1, 40), torch.Generator().manual_seed(0), 1e-6

    def loss():  # the model's own loss is computed in float32
        return cross_entropy(model(tokens, use_cache=False).logits[0, :-1], tokens[0, 1:])

    loss().backward()
    for _ in range(3):
        towards = [torch.randn(one.shape, generator=source, dtype=one.dtype) for one in model.parameters()]
        slope = sum((one.grad * way).sum().item() for one, way in zip(model.parameters(), towards, strict=True))
        losses = []
        for far in (step, -2 * step, step):  # to one side, to the other, and back
            with torch.no_grad():
                for one, way in zip(model.parameters(), towards, strict=True):
                    one += far * way
                losses.append(loss().item())
        assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_gradients_are_the_references(kind):
    found = [gradients(gated(kind, kernel=kernel, seed=2), text(2, 40)) for kernel in ("torch", "reference")]
    close(*found, rtol=1e-3, atol=1e-5)
    assert found[0]["model.layers.1.self_attn.gate_sa.weight"].abs().max() > 0


def test_every_training_step_draws_other_permutations_and_evaluation_none(qwen3):
    tokens = text(1, 40)
    model = gated()
    with torch.no_grad():
        losses = [loss_of(model, tokens).item() for _ in range(4)]
        assert len(set(losses)) == 4 and int(model.model.gate_steps.count) == 4
        model.eval()
        assert len({loss_of(model, tokens).item() for _ in range(3)}) == 1 and int(model.model.gate_steps.count) == 4
        fixed = gated(resample="never")
        assert len({loss_of(fixed, tokens).item() for _ in range(3)}) == 1
        assert loss_of(fixed, tokens).item() == loss_of(model, tokens).item()


def test_the_step_is_part_of_the_state_dict():
    tokens, model = text(1, 40), gated()
    with torch.no_grad():
        loss_of(model, tokens)
        state = copy.deepcopy(model.state_dict())
        following = loss_of(model, tokens)
        other = gated()
        other.load_state_dict(state)
        assert torch.equal(loss_of(other, tokens), following)


def checkpointed(model, use_reentrant):
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    return model


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("together", [False, True], ids=["each", "together"])
def test_a_layer_that_is_computed_again_takes_the_step_it_was_computed_in(use_reentrant, together):
    batches = text(2, 40), text(2, 33)
    expected = gradients(gated(), *batches, together=together)
    close(gradients(checkpointed(gated(), use_reentrant), *batches, together=together), expected)


def test_autocast_trains_in_bfloat16():
    found = []
    for kernel in ("torch", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(gated(kernel=kernel), text(2, 40)))
    close(*found, rtol=0.1, atol=0.02)


def test_compiled_training_is_eager_training_and_compiles_once():
    torch._dynamo.reset()
    graphs, lower = [], torch._dynamo.lookup_backend("aot_eager")

    def backend(graph, inputs):
        graphs.append(graph)
        return lower(graph, inputs)

    batches = [text(2, 40)] * 3
    expected = gradients(gated(), *batches)
    model = gated()
    close(gradients(model, *batches, run=torch.compile(model, fullgraph=True, backend=backend)), expected)
    assert int(model.model.gate_steps.count) == 3
    again = checkpointed(gated(), False)
    close(gradients(again, *batches, run=torch.compile(again, fullgraph=True, backend=backend)), expected)
    assert len(graphs) == 2


def test_memory_of_orders_does_not_grow_with_the_steps(monkeypatch):
    from sa_patch.integration import gates
    from sa_patch.kept import KEPT

    monkeypatch.setattr(gates, "_KEPT_BYTES", 20_000)
    model = gated()
    with torch.no_grad():
        for _ in range(30):
            loss_of(model, text(1, 40))
    model(text(1, 8))
    assert KEPT.bytes <= 40_000


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_compiled_attention_is_computed_again_with_its_step():
    def found(compiled):
        torch._dynamo.reset()
        model = checkpointed(gated(), False)
        for layer in model.model.layers if compiled else ():
            layer.self_attn.compile(backend="aot_eager")
        return gradients(model, text(2, 40), text(2, 33), together=True)

    close(found(True), found(False))


def test_a_whole_model_that_is_computed_again_is_refused():
    model = gated()
    embedded = model.get_input_embeddings()(text(1, 40)).detach().requires_grad_()

    def run(some):
        return model(inputs_embeds=some, use_cache=False).logits.square().mean()

    with pytest.raises(NotImplementedError, match="a checkpoint around the whole model"):
        checkpoint(run, embedded, use_reentrant=False).backward()


def test_gates_draw_no_random_numbers_and_train_wherever_they_were_made():
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        model = make_model()
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        sa_patch.gate(model, 12)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.model.layers[0].self_attn.gate_sa.weight.is_inference()
