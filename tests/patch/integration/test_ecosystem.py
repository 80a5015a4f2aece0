"""Laws about patched models in other hands: offloaded, quantized, in a pipeline, in threads, under Liger's kernels.

Expected numbers are those of the plain patched model; where arithmetic stays the same they are met bit for bit.
"""

import copy
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from answers import answers, assert_close, assert_same, logits, patched_answers
from models import make_model
from patch_cases import make_variant
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

import sa_patch

CASES = ("sa", "moba", "swa")
TESTS = Path(__file__).parent
TINY = TESTS.parents[2] / "eval" / "assets" / "qwen3-tiny"


# accelerate


def offload(model, folder, where):
    """Leave a model's weights in CPU memory or on disk; accelerate's hooks bring them in for every call."""
    accelerate = pytest.importorskip("accelerate")
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.cell("Ecosystem", "accelerate: CPU or disk offload, before or after the patch")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_change_nothing(model, tokens, case, where, tmp_path):
    bare = logits(model, tokens)
    expected = patched_answers(model, tokens, case)
    first, later = copy.deepcopy(model), model
    sa_patch.apply(first, variant=make_variant(case))
    offload(first, tmp_path / "first", where)
    offload(later, tmp_path / "later", where)
    sa_patch.apply(later, variant=make_variant(case))
    for found in (first, later):
        assert_same(answers(found, tokens), expected)
        sa_patch.restore(found)
        assert torch.equal(logits(found, tokens), bare)


@pytest.mark.cell("Ecosystem", "accelerate: device_map with layers on disk")
@pytest.mark.parametrize("case", CASES)
def test_a_device_map_with_layers_on_disk_changes_nothing(model, tokens, case, tmp_path):
    pytest.importorskip("accelerate")
    bare = logits(model, tokens)
    expected = patched_answers(model, tokens, case)
    model.save_pretrained(tmp_path / "model")
    parts = ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "layers.2", "norm")
    places = {f"model.{part}": "disk" if part in ("layers.1", "layers.2") else "cpu" for part in parts}
    places["lm_head"] = "cpu"
    loaded = type(model).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk").eval()
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu", "meta"}
    patch = sa_patch.apply(loaded, variant=make_variant(case))
    assert_same(answers(loaded, tokens), expected)
    patch.restore()
    assert torch.equal(logits(loaded, tokens), bare)


# Quantized linears


def dequantized(plain, quantized, dequantize):
    """A copy of the plain model with the weights that the quantized one's linears stand for."""
    twin = copy.deepcopy(plain)
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = dequantize(quantized.get_submodule(name).weight)
    return twin


@pytest.mark.cell("Ecosystem", "torchao: int8 weights, quantized before or after the patch")
@pytest.mark.parametrize("case", CASES)
def test_torchao_linears_give_what_their_dequantized_weights_give(model, tokens, case):
    quantization = pytest.importorskip("torchao.quantization")
    first, later = copy.deepcopy(model), copy.deepcopy(model)
    sa_patch.apply(first, variant=make_variant(case))
    for twin in (first, later):
        quantization.quantize_(twin, quantization.Int8WeightOnlyConfig())
    bare, expected = logits(later, tokens), patched_answers(later, tokens, case)
    assert (bare - logits(model, tokens)).abs().max() > 0.05, "nothing was quantized"
    assert_same(answers(first, tokens), expected)
    sa_patch.restore(first)
    assert torch.equal(logits(first, tokens), bare)
    plain = dequantized(model, later, lambda weight: weight.dequantize())
    assert_close(expected, patched_answers(plain, tokens, case))


@pytest.mark.cell("Ecosystem", "bitsandbytes: int8 weights")
@pytest.mark.parametrize("case", CASES)
def test_bitsandbytes_linears_give_what_the_reference_gives(model, tokens, case, tmp_path):
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(tmp_path)
    settings = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32, **settings).eval()
    bare = logits(loaded, tokens)
    assert (bare - logits(model, tokens)).abs().max() > 0.05, "nothing was quantized"
    expected = patched_answers(loaded, tokens, case, kernel="reference")
    found = patched_answers(loaded, tokens, case)
    # int8 activations: a rounding error may move one of them by a step.
    assert_close(found, expected, 0.05)
    assert torch.equal(logits(loaded, tokens), bare)


# transformers' pipeline


@pytest.mark.cell("Ecosystem", "pipeline('text-generation'), single and batched")
@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_writes_what_generate_writes(case):
    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    texts = ["The quick brown fox jumps over the lazy dog. " * 6, "The key of Anna is 4821. Bob lives in Rome. " * 3]
    options = {"max_new_tokens": 8, "do_sample": False}
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")

    def by_generate():
        found = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            output = model.generate(**inputs, **options)[0, inputs.input_ids.shape[1] :]
            found.append(tokenizer.decode(output, skip_special_tokens=True))
        return found

    def by_pipeline(batch_size):
        found = write(texts, return_full_text=False, batch_size=batch_size, **options)
        return [row[0]["generated_text"] for row in found]

    bare = by_generate()
    with sa_patch.apply(model, variant=make_variant(case)):
        expected = by_generate()
        assert expected != bare
        assert by_pipeline(1) == expected and by_pipeline(2) == expected
    assert by_pipeline(1) == bare


# Threads


def assert_threads_do_not_meet(models, tokens):
    """Models answering at the same time, each prompt in a thread of its own, give what they give one by one."""
    prompts = [tokens[:, :length] for length in (48, 40, 31)]
    expected = [answers(model, prompt) for model, prompt in zip(models, prompts, strict=True)]
    start = threading.Barrier(len(models))

    def run(model, prompt):
        start.wait(timeout=60)
        return [answers(model, prompt) for _ in range(10)]

    with ThreadPoolExecutor(len(models)) as pool:
        for rounds, alone in zip(pool.map(run, models, prompts), expected, strict=True):
            for found in rounds:
                assert_same(found, alone)


@pytest.mark.cell("Ecosystem", "threads: models with different patches")
def test_models_with_different_patches_run_in_threads(tokens):
    models = [make_model("qwen3"), make_model("qwen3"), make_model("qwen3_moe")]
    for model, case in zip(models, CASES, strict=True):
        sa_patch.apply(model, variant=make_variant(case))
    assert_threads_do_not_meet(models, tokens)


@pytest.mark.cell("Ecosystem", "threads: one patched model")
@pytest.mark.parametrize("case", CASES)
def test_one_patched_model_runs_in_threads(model, tokens, case):
    sa_patch.apply(model, variant=make_variant(case))
    assert_threads_do_not_meet([model] * 3, tokens)


# Liger


@pytest.mark.cell("Ecosystem", "Liger's Qwen3 and Qwen3-MoE kernels, before or after the patch")
def test_liger_kernels_change_rounding_only():
    pytest.importorskip("liger_kernel")
    # Without a GPU: Triton interprets kernels, and Liger's MoE must not time variants of its own.
    settings = {"TRITON_INTERPRET": "1", "LIGER_FUSED_MOE_AUTOTUNE": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, TESTS / "run_liger.py"],
        env={**os.environ, **settings, "PYTHONPATH": str(TESTS.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    differences = json.loads(run.stdout.splitlines()[-1])
    assert differences.pop("restored or never patched") == 0
    assert differences["Liger alone"] > 0, "transformers' own arithmetic ran"
    for what, worst in differences.items():
        assert worst < 1e-5, what
