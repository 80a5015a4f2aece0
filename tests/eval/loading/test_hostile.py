"""Laws of a model that is broken or wrong: one error before anything is evaluated, and every file left as it was."""

import re
import socket
import struct
from pathlib import Path

import pytest
import torch
from eval_helpers import save_tiny_model, tiny_model
from hostile_helpers import QUERY, WEIGHTS, copied, edit_json, edit_tensors, loaded, refuses, shard
from hypothesis import HealthCheck, given, settings, strategies
from safetensors.torch import load_file

from sa_eval.settings.values import SettingsError

BOTH = ("qwen3-tiny", "qwen3-moe-tiny")
INDEX, EMBEDDINGS = "model.safetensors.index.json", "model.embed_tokens.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Relative names, so that messages are the same everywhere, and no way out of the machine."""

    def no_network(self, address):
        raise AssertionError(f"tried to reach {address}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    return tmp_path


def cut(folder, size):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def replace_bytes(folder, old, new):
    content = (folder / WEIGHTS).read_bytes()
    assert old in content
    (folder / WEIGHTS).write_bytes(content.replace(old, new, 1))


def number(name, value):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors[name].view(-1).__setitem__(-1, value))


def without(name):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(name))


def with_tensor(name, make):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: make(tensors)}))


def transposed(name):
    return with_tensor(name, lambda tensors: tensors[name].T.contiguous())


def config(file="config.json", **changes):
    return lambda folder: edit_json(folder, file, **changes)


def text(file, content):
    return lambda folder: (folder / file).write_text(content)


def doubled(folder):
    (folder / "part-1.safetensors").write_bytes((folder / "part-0.safetensors").read_bytes())


def misnumbered(folder):
    """A gap in the numbers of the experts: the later ones would move up, and the count would still be right."""
    edit_tensors(folder, lambda tensors: tensors.update({EXPERT.replace(".2.", ".9."): tensors.pop(EXPERT)}))


def then(*steps):
    return lambda folder: [step(folder) for step in steps]


def case(row, damage, message, *models):
    """What is done to which bundled models, what the refusal says, and its row in the support page.

    Without a row: the refusal quotes a library, whose words change from version to version.
    """
    marks = pytest.mark.cell("Input", f"sa-eval, {row}") if row else ()
    return [pytest.param(model, damage, message, marks=marks) for model in models or BOTH[:1]]


