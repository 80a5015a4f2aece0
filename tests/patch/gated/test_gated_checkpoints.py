"""Checkpoints of gated models: loaded again they are the same, and nothing takes them for plain models in silence."""

import json

import gated_models
import pytest
import torch
from gated_models import text, with_random_gates
from models import make_model
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model
from transformers.utils import logging

import sa_patch
from sa_eval.loading.model_files import check_config
from sa_eval.settings.values import SettingsError


def gated(kind="qwen3", **options):
    return gated_models.gated(kind, seed=5, sinks=1, resample="step", **options)


def logits(model):
    return gated_models.logits(model, text(2, 40))


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "llama"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "30KB"}], ids=["whole", "sharded"])
def test_a_checkpoint_gives_the_same_logits_again(tmp_path, kind, shards):
    model = gated(kind, horizon="dyadic")
    model.train()
    model(text(1, 40))
    model.eval().save_pretrained(tmp_path, **shards)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shards
    again = sa_patch.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model)) and not again.training
    assert int(again.model.gate_steps.count) == 1
    assert again.config.model_type == model.config.model_type == kind
    again.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(sa_patch.from_pretrained(tmp_path / "second")), logits(model))
    half = sa_patch.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", [Qwen3ForSequenceClassification, Qwen3Model])
def test_a_model_for_something_else_than_text_loads_as_what_it_was(tmp_path, kind):
    torch.manual_seed(0)
    model = kind(make_model("qwen3").config)
    with_random_gates(model)
    model.eval().save_pretrained(tmp_path)
    again = sa_patch.from_pretrained(tmp_path)
    assert type(again) is kind
    with torch.no_grad():
        found, expected = again(text(2, 40)), model(text(2, 40))
    assert torch.equal(found[0], expected[0])


@pytest.fixture
def told(caplog):
    """What transformers says."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def test_a_plain_loader_does_not_take_it_for_a_plain_model(tmp_path, told):
    gated().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sa_patch_gated"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    Qwen3ForCausalLM.from_pretrained(tmp_path)  # the class by name loads what it knows
    assert "sa_patch_gated" in told.text and "gate_sa" in told.text and "UNEXPECTED" in told.text


def test_loading_says_nothing_that_is_no_fault(tmp_path, told):
    gated().save_pretrained(tmp_path)
    sa_patch.from_pretrained(tmp_path)
    assert "UNEXPECTED" not in told.text


def test_a_plain_checkpoint_with_a_patch_beside_it_loads_patched(tmp_path, qwen3):
    qwen3.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no sa_patch.json: it is a plain model"):
        sa_patch.from_pretrained(tmp_path)
    sa_patch.apply(qwen3, "swa", 8).save(tmp_path)
    again = sa_patch.from_pretrained(tmp_path)
    assert sa_patch.is_patched(again) and torch.equal(logits(again), logits(qwen3))


def test_gates_that_do_not_fit_are_refused(tmp_path):
    gated().save_pretrained(tmp_path)
    file = tmp_path / "sa_patch.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "dense_layers": [0]}))
    with pytest.raises(ValueError, match="different gates"):
        sa_patch.from_pretrained(tmp_path)
    file.write_text(json.dumps(config))
    more = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    held = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**held, **more}))
    with pytest.raises(ValueError, match="does not fit Qwen3ForCausalLM"):
        sa_patch.from_pretrained(tmp_path)


def test_weights_of_another_size_are_named(tmp_path):
    gated().save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**held, "intermediate_size": held["intermediate_size"] + 2}))
    with pytest.raises(ValueError, match=r"does not fit Qwen3ForCausalLM.*gate_proj.weight"):
        sa_patch.from_pretrained(tmp_path)


def test_a_checkpoint_of_parameters_alone_loads_and_tells_that_the_count_is_gone(tmp_path):
    """As DeepSpeed's ZeRO-3 writes it."""
    model = gated()
    weights = {name: value for name, value in model.state_dict().items() if "_extra_state" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.warns(UserWarning, match="does not say how many steps"):
        again = sa_patch.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model)) and int(again.model.gate_steps.count) == 0


def test_a_kernel_that_is_not_here_can_be_replaced(tmp_path, qwen3):
    gated(kernel="reference").save_pretrained(tmp_path / "gated")
    sa_patch.apply(qwen3, "swa", 8, kernel="reference")
    qwen3.save_pretrained(tmp_path / "plain")
    sa_patch.apply(qwen3, "swa", 8, kernel="reference").save(tmp_path / "plain")
    for folder in (tmp_path / "gated", tmp_path / "plain"):
        file = folder / "sa_patch.json"
        file.write_text(file.read_text().replace('"reference"', '"flash"'))
        with pytest.raises(NotImplementedError, match="kernel 'flash'"):
            sa_patch.from_pretrained(folder)
        found = [sa_patch.from_pretrained(folder, kernel=name) for name in ("auto", "reference")]
        torch.testing.assert_close(*(logits(model) for model in found), rtol=1e-4, atol=1e-5)
    sa_patch.restore(qwen3)
    assert sa_patch.load(qwen3, tmp_path / "plain", kernel="reference").config["kernel"] == "reference"


def test_sa_eval_says_what_it_is(tmp_path):
    gated().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"was trained with gates.*sa_patch.from_pretrained"):
        check_config("mine", json.loads((tmp_path / "config.json").read_text()))


def test_a_folder_may_be_written_again_in_another_form(tmp_path):
    model = gated()
    for form in ({"max_shard_size": "20KB"}, {}, {"max_shard_size": "20KB"}):
        model.model.layers[0].self_attn.q_proj.weight.data += 0.1
        model.model.layers[0].self_attn.gate_sa.weight.data += 0.1
        model.save_pretrained(tmp_path, **form)
        assert torch.equal(logits(sa_patch.from_pretrained(tmp_path)), logits(model))


def test_arguments_of_transformers_arrive_and_others_are_refused(tmp_path):
    gated().save_pretrained(tmp_path)
    assert sa_patch.from_pretrained(tmp_path, use_cache=False).config.use_cache is False
    with pytest.raises(ValueError, match="output_loading_info= can't be given"):
        sa_patch.from_pretrained(tmp_path, output_loading_info=True)
    with pytest.raises(ValueError, match="there is no folder"):
        sa_patch.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "sa_patch.json").unlink()
    with pytest.raises(ValueError, match=r"a gated model without its sa_patch.json"):
        sa_patch.from_pretrained(tmp_path)


def test_what_would_lose_the_gates_is_refused(tmp_path):
    model = gated()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(NotImplementedError, match=r"holds adapters.*modules_to_save"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model = gated()
    model.save_pretrained(tmp_path)
    sa_patch.restore(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a plain model beside the sa_patch.json of a gated one"):
        sa_patch.from_pretrained(tmp_path)
