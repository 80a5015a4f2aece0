"""Laws about how a patched model is run: data types, gradients, checkpointing, modes of PyTorch, bad numbers."""

import copy

import pytest
import torch
from models import make_model
from patch_cases import CASES, make_pattern, make_variant, random_heads
from support import close

import sa_patch
from sa_patch import kernels

SCALING = 0.25
TRAINED = ("sa", "sa-dyadic-bucket", "moba", "sa+swa")
# Gradients of float32 through three layers, of size 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def text(*shape, seed=0):
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))


# Data types


def errors(low, exact, autocast=None):
    """What rounding does to a model's logits, against the same weights in float64."""
    tokens = text(2, 300)
    with torch.no_grad():
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            found = low(tokens).logits
        return (found.double() - exact(tokens).logits).abs()


@pytest.mark.cell("Execution", "models in float32, bfloat16 and float16, and autocast: as exact as the bare model")
@pytest.mark.parametrize("autocast", [False, True], ids=["model", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_rounding_does_to_a_patched_model_what_it_does_to_the_bare_one(kind, dtype, autocast):
    """The mean error is at most twice as large; the median with moba, where rounding may choose another block."""
    if autocast and dtype == torch.float32:
        pytest.skip("autocast takes lower precisions only")
    model = make_model(kind, num_hidden_layers=2, num_experts_per_tok=4)  # all experts: no choice that could flip
    low = model if autocast else copy.deepcopy(model).to(dtype)
    exact = copy.deepcopy(low).double()
    if kind == "qwen3_moe":
        exact.set_experts_implementation("eager")
    bare = errors(low, exact, dtype if autocast else None)
    for case in ("sa", "sa-bucket", "sa+swa", "sa-dyadic", "swa-sinks", "moba"):
        variant = make_variant(case, 32)
        with sa_patch.apply(low, variant=variant), sa_patch.apply(exact, variant=variant, kernel="reference"):
            found = errors(low, exact, dtype if autocast else None)
        middle = torch.median if case == "moba" else torch.mean
        assert middle(found) <= 2 * middle(bare), case


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_autocast_is_a_cast_of_the_inputs(case, dtype):
    tensors, variant = random_heads(300, batch=1), make_variant(case)
    expected = sa_patch.attention(*(tensor.to(dtype) for tensor in tensors), variant)
    with torch.autocast("cpu", dtype):
        found = sa_patch.attention(*tensors, variant)
    assert found.dtype == dtype and torch.equal(found, expected)


@pytest.mark.cell("Execution", "model.half() and model.to(dtype) after apply = apply afterwards")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_patch_follows_its_model_to_another_dtype(model, dtype):
    later = copy.deepcopy(model).to(dtype)
    sa_patch.apply(model, variant=make_variant("sa"))
    sa_patch.apply(later, variant=make_variant("sa"))
    model = model.half() if dtype == torch.float16 else model.to(dtype)
    with torch.no_grad():
        assert torch.equal(model(text(1, 48)).logits, later(text(1, 48)).logits)


# Gradients


def gradients(model, tokens, autocast=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def checkpointed(model, use_reentrant):
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


@pytest.mark.cell("Execution", "gradient checkpointing, reentrant or not: the same gradients")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("case", TRAINED)
def test_checkpointing_keeps_the_gradients(model, case, use_reentrant):
    tokens, variant = text(2, 48), make_variant(case)
    with sa_patch.apply(model, variant=variant, kernel="reference"):
        reference = gradients(model, tokens)
    with sa_patch.apply(model, variant=variant, kernel="torch") as patch:
        expected = gradients(model, tokens)
        ran = dict(patch.calls[0])
        checkpointed(model, use_reentrant)
        found = gradients(model, tokens)
        # Every forward of a checkpointed layer runs twice.
        assert patch.calls[0] == {kind: 3 * count for kind, count in ran.items()}
    for name, gradient in found.items():
        # The reentrant way reads the prompt without recording, where merged parts are rounded otherwise.
        if not use_reentrant or case not in ("moba", "sa+swa"):
            assert torch.equal(gradient, expected[name]), name
        close(gradient, expected[name], "gradients with checkpointing", **CLOSE)
        close(gradient, reference[name], "gradients of the torch kernel", **CLOSE)


@pytest.mark.cell("Execution", "training under autocast, with checkpointing: the way of the reference kernel, downhill")
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("case", TRAINED)
def test_a_training_step_under_autocast_goes_the_way_of_the_reference(kind, case):
    model, tokens = make_model(kind, num_experts_per_tok=4), text(2, 48)
    with sa_patch.apply(model, variant=make_variant(case), kernel="reference"):
        reference = gradients(model, tokens, autocast=True)
    with sa_patch.apply(model, variant=make_variant(case)):
        plain = gradients(model, tokens, autocast=True)
        before = model(tokens, labels=tokens).loss
        checkpointed(model, use_reentrant=False)
        found = gradients(model, tokens, autocast=True)
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        # A step may make moba choose other blocks, whose loss is another one.
        assert case == "moba" or model(tokens, labels=tokens, use_cache=False).loss < before
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    flat = [torch.cat([gradient.flatten() for gradient in some.values()]) for some in (found, reference)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("query_len", [11, 5])
@pytest.mark.parametrize("case", [case for case in CASES if case != "full"])
def test_the_torch_kernels_gradients_are_its_slopes(case, query_len):
    window = 9 if "sinks" in case or "local" in case or "nominal" in case or "extras" in case else 4
    variant = make_variant(case, window)
    if query_len < min(11, getattr(variant, "probe", 0)):
        pytest.skip("the queries that choose have to be there")
    tensors = [tensor.double() for tensor in random_heads(11, 2, 1, 4, batch=1, query_len=query_len)]
    pattern = make_pattern(variant, 11, 0, *tensors[:2], query_len=query_len)

    def run(*heads):
        return kernels.execute("torch", *heads, pattern, SCALING)

    # Parts that have to be merged are computed in float32: a wide step, and room for its curvature.
    inputs = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-2, atol=1e-3, rtol=1e-3)
    exact = kernels.execute("reference", *inputs, pattern, SCALING)
    weights = torch.randn(exact.shape, dtype=exact.dtype, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad(output, inputs, weights) for output in (run(*inputs), exact))
    for gradient, wanted in zip(found, expected, strict=True):
        close(gradient, wanted, "gradients of the torch kernel in float64", rtol=1e-5, atol=1e-6)


# Modes of PyTorch


@pytest.mark.cell("Execution", "torch.inference_mode, then training in the same process")
@pytest.mark.parametrize("case", ["sa", "sa-dyadic", "sa-dyadic-bucket", "moba"])
def test_inference_mode_leaves_nothing_behind(model, case):
    tokens = text(1, 70)
    with sa_patch.apply(model, variant=make_variant(case, decode="sparse")):
        expected = gradients(model, tokens)
        with torch.inference_mode():
            cache = model(tokens[:, :64], use_cache=True).past_key_values
            model(tokens[:, 64:65], past_key_values=cache)
        with torch.no_grad():
            cache = model(tokens[:, :64], use_cache=True).past_key_values
        model.zero_grad()
        model(tokens[:, 64:65], past_key_values=cache).logits.sum().backward()
        for name, gradient in gradients(model, tokens).items():
            assert torch.equal(gradient, expected[name])
    with torch.inference_mode():
        patch = sa_patch.apply(model, variant=make_variant(case))
    assert patch.calls[0]["sparse_prefill"] == 0
    for name, gradient in gradients(model, tokens).items():
        assert torch.equal(gradient, expected[name])


@pytest.mark.cell("Execution", "torch.func.functional_call and torch.func.grad")
def test_functional_calls_run_the_patch_with_other_weights(qwen3):
    tokens = text(1, 48)
    sa_patch.apply(qwen3, variant=make_variant("sa"))
    weights = {name: parameter.detach() * 1.1 for name, parameter in qwen3.named_parameters()}
    other = copy.deepcopy(qwen3)
    other.load_state_dict(weights, strict=False)
    expected = gradients(other, tokens)
    with torch.no_grad():
        found = torch.func.functional_call(qwen3, weights, (tokens,)).logits
        assert torch.equal(found, other(tokens).logits)

    def loss(some):
        return torch.func.functional_call(qwen3, some, (tokens,), {"labels": tokens, "use_cache": False}).loss

    for name, gradient in torch.func.grad(loss)(weights).items():
        close(gradient, expected[name], "torch.func.grad", **CLOSE)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.cell("Execution", "torch.use_deterministic_algorithms: runs, two runs are bit-identical")
@pytest.mark.parametrize("case", CASES)
def test_deterministic_algorithms_give_the_same_bits_twice(qwen3, deterministic, case):
    tokens, mask = text(2, 48), torch.ones(2, 48, dtype=torch.long)
    mask[0, :9] = 0
    with sa_patch.apply(qwen3, variant=make_variant(case), kernel="torch"):
        runs = [gradients(qwen3, tokens) for _ in range(2)]
        outputs = [qwen3(tokens, attention_mask=mask).logits for _ in range(2)]
    assert torch.equal(*outputs)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.cell("Execution", "any number of CPU threads: the same numbers to rounding")
@pytest.mark.parametrize("case", CASES)
def test_the_number_of_threads_changes_rounding_only(case):
    tensors, variant, before = random_heads(300), make_variant(case), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(sa_patch.attention(*tensors, variant, kernel="torch"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        close(other, found[0], "other numbers of threads", rtol=1e-5, atol=1e-5)


# NaN and infinity


@pytest.mark.cell("Execution", "NaN or infinity in a query stays in its row")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("kernel", ["auto", "torch", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_a_bad_query_changes_its_own_row_only(case, kernel, bad):
    query, key, value = random_heads(300)
    expected = sa_patch.attention(query, key, value, make_variant(case), kernel=kernel)
    query[0, 1, 150] = bad
    found = sa_patch.attention(query, key, value, make_variant(case), kernel=kernel)
    assert found[0, 1, 150].isnan().all()
    variant = make_variant(case)
    tile, heads = getattr(variant, "query_block", 1), 2 if getattr(variant, "share", "head") == "group" else 1
    choosers = slice(None) if getattr(variant, "pool", "head") == "layer" else slice(2 - heads, 2)
    together = choosers, slice(150, 150 + tile)  # head 1 and token 150, and who chooses keys with them
    found[0][together] = expected[0][together]
    close(found, expected, "beside a bad query", rtol=1e-6, atol=1e-6)


@pytest.mark.cell("Execution", "NaN or infinity in a key or value is never hidden, and never leaves its sequence")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("kernel", ["auto", "torch", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_a_bad_key_shows_in_every_row_that_sees_it(case, kernel, bad):
    heads, variant = random_heads(300), make_variant(case)
    expected = sa_patch.attention(*heads, variant, kernel=kernel)
    for which in (1, 2):
        tensors = [tensor.clone() for tensor in heads]
        tensors[which][0, :, 150] = bad
        pattern = make_pattern(variant, 300, 0, *tensors[:2])
        sees = pattern.visible().expand(2, 4, 300, 300)[0, :, :, 150]
        found = sa_patch.attention(*tensors, variant, kernel=kernel)
        if which == 2 or bad is torch.nan:
            assert not found[0][sees].isfinite().any()
        assert torch.equal(found[1], expected[1])


@pytest.mark.cell("Execution", "NaN in padding or in another packed document reaches no real token of a prompt")
@pytest.mark.parametrize("case", CASES)
def test_bad_padding_reaches_no_real_row(case):
    heads, variant = random_heads(120), make_variant(case)
    mask = torch.ones(2, 120)
    mask[0, :30], mask[1, 100:] = 0, 0
    expected = sa_patch.attention(*heads, variant, attention_mask=mask)
    poisoned = [torch.where(mask.bool()[:, None, :, None], tensor, torch.nan) for tensor in heads]
    assert torch.equal(sa_patch.attention(*poisoned, variant, attention_mask=mask), expected)


@pytest.mark.parametrize("case", ["sa", "sa-dyadic", "moba", "swa"])
def test_a_bad_document_or_row_does_not_touch_the_others(model, case):
    tokens, table = text(2, 90), model.get_input_embeddings().weight
    tokens[0, 20], tokens[tokens == 96], tokens[0, 21] = 96, 95, 1
    documents = torch.cat([torch.arange(40), torch.arange(50)]).expand(2, -1)
    tokens[0, 60] = 96
    with sa_patch.apply(model, variant=make_variant(case)), torch.no_grad():
        expected = [model(tokens, use_cache=False, **options).logits for options in ({}, {"position_ids": documents})]
        table[96] = torch.nan
        rows, packed = (
            model(tokens, use_cache=False, **options).logits for options in ({}, {"position_ids": documents})
        )
    # In a model with experts a bad token goes to others, whose products then have other shapes: to rounding.
    for found, wanted in (
        (rows[1], expected[0][1]),
        (packed[1], expected[1][1]),
        (packed[0, :40], expected[1][0, :40]),
    ):
        close(found, wanted, "beside a bad document or row", rtol=1e-5, atol=1e-5)
    assert packed[0, 60].isnan().all()