FILE, SHARD = "a weight file damaged, cut off or empty", "a shard, or all weights, not there"
INDEX_ROW, EXPERTS = "an index that is broken or leaves the folder", "experts missing, misnumbered or unlike"
TOO_MANY, CONTRADICTS = "a tensor too many, or twice", "config.json that contradicts the weights"
NO_JSON, NO_TOKENIZER = "files that are no JSON", "no tokenizer"
DAMAGES = [
    *case(FILE, lambda folder: cut(folder, 0), "is damaged or cut off"),
    *case(FILE, lambda folder: cut(folder, 400), "is damaged or cut off"),
    *case(FILE, lambda folder: cut(folder, -1), "is damaged or cut off", *BOTH),
    *case(FILE, lambda folder: replace_bytes(folder, b"\0" * 6, b"\xff" * 6), "is damaged or cut off"),
    *case(FILE, lambda folder: replace_bytes(folder, b'"BF16"', b'"BF17"'), "is damaged or cut off"),
    *case(SHARD, lambda folder: (folder / WEIGHTS).unlink(), "has no model.safetensors and no"),
    *case(
        SHARD,
        then(shard, lambda folder: (folder / "part-1.safetensors").unlink()),
        "has no 'part-1.safetensors', which its index names",
        *BOTH,
    ),
    *case(INDEX_ROW, lambda folder: shard(folder, **{QUERY: "../part-0.safetensors"}), "names '../part-0.safetensors'"),
    *case(INDEX_ROW, lambda folder: shard(folder, **{QUERY: "/etc/x.safetensors"}), "names '/etc/x.safetensors'"),
    *case(INDEX_ROW, lambda folder: shard(folder, **{QUERY: 3}), "names 3: only .safetensors files inside"),
    *case(INDEX_ROW, then(shard, text(INDEX, '{"metadata": {}, "weight_map": {}}')), "no weight_map"),
    *case(NO_JSON, then(shard, text(INDEX, "{")), "index.json is not valid JSON"),
    *case(
        "a missing tensor",
        then(shard, config(INDEX, weight_map={"model.norm.weight": "part-0.safetensors"})),
        r"lacks 'model\..* and \d+ more",
    ),
    *case("a missing tensor", without(QUERY), f"lacks '{QUERY}' .they would be random numbers", *BOTH),
    *case("a missing tensor", without(EMBEDDINGS), "lacks .*embed_tokens.weight", *BOTH),
    *case(EXPERTS, without(EXPERT), f"lacks '{EXPERT}' beside its 4 experts", BOTH[1]),
    *case(EXPERTS, misnumbered, f"lacks '{EXPERT}' beside its 4 experts", BOTH[1]),
    *case(EXPERTS, transposed(EXPERT), rf"'{EXPERT}' .* is \[128, 384\], expert 0 has \[384, 128\]", BOTH[1]),
    *case(
        TOO_MANY,
        with_tensor("model.layers.0.other.weight", lambda tensors: torch.ones(2)),
        "holds 'model.layers.0.other.weight' .the model has no place",
        *BOTH,
    ),
    *case(TOO_MANY, then(shard, doubled), "is in two files"),
    *case("a tensor of another shape", transposed(QUERY), r"is \[128, 256\] in .* and \[256, 128\]", *BOTH),
    *case(
        "whole numbers as weights",
        with_tensor(QUERY, lambda tensors: torch.ones_like(tensors[QUERY], dtype=torch.int16)),
        f"'{QUERY}' .*holds I16",
        *BOTH,
    ),
    *case("NaN or infinity in the weights", number(QUERY, float("nan")), f"'{QUERY}' .*holds NaN", *BOTH),
    *case(
        "NaN or infinity in the weights", number("model.norm.weight", float("-inf")), "'model.norm.weight' .*infinity"
    ),
    *case("NaN or infinity in the weights", number(EXPERT, float("nan")), "layers.1.mlp.experts.* holds NaN", BOTH[1]),
    *case(NO_JSON, text("config.json", '{"model_type": '), "config.json is not valid JSON"),
    *case(NO_JSON, text("config.json", "[" * 100_000), "config.json is not valid JSON"),
    *case(NO_JSON, text("config.json", "[]"), "must hold a JSON object, found a list"),
    *case(NO_JSON, text("generation_config.json", "{"), "generation_config.json is not valid JSON"),
    *case(NO_JSON, text("tokenizer_config.json", "{"), "tokenizer_config.json is not valid JSON"),
    *case("an unknown model_type", config(model_type="qwen99"), "model_type 'qwen99', unknown"),
    *case("an unknown model_type", config(model_type=["qwen3"]), r"model_type \['qwen3'\], unknown"),
    *case("an unknown model_type", config(model_type="t5"), "describes a t5, which is no causal language model"),
    *case(CONTRADICTS, config(model_type="llama"), "holds 'model.layers.0.self_attn.k_norm"),
    *case(CONTRADICTS, config(num_hidden_layers=7, layer_types=None), "lacks 'model.layers.[46]", *BOTH),
    *case(CONTRADICTS, config(num_hidden_layers=1, layer_types=None), "holds 'model.layers.1", *BOTH),
    *case(CONTRADICTS, config(num_hidden_layers=10**6, layer_types=None), "asks for 1000000 layers"),
    *case(CONTRADICTS, config(hidden_size=96), r"\[3755, 128\] .* and \[3755, 96\]", *BOTH),
    *case(CONTRADICTS, config(num_local_experts=6), r"\[4, .* and \[6, ", BOTH[1]),
    *case(None, config(hidden_size="wide"), "cannot load the model 'broken': .*hidden_size"),
    *case(None, config(num_attention_heads=0), "cannot load the model 'broken'"),
    *case(CONTRADICTS, config(tie_word_embeddings=False), "lacks 'lm_head.weight'", *BOTH),
    *case(
        CONTRADICTS,
        with_tensor("lm_head.weight", lambda tensors: tensors[EMBEDDINGS] * 2),
        "ties the output to the embeddings",
        *BOTH,
    ),
    *case("config.json that gives NaN", config(rms_norm_eps=float("nan")), "answers a plain sentence with NaN", *BOTH),
    *case("config.json that gives NaN", config(rope_parameters={"rope_theta": 0, "rope_type": "default"}), "with NaN"),
    *case(NO_TOKENIZER, lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "knows no word"),
    *case(None, lambda folder: (folder / "tokenizer.json").unlink(), "cannot load the tokenizer of the model 'broken'"),
    *case(None, text("tokenizer.json", '{"version": "1.0", '), "cannot load the tokenizer of the model 'broken'"),
    *case(
        "the tokenizer of a larger model",
        then(
            config(vocab_size=200, pad_token_id=None, eos_token_id=None),
            with_tensor(EMBEDDINGS, lambda tensors: tensors[EMBEDDINGS][:200].clone()),
        ),
        "gives token 3754, the model has 200 embeddings",
    ),
    *case("an adapter in the folder", text("adapter_config.json", "{}"), "merge it into the model first"),
    *case(
        "a distributed checkpoint",
        lambda folder: (folder / WEIGHTS).rename(folder / "shard-00001-model-00001-of-00001.safetensors"),
        "is a distributed checkpoint",
    ),
]


