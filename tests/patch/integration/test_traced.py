"""Shape-only forwards give the plain model's shapes; graphs that were traced once are right for other inputs."""

import pytest
import torch
from models import make_model
from patch_cases import make_variant, random_heads
from support import close
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import sa_patch

CASES = ["sa", "moba", "sa-dyadic"]


def batch(length):
    """Token ids [2, length], the first row padded on the left."""
    tokens = torch.randint(1, 97, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    return tokens, mask


def shapes(model, tokens, mask, step):
    """The shapes of a prompt's logits, and of those of a token after it."""
    first = model(tokens, attention_mask=mask, use_cache=True)
    longer = None if mask is None else torch.cat([mask, mask[:, :1]], dim=1)
    after = model(step, attention_mask=longer, past_key_values=first.past_key_values)
    return first.logits.shape, after.logits.shape, first.logits.dtype, first.logits.device, first.logits.requires_grad


@pytest.mark.cell("Execution", "shapes only: FakeTensorMode, the meta device")
@pytest.mark.parametrize(
    "kind, case, decode", [("qwen3", "sa", "full"), ("qwen3", "moba", "sparse"), ("qwen2_moe", "sa-dyadic", "sparse")]
)
def test_shape_only_forwards_have_the_shapes_of_the_plain_model(kind, case, decode):
    changes = {"num_hidden_layers": 2, "mlp_only_layers": [0, 1]} if kind == "qwen2_moe" else {"num_hidden_layers": 2}
    variant = make_variant(case, decode=decode)
    for place in (FakeTensorMode(), torch.device("meta")):
        with place:
            model, (tokens, mask), step = make_model(kind, **changes), batch(48), torch.ones(2, 1, dtype=torch.long)
            plain = shapes(model, tokens, None, step)
            with sa_patch.apply(model, variant=variant) as patch:
                # The plain model itself looks at the values of a mask on the meta device.
                assert shapes(model, tokens, None, step) == shapes(model, tokens, mask, step) == plain
                assert not any(sum(layer.values()) for layer in patch.calls)  # nothing ran


def test_a_model_that_is_patched_first_takes_fake_inputs():
    model = make_model(num_hidden_layers=1)
    with sa_patch.apply(model, "sa", 12):
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        tokens, mask = (fake.from_tensor(tensor) for tensor in batch(48))
        with fake:
            assert model(tokens, attention_mask=mask).logits.shape == (2, 48, 97)
        assert torch.isfinite(model(batch(48)[0]).logits).all()


def test_the_function_gives_shapes():
    for place in (FakeTensorMode(), torch.device("meta")):
        with place:
            query, key, value = (torch.empty(2, heads, 40, 16) for heads in (4, 2, 2))
            mask = torch.ones(2, 40, dtype=torch.bool)
            for padded in (None, mask):
                found = sa_patch.attention(query, key, value, sa_patch.variant("sa", 8), attention_mask=padded)
                assert found.shape == query.shape and found.device == query.device


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, mask=None):
        return self.model(tokens, attention_mask=mask, use_cache=False).logits


@pytest.mark.cell("Execution", "torch.jit.trace, then other lengths, with and without padding")
@pytest.mark.filterwarnings("ignore")  # torch.jit and what it reads off a model are deprecated
@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_jit_trace_is_right_at_other_lengths(case, padded, kernel):
    model = Logits(make_model(num_hidden_layers=2))
    with sa_patch.apply(model.model, variant=make_variant(case), kernel=kernel), torch.no_grad():
        traced = torch.jit.trace(model, batch(48)[: 1 + padded])
        for length in (48, 1, 2, 13, 60, 130):
            real = batch(length)[1].bool() if padded else ...
            found, expected = (run(*batch(length)[: 1 + padded]) for run in (traced, model))
            close(found[real], expected[real], "torch.jit.trace", rtol=0, atol=0)


@pytest.mark.cell("Execution", "make_fx: fake and symbolic tracing")
@pytest.mark.parametrize("tracing_mode, case", [("fake", "sa"), ("symbolic", "sa-dyadic"), ("symbolic", "moba")])
def test_a_graph_of_make_fx_is_right_for_other_inputs(tracing_mode, case):
    model = Logits(make_model(num_hidden_layers=1))
    lengths = (48, 13, 130) if tracing_mode == "symbolic" else (48,)
    with sa_patch.apply(model.model, variant=make_variant(case)), torch.no_grad():
        graph = make_fx(model, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(*batch(48))
        for length in lengths:
            tokens, mask = batch(length)
            mask = mask.flip(0)
            found, expected = graph(tokens, mask), model(tokens, mask)
            close(found[mask.bool()], expected[mask.bool()], "make_fx", rtol=0, atol=0)


def test_the_function_traces_like_the_model():
    variant = sa_patch.variant("sa", 8)

    def run(query, key, value):
        return sa_patch.attention(query, key, value, variant, layer_idx=1)

    graph = make_fx(run, tracing_mode="symbolic")(*random_heads(40))
    torch.testing.assert_close(graph(*random_heads(90)), run(*random_heads(90)), rtol=0, atol=0)
