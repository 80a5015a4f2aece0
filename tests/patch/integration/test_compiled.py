"""Laws about torch.compile and torch.export: no graph break, few compilations, the numbers of the eager model.

Most run without inductor's C++ compiler: "eager" runs the graph that was traced, "aot_eager" that of the gradients too.
"""

import copy

import pytest
import torch
from models import make_model
from patch_cases import make_variant, random_heads
from support import close
from transformers import CompileConfig, DynamicCache, StaticCache

import sa_patch
from sa_patch.forward import KINDS
from sa_patch.geometry import encode
from sa_patch.variants.sliding_window import SlidingWindow

LENGTHS = (20, 23, 31, 40, 64, 65, 90, 100, 128, 150, 199, 200)
# What inductor may do to float32 through two layers of logits of size 10.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def qwen3():
    return make_model(num_hidden_layers=1)


def counting(backend="aot_eager"):
    """The backend, and the list of graphs it will have compiled."""
    graphs, make = [], torch._dynamo.lookup_backend(backend)

    def keep(graph, inputs):
        graphs.append(graph)
        return make(graph, inputs)

    return keep, graphs


def compiled(module, backend="aot_eager"):
    """The module compiled without graph breaks, and the list of graphs it will have taken."""
    keep, graphs = counting(backend)
    return torch.compile(module, backend=keep, fullgraph=True), graphs


def text(*shape, seed=0):
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))


