"""Laws of GGUF files: the model is the one that was saved, its identity says how, and what can't be had is refused."""

import builtins
import hashlib
import json
import os
from pathlib import Path

import gguf_helpers
import pytest
import torch
from eval_helpers import tiny_tokenizer
from hostile_helpers import edit_json, loaded

import sa_patch
from sa_eval.cli import main
from sa_eval.loading import gguf_file, models, sources
from sa_eval.settings.config import SettingsError, settings_from

TEXT = "The clerk examined the bundle near the square. It was late and the river rose."


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tiny_tokenizer()(TEXT)["input_ids"]]), use_cache=False).logits


@pytest.mark.parametrize("architecture", gguf_helpers.FAMILIES)
def test_a_gguf_file_gives_the_model_that_was_saved(place, architecture):
    model = gguf_helpers.random_model(architecture)
    found = loaded(gguf_helpers.write(place / "tiny.gguf", model, architecture))
    assert type(found.model) is type(model)
    torch.testing.assert_close(logits(found.model), logits(model), rtol=0, atol=0)
    assert found.tokenizer(TEXT)["input_ids"] == tiny_tokenizer()(TEXT)["input_ids"]
    with sa_patch.apply(found.model, mode="swa", window=8), sa_patch.apply(model, mode="swa", window=8):
        torch.testing.assert_close(logits(found.model), logits(model), rtol=0, atol=0)
        assert not torch.allclose(logits(model)[:, -1], logits(loaded("tiny.gguf").model)[:, -1])


def test_the_identity_says_file_hash_and_quantisation(place):
    file = gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("llama"), "llama", quantized=True)
    found = loaded(file).identity.to_dict()
    assert found["name"] == "tiny" and found["file"] == "tiny.gguf"
    assert found["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["quantization"] == {"F32": 5, "Q8_0": 16}


def test_a_run_on_a_gguf_file_can_be_resumed(place, capsys):
    gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("llama"), "llama")
    quick = ["--modes", "swa", "--window", "32", "--lengths", "320", "--tasks", "cloze", "--num-samples", "2"]
    assert main(["--model", "tiny.gguf", *quick, "--threads", "1", "--no-speed", "--out", "run"]) == 0
    assert json.loads((place / "run" / "manifest.json").read_text())["model"]["file"] == "tiny.gguf"
    assert main(["resume", "run"]) == 0
    for file in (place / "run" / "records").iterdir():
        file.unlink()
    gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("llama", seed=1), "llama")
    assert main(["resume", "run"]) == 2
    assert "weights" in capsys.readouterr().err


def test_the_shape_alone_needs_no_weights(place):
    file = gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("qwen2"), "qwen2")
    model = models.empty_model(sources.find(str(file)), settings_from({"model": str(file)}))
    assert model.device.type == "meta" and model.config.num_hidden_layers == 2


def test_what_lies_beside_the_file_is_none_of_its_business(place):
    file = gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("qwen2"), "qwen2")
    before = logits(loaded(file).model)
    edit_json(place, "adapter_config.json", base_model_name_or_path="someone/else", peft_type="LORA")
    edit_json(place, "config.json", model_type="bert")
    (place / "tokenizer.json").write_text("{}")
    torch.testing.assert_close(logits(loaded(file).model), before, rtol=0, atol=0)


def unsupported(place):
    writer = gguf_helpers.gguf.GGUFWriter(place / "tiny.gguf", "rwkv6")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_llama(place, **more):
    return gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("llama"), "llama", **more)


def cut_off(place):
    file = of_llama(place)
    file.write_bytes(file.read_bytes()[:-5000])


REFUSED = {
    "an architecture that transformers does not read": (unsupported, "architecture rwkv6 is not supported yet"),
    "a file that is cut off": (cut_off, "damaged, cut off or no GGUF file"),
    "a file of something else": (lambda place: (place / "tiny.gguf").write_text("hello"), "no GGUF file"),
    "an empty file": (lambda place: (place / "tiny.gguf").touch(), "no GGUF file"),
    "scaled positions in the metadata": (
        lambda place: of_llama(place, facts={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
        "scales its position embeddings .*rope.scaling.type",
    ),
    "scaled positions as a tensor": (
        lambda place: of_llama(place, more={"rope_freqs.weight": torch.ones(8)}),
        "scales its position embeddings .*rope_freqs.weight",
    ),
    "a size that transformers does not read": (
        lambda place: gguf_helpers.write(place / "tiny.gguf", gguf_helpers.random_model("qwen3", head_dim=16), "qwen3"),
        "transformers reads of the GGUF file's sizes, which is not all of them",
    ),
    "biases, which transformers skips for this family": (
        lambda place: of_llama(place, more={"blk.0.attn_q.bias": torch.ones(64)}),
        "transformers read .* of them into LlamaForCausalLM",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_would_be_another_model_is_refused(place, case):
    make, reason = REFUSED[case]
    make(place)
    with pytest.raises(SettingsError, match=reason):
        loaded("tiny.gguf")


def test_a_file_that_is_not_there_is_told(place):
    with pytest.raises(SettingsError, match="there is no such file"):
        loaded("models/tiny.gguf")


def test_the_missing_package_is_named(place, monkeypatch):
    of_llama(place)
    honest = builtins.__import__

    def without_gguf(name, *rest, **more):
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return honest(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(SettingsError, match=r"pip install 'sa-patch\[eval,gguf\]'"):
        gguf_file.read("tiny", place / "tiny.gguf")


@pytest.mark.slow
def test_a_published_gguf_file_gives_the_same_model_as_its_safetensors():
    folder = Path(os.environ.get("SA_PATCH_SMOLLM2") or "nowhere")
    files = sorted(folder.glob("*.gguf"))
    if not files:
        pytest.skip("SA_PATCH_SMOLLM2 names no folder with a GGUF file: python scripts/get_smollm2.py FOLDER")
    found, expected = loaded(files[0]), loaded(folder)
    ids = torch.tensor([expected.tokenizer(TEXT)["input_ids"]])
    assert found.tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    with torch.inference_mode():
        assert torch.equal(found.model(input_ids=ids).logits, expected.model(input_ids=ids).logits)
    quantization = found.identity.quantization
    assert quantization is not None and quantization["Q4_1"] == 210
