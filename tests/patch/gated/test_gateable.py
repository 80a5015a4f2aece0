"""Where gates can't be put, can't be counted or would be lost, nothing goes on in silence."""

import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from gated_models import WINDOW, gated, logits, text, with_random_gates
from models import make_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard

import sa_patch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT asks transformers for it
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),  # PyTorch's own
]
LORA = {"target_modules": ["q_proj"], "modules_to_save": ["gate_swa", "gate_sa"]}


def _compiled(model):
    return torch.compile(model)


def _parallel(model):
    return nn.DataParallel(model)


def _lora(model):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def _adapter(model):
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    return model


def _offloaded(model):
    cpu_offload(model, execution_device="cpu")
    return model


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (_compiled, "wrapped by torch.compile"),
        (_parallel, "wrapped by torch.nn.DataParallel"),
        (_lora, r"then get_peft_model\(model, LoraConfig"),
        (_adapter, r"then get_peft_model\(model, LoraConfig"),
        (_offloaded, "are offloaded: load it without that"),
    ],
)
def test_gates_come_before_everything_that_lists_parameters(qwen3, wrap, message):
    model = wrap(qwen3)
    with pytest.raises(ValueError, match=message):
        sa_patch.gate(model, WINDOW)
    assert not sa_patch.is_patched(model) and not any("gate_s" in name for name, _ in model.named_parameters())


def test_a_sharded_model_is_refused(qwen3, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        fully_shard(qwen3.model.layers[0])
        with pytest.raises(ValueError, match="wrapped by fully_shard"):
            sa_patch.gate(qwen3, WINDOW)
        with pytest.raises(ValueError, match="wrapped by DistributedDataParallel"):
            sa_patch.gate(nn.parallel.DistributedDataParallel(make_model("qwen3")), WINDOW)
    finally:
        torch.distributed.destroy_process_group()


def test_a_gated_model_may_be_offloaded(tmp_path):
    expected = logits(gated(), text(2, 40))
    for offload in (
        lambda model: cpu_offload(model, "cpu"),
        lambda model: disk_offload(model, tmp_path / "off", "cpu"),
    ):
        model = gated()
        offload(model)
        assert torch.equal(logits(model, text(2, 40)), expected)
    gated().save_pretrained(tmp_path)
    devices = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    devices |= {f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(len(gated().model.layers))}
    with pytest.raises(ValueError, match="are offloaded"):
        sa_patch.from_pretrained(tmp_path, device_map=devices, offload_folder=tmp_path / "off")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("weights", [torch.uint8, torch.float8_e4m3fn])
def test_gates_beside_quantised_weights_are_of_the_models_precision(kind, weights):
    model = make_model(kind).to(torch.bfloat16)
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            part = getattr(layer.self_attn, name)
            part.weight = nn.Parameter(torch.zeros(part.weight.shape).to(weights), requires_grad=False)
    sa_patch.gate(model, WINDOW)
    found = {one.dtype for name, one in model.named_parameters() if "gate_s" in name}
    assert found == {torch.bfloat16}


def test_copies_whose_count_is_lost_are_refused():
    """What DataParallel does at every step: shallow copies of the modules."""

    def replicated(model):
        modules = list(model.modules())
        copies = dict(zip(modules, [module._replicate_for_data_parallel() for module in modules], strict=True))
        for module, copy in copies.items():
            for name, part in module._modules.items():
                copy._modules[name] = copies[part]
            copy._parameters = dict(module._parameters)
            copy._buffers = dict(module._buffers)
        return copies[model]

    ids = text(1, 40)
    with pytest.raises(NotImplementedError, match="torchrun --nproc_per_node N"):
        replicated(gated().train())(ids)
    replicated(gated(resample="never").train())(ids)


def test_generation_in_training_mode_is_told():
    model = gated(horizon="dyadic").train()
    with pytest.warns(UserWarning, match=r"Call model.eval\(\) before it"):
        model.generate(text(1, 20), max_new_tokens=2, do_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(text(1, 20), labels=text(1, 20)).loss.backward()
        model.eval().generate(text(1, 20), max_new_tokens=2, do_sample=False)


def test_gates_that_another_patch_replaced_are_not_lost_by_saving(tmp_path):
    model = gated()
    with sa_patch.apply(model, "swa", 8):
        patch = sa_patch.apply(model, "sa", 8)
        with pytest.raises(ValueError, match=r"with gated: model.save_pretrained"):
            model.save_pretrained(tmp_path)
        patch.restore()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(sa_patch.from_pretrained(tmp_path), text(2, 40)), logits(model, text(2, 40)))
    sa_patch.restore(model)
    back = with_random_gates(model)
    expected = logits(model, text(2, 40))
    sa_patch.apply(model, "swa", 8)
    with back:  # the way out that the message names
        model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(sa_patch.from_pretrained(tmp_path / "again"), text(2, 40)), expected)
    sa_patch.restore(model)
    model.save_pretrained(tmp_path / "plain")  # asked for


def test_adapters_are_saved_beside_a_gated_model(tmp_path):
    """The order that works: gate, save, adapt; and back."""
    from peft import PeftModel

    base = gated()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(**LORA))
    for name, one in model.named_parameters():
        if one.requires_grad:
            one.data += 0.1 * torch.ones_like(one) * (1 + len(name) % 3)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(sa_patch.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again, text(2, 40)), logits(model, text(2, 40)))
    with pytest.raises(NotImplementedError, match="save it before it gets them"):
        model.get_base_model().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a PEFT adapter"):
        sa_patch.from_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(sa_patch.from_pretrained(tmp_path / "merged"), text(2, 40)), logits(merged, text(2, 40)))