def steps(model, tokens, cache, count):
    """Logits of a prompt's last token and of `count` tokens after it, one by one."""
    with torch.no_grad():
        found = [model(tokens, past_key_values=cache, use_cache=True).logits[:, -1]]
        for step in range(count):
            found.append(model(tokens[:, step : step + 1], past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.stack(found)


@pytest.mark.cell("Execution", "torch.compile(fullgraph=True): prompts of any length, two compilations in all")
@pytest.mark.parametrize("kind, case, backend", [("qwen3", "moba", "aot_eager"), ("qwen3_moe", "sa", "eager")])
def test_prompts_of_twelve_lengths_take_two_compilations(kind, case, backend):
    model = make_model(kind, num_hidden_layers=2)
    with sa_patch.apply(model, variant=make_variant(case)) as patch, torch.no_grad():
        run, graphs = compiled(model, backend)
        for length in LENGTHS:
            tokens = text(2, length)
            found, expected = run(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits
            close(found, expected, "compiled prefill", rtol=0, atol=0)
        assert len(graphs) == 2
        assert patch.calls[1]["sparse_prefill"] == 2 * len(LENGTHS)  # eager and compiled runs


@pytest.mark.cell("Execution", "torch.compile(fullgraph=True): decode with DynamicCache, two compilations in all")
@pytest.mark.parametrize("kind, decode", [("qwen3", "full"), ("qwen3_moe", "sparse")])
def test_decoding_takes_two_compilations(kind, decode):
    model = make_model(kind, num_hidden_layers=1)
    with sa_patch.apply(model, variant=make_variant("swa", decode=decode)) as patch:
        run, graphs = compiled(model, "eager")
        for length in (20, 37, 64, 130):
            tokens = text(1, length)
            caches = [DynamicCache(config=model.config) for _ in range(2)]
            found, expected = steps(run, tokens, caches[0], 4), steps(model, tokens, caches[1], 4)
            close(found, expected, "compiled decode", rtol=0, atol=0)
        assert len(graphs) == 4  # two for prompts, as without a patch
        assert patch.calls[0][f"{decode}_decode"] == 2 * 4 * 4


@pytest.mark.cell("Execution", "torch.compile(fullgraph=True): prompt and decode with StaticCache")
@pytest.mark.parametrize("decode", ["full", "sparse"])
def test_a_static_cache_compiles(qwen3, decode):
    with sa_patch.apply(qwen3, variant=make_variant("sa-dyadic", decode=decode)) as patch:
        run, graphs = compiled(qwen3, "eager")
        for length in (20, 37, 64, 130):
            tokens, found = text(2, length), []
            for model in (run, qwen3):
                cache = StaticCache(config=qwen3.config, max_cache_len=256)
                cache.early_initialization(2, 2, 16, torch.float32, torch.device("cpu"))
                found.append(steps(model, tokens, cache, 4))
            close(*found, "compiled decode", rtol=0, atol=0)
        assert len(graphs) <= 3
        assert patch.calls[0][f"{decode}_decode"] >= 2 * 2 * 4


@pytest.mark.cell("Execution", "torch.compile(fullgraph=True): padding and packed documents")
def test_padding_and_packed_documents_compile(qwen3):
    with sa_patch.apply(qwen3, variant=make_variant("sa-dyadic-bucket", 6)), torch.no_grad():
        run, graphs = compiled(qwen3, "eager")
        for length in (20, 37, 64, 130):
            tokens, mask = text(3, length), torch.ones(3, length, dtype=torch.long)
            mask[0, :7], mask[1, -5:] = 0, 0
            documents = torch.cat([torch.arange(8), torch.arange(length - 8)]).expand(3, -1)
            for inputs in ({"attention_mask": mask}, {"position_ids": documents}):
                found, expected = (model(tokens, use_cache=False, **inputs).logits for model in (run, qwen3))
                close(found, expected, "compiled prefill", rtol=0, atol=0)
        assert len(graphs) == 4


@pytest.mark.cell("Execution", "compiled: packed documents beside a cache or a mask")
@pytest.mark.parametrize("inputs", [{"use_cache": True}, {"attention_mask": torch.ones(1, 9)}], ids=["cache", "mask"])
def test_documents_that_nobody_separates_are_refused_when_compiled(qwen3, refused, inputs):
    sa_patch.apply(qwen3, variant=make_variant("sa", 3))
    run, _ = compiled(qwen3)
    documents = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with refused(NotImplementedError, match="position_ids restart"):
        run(text(1, 9), position_ids=documents, **inputs)


@pytest.mark.cell("Execution", "compiled: cu_seq_lens_q")
def test_cumulative_lengths_are_refused_when_compiled(qwen3, refused):
    sa_patch.apply(qwen3, variant=make_variant("sa", 3))
    ends = {f"cu_seq_lens_{side}": torch.tensor([0, 4, 9], dtype=torch.int32) for side in "qk"}
    with torch.no_grad(), refused(NotImplementedError, match="or is compiled"):
        torch.compile(qwen3, backend="eager")(text(1, 9), use_cache=False, **ends)


def gradients(model, run, tokens, **inputs):
    model.zero_grad()
    run(tokens, labels=tokens, use_cache=False, **inputs).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.cell("Execution", "torch.compile(fullgraph=True): training")
@pytest.mark.parametrize("case", ["sa-dyadic-bucket", "moba-sinks-local-tail"])
def test_compiled_gradients_are_eager_gradients(qwen3, case):
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :7] = 0
    with sa_patch.apply(qwen3, variant=make_variant(case, 10)) as patch:
        run, _ = compiled(qwen3)
        for inputs in ({}, {"attention_mask": mask}):
            pairs = zip(*(gradients(qwen3, model, text(2, 40), **inputs) for model in (run, qwen3)), strict=True)
            for found, expected in pairs:
                close(found, expected, "compiled gradients", rtol=1e-5, atol=1e-6)
        assert patch.calls[0]["sparse_prefill"] >= 4


@pytest.mark.cell("Execution", "torch.compile(fullgraph=True): training with gradient checkpointing under autocast")
def test_compiled_checkpointing_under_autocast_changes_nothing(qwen3):
    sa_patch.apply(qwen3, variant=make_variant("sa", 10))
    qwen3.train()
    found = []
    for name in ("eager", "plain", "checkpointed"):
        if name == "checkpointed":
            enable = getattr(qwen3, "activation_checkpointing_enable", None) or qwen3.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        run = qwen3 if name == "eager" else compiled(qwen3)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(qwen3, run, text(2, 40)))
    for other in found[1:]:
        for gradient, expected in zip(other, found[0], strict=True):
            close(gradient, expected, "compiled gradients", rtol=1e-5, atol=1e-6)


@pytest.mark.cell("Execution", "generate with a compiled forward, and with cache_implementation='static'")
@pytest.mark.parametrize("decode", ["full", "sparse"])
@pytest.mark.parametrize("static", [False, True])
def test_generate_with_a_compiled_forward_is_generate(qwen3, decode, static):
    tokens, mask = text(2, 30), torch.ones(2, 30, dtype=torch.long)
    mask[0, :5] = 0
    inputs = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    with sa_patch.apply(qwen3, variant=make_variant("sa", decode=decode)) as patch:
        if static:
            inputs["cache_implementation"] = "static"
        expected = qwen3.generate(tokens, **inputs)
        if static:  # the way of `generate` itself
            inputs["compile_config"] = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
            inputs["compile_config"]._compile_all_devices = True
        else:
            qwen3.forward = compiled(qwen3.forward, "eager")[0]
        assert torch.equal(qwen3.generate(tokens, **inputs), expected)
        # One call each; rows of two lengths are two groups to a kernel, and one to the fused read of the whole cache.
        assert patch.calls[0]["sparse_prefill"] == 4
        assert patch.calls[0][f"{decode}_decode"] == (14 if decode == "full" else 28)


@pytest.mark.cell("Execution", "generate, compiled: a last chunk of one prompt token is no generated token")
def test_a_compiled_chunk_of_one_token_belongs_to_the_prompt(qwen3):
    tokens = text(1, 33)
    options = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static", "prefill_chunk_size": 8}
    with sa_patch.apply(qwen3, variant=make_variant("swa", 6)) as patch:
        expected = qwen3.generate(tokens, max_new_tokens=4, do_sample=False)
        before = copy.deepcopy(patch.calls)
        config = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
        config._compile_all_devices = True
        assert torch.equal(qwen3.generate(tokens, **options, compile_config=config), expected)
        done = {kind: patch.calls[0][kind] - before[0][kind] for kind in KINDS}
        assert done["sparse_prefill"] == 5 and done["full_decode"] == 3


@pytest.mark.cell("Execution", "a compiled model follows apply, other options, restore and `with`")
def test_a_compiled_model_never_runs_an_old_patch():
    model, tokens = make_model(num_hidden_layers=2), text(2, 40)
    with torch.no_grad():
        bare, (run, graphs) = model(tokens).logits, compiled(model, "eager")
        outputs = [bare]
        assert torch.equal(run(tokens).logits, bare)
        for window, layers in ((12, ()), (24, (0,)), (12, ())):
            patch = sa_patch.apply(model, "sa", window, dense_layers=layers)
            outputs.append(model(tokens).logits)
            assert torch.equal(run(tokens).logits, outputs[-1])
            assert patch.calls[1]["sparse_prefill"] == 2
            with sa_patch.apply(model, "moba", 12, kernel="torch"):
                assert torch.equal(run(tokens).logits, model(tokens).logits)
            assert torch.equal(run(tokens).logits, outputs[-1])
            patch.restore()
            assert torch.equal(run(tokens).logits, bare)
        assert torch.equal(outputs[1], outputs[3])
        assert all((outputs[k] - outputs[k + 1]).abs().max() > 0.1 for k in range(3))
        assert len(graphs) == 4  # bare, two patches, moba: an equal patch takes no compilation


class Mine(SlidingWindow):
    name = "mine"


@pytest.mark.cell("Execution", "torch.compile: own variants break the graph, unless sa_patch.VARIANTS names them")
def test_own_variants_break_the_graph_or_are_named(qwen3, monkeypatch):
    heads, mine = random_heads(40), Mine(window=7)
    sa_patch.apply(qwen3, variant=mine)
    with torch.no_grad():
        expected = qwen3(text(1, 40)).logits
        assert torch.equal(torch.compile(qwen3, backend="eager")(text(1, 40)).logits, expected)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"not in sa_patch\.VARIANTS .* without fullgraph=True"):
        compiled(sa_patch.attention)[0](*heads, mine)
    monkeypatch.setitem(sa_patch.VARIANTS, "mine", Mine)
    torch._dynamo.reset()
    assert torch.equal(compiled(sa_patch.attention)[0](*heads, mine), sa_patch.attention(*heads, mine))