@pytest.mark.parametrize(("model", "damage", "message"), DAMAGES)
def test_a_broken_model_is_refused_in_one_line_and_nothing_is_touched(place, capsys, refused, model, damage, message):
    damage(copied(place, "broken", model))
    with refused(SettingsError, match=message):
        loaded("broken")
    assert re.search(message, refuses("broken", capsys))


@pytest.mark.cell("Input", "sa-eval, tied embeddings that are not in the file twice")
@pytest.mark.parametrize("model", BOTH)
def test_tied_embeddings_are_legitimately_absent(place, model):
    tensors = load_file(copied(place, "tied", model) / WEIGHTS)
    assert "lm_head.weight" not in tensors
    found = loaded("tied", dtype="bfloat16").model
    assert torch.equal(found.lm_head.weight, tensors[EMBEDDINGS])
    assert found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()


@pytest.mark.cell("Input", "sa-eval, tied embeddings that are in the file twice")
@pytest.mark.parametrize("model", BOTH)
def test_an_equal_output_beside_tied_embeddings_changes_nothing(place, model):
    alone = loaded(copied(place, "alone", model)).model
    with_tensor("lm_head.weight", lambda tensors: tensors[EMBEDDINGS].clone())(copied(place, "twice", model))
    assert_same(loaded("twice").model, alone)


def test_buffers_of_older_releases_are_not_a_tensor_too_many(place):
    expected = loaded(copied(place, "new")).model
    with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", lambda tensors: torch.ones(16))(copied(place, "old"))
    assert_same(loaded("old").model, expected)


@pytest.mark.cell("Input", "sa-eval, weights in several files")
@pytest.mark.parametrize("model", BOTH)
def test_shards_give_the_same_weights(place, model):
    whole = loaded(copied(place, "whole", model)).model
    shard(copied(place, "shards", model))
    assert_same(loaded("shards").model, whole)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=strategies.floats(0, 1, exclude_max=True), byte=strategies.integers(0, 255))
def test_any_changed_byte_of_a_header_is_refused_or_harmless(place, position, byte):
    """Names, shapes, offsets and dtypes are all in the header: none of them may be wrong without a word."""
    if not Path("flipped").exists():
        save_tiny_model(place / "flipped")
        Path("good").write_bytes(Path("flipped", WEIGHTS).read_bytes())
    content = bytearray(Path("good").read_bytes())
    content[int(position * (8 + struct.unpack("<Q", content[:8])[0]))] = byte
    Path("flipped", WEIGHTS).write_bytes(content)
    try:
        found = loaded("flipped").model
    except SettingsError:
        return
    assert_same(found, tiny_model())


def assert_same(found, expected):
    wanted = expected.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


def test_a_used_run_directory_keeps_its_records_beside_a_broken_model(place, capsys):
    cut(copied(place, "broken"), 100)
    records = place / "earlier" / "records"
    records.mkdir(parents=True)
    (records / "full.seed0.jsonl").write_text('{"score": 1.0}\n')
    assert "already holds something" in refuses("broken", capsys, "--out", "earlier")
    assert (records / "full.seed0.jsonl").read_text() == '{"score": 1.0}\n'