@pytest.mark.cell("Execution", "compiled layers of an eager model share one graph")
def test_compiled_layers_share_their_graph():
    model = make_model(num_hidden_layers=4)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :7] = 0
    with sa_patch.apply(model, "sa", 9, dense_layers=(1,)) as patch, torch.no_grad():
        inputs = [{}, {"attention_mask": mask}]
        expected = [model(text(2, 40), use_cache=False, **options).logits for options in inputs]
        backend, graphs = counting()
        for layer in model.model.layers:
            layer.compile(backend=backend, fullgraph=True)
        for options, wanted in zip(inputs, expected, strict=True):
            assert torch.equal(model(text(2, 40), use_cache=False, **options).logits, wanted)
        assert len(graphs) <= 4  # the first layer has a hook of its own
        assert [layer["dense_layer"] for layer in patch.calls] == [0, 6, 0, 0]


@pytest.mark.cell("Execution", "sa_patch.attention under torch.compile(fullgraph=True)")
@pytest.mark.parametrize("case", ["sa", "moba"])
def test_the_function_compiles(case):
    def attention(query, key, value, variant, **options):
        return sa_patch.attention(query, key, value, variant, layer_idx=1, **options) * 1

    run, graphs = compiled(attention)
    for length in LENGTHS:
        query, key, value = random_heads(length)
        mask = torch.ones(2, length)
        mask[0, :5] = 0
        for queries, options in ((query, {}), (query[:, :, -7:], {}), (query, {"attention_mask": mask})):
            inputs = (queries, key, value, make_variant(case))
            close(run(*inputs, **options), attention(*inputs, **options), "compiled attention", rtol=0, atol=0)
    assert len(graphs) <= 2 * 3


@pytest.mark.cell("Execution", "torch.compile: gradients of sa_patch.attention")
def test_the_compiled_function_has_the_gradients_of_the_reference():
    found = []
    run, _ = compiled(sa_patch.attention)
    for attention, kernel in ((run, "torch"), (sa_patch.attention, "reference")):
        tensors = [tensor.double().requires_grad_() for tensor in random_heads(60, query_len=40)]
        attention(*tensors, make_variant("sa-sinks-local"), kernel=kernel).square().sum().backward()
        found.append([tensor.grad for tensor in tensors])
    for gradient, expected in zip(*found, strict=True):
        close(gradient, expected, "compiled gradients", rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch 2.14's own check
@pytest.mark.parametrize("case", ["sa", "moba-sinks-local-tail"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_operator_keeps_pytorchs_rules(case, padded):
    tensors = [tensor.requires_grad_() for tensor in random_heads(40, query_len=30)]
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :5] = False
    codes = encode(2, 30, 40, 10, mask, None, torch.device("cpu")) if padded else None
    settings = make_variant(case).spec, torch.tensor(1), 3, 0, "torch", 0.25, "last"
    torch.library.opcheck(torch.ops.sa_patch.attend.default, (*tensors, codes, None, *settings))


READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class NoHostReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where the host waits for a value, which a CUDA graph can't capture."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in READS, f"{function} reads a value on the host"
        return function(*args, **(kwargs or {}))


@pytest.mark.cell("Execution", "decode='full': nothing reads a value on the host (CUDA graphs, not measured on a GPU)")
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_decoding_with_the_whole_cache_reads_nothing_on_the_host(kind):
    model = make_model(kind, num_hidden_layers=2)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    with sa_patch.apply(model, "sa", 6) as patch, torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=32)
        model(text(2, 12), attention_mask=mask, past_key_values=cache)
        with NoHostReads():
            if model.config.model_type == "qwen3":  # the experts of a MoE are counted on the host, patched or not
                model(text(2, 1), attention_mask=torch.ones(2, 13), past_key_values=cache)
        run, graphs = compiled(model)
        run(text(2, 1), attention_mask=torch.ones(2, 14), past_key_values=cache)
        (graph,) = graphs
        called = [node for node in graph.graph.nodes if node.op.startswith("call_")]
        assert len(called) > 50
        assert not [node for node in called if "sa_patch" in str(node.target) or node.target in ("item", "nonzero")]
        counters = [layer.traced.calls for layer in patch._state.layers]
        assert {counter._dynamo_static_input_type for counter in counters} == {"unguarded"}
        assert patch.calls[1]["full_decode"] >= 1


@pytest.mark.cell("Execution", "torch.compile with inductor, on a CPU")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own
def test_inductor_computes_the_same():
    model = make_model(num_hidden_layers=1)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :5] = 0
    with sa_patch.apply(model, "sa", 12), torch.no_grad():
        run, _ = compiled(model, "inductor")
        found, expected = (call(text(2, 40), attention_mask=mask).logits for call in (run, model))
        close(found[mask.bool()], expected[mask.bool()], "compiled with inductor", **CLOSE)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, mask=None):
        return self.model(tokens, attention_mask=mask, use_cache=False).logits


@pytest.mark.cell("Execution", "torch.export of a patched model, any length, with and without padding")
@pytest.mark.parametrize("padded", [False, True])
def test_a_patched_model_can_be_exported(padded):
    def inputs(length):
        mask = torch.ones(2, length, dtype=torch.long)
        mask[0, :5] = 0
        return (text(2, length), mask) if padded else (text(2, length),)

    model = Logits(make_model(num_hidden_layers=1))
    length = {1: torch.export.Dim("length", min=2, max=512)}
    with sa_patch.apply(model.model, "sa", 12), torch.no_grad():
        program = torch.export.export(model, inputs(40), dynamic_shapes=(length, length) if padded else (length,))
        for count in (40, 17, 300):
            real = inputs(count)[1].bool() if padded else ...
            found, expected = program.module()(*inputs(count)), model(*inputs(count))
            close(found[real], expected[real], "exported", rtol=0, atol=0)
