"""Measures patched models under Liger's kernels against patched models without them; test_ecosystem.py judges.

A process of its own, because Liger replaces functions and classes inside transformers for good. Needs no GPU: Triton
interprets the kernels (TRITON_INTERPRET=1). Prints one line of JSON, by what was compared the worst difference.
"""

import copy
import json

import liger_kernel.ops.rms_norm
import liger_kernel.transformers as liger
import numpy
import torch
import triton.language as language
from answers import logits
from models import make_model
from patch_cases import make_variant
from triton.runtime import interpreter

import sa_patch

# Small, because interpreted kernels take seconds. Logits are about 5 in size.
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
TOKENS = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(1))
SA = make_variant("sa", 4)


def mend_interpreter() -> None:
    """Triton's interpreter lacks two things that compiled kernels have: floats with a dtype, and libdevice's rsqrt."""
    convert = interpreter._implicit_cvt

    def convert_floats_too(argument):
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(numpy.array([argument], numpy.float32), language.float32)
        return language.tensor(handle, language.float32)

    interpreter._implicit_cvt = convert_floats_too
    liger_kernel.ops.rms_norm.rsqrt = lambda x: language.math.rsqrt(x)


def patched(model, variant, measure, **options):
    with sa_patch.apply(model, variant=variant, **options):
        return measure(model)


def prompt(model):
    return logits(model, TOKENS)


def generated(model):
    """Logits of the last prompt token and of three more."""
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.cat(model.generate(TOKENS, **options).logits)


def gradients(model):
    """Of the loss, for every weight of the attention, relative to the largest."""
    model.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    found = torch.cat([weight.grad.flatten() for name, weight in model.named_parameters() if "self_attn" in name])
    return found / found.abs().max()


def worst(found, expected):
    return (found - expected).abs().max().item()


def with_liger(kind, plain):
    """(a copy, patched with SA before Liger's kernels came; another, made of Liger's classes and not patched)."""
    apply_liger = getattr(liger, f"apply_liger_kernel_to_{kind}")
    first = copy.deepcopy(plain)
    sa_patch.apply(first, variant=SA)
    apply_liger(model=first)  # replaces the classes too
    later = type(plain)(plain.config).eval()
    assert type(later.model.norm) is liger.LigerRMSNorm
    later.load_state_dict(plain.state_dict())
    apply_liger(model=later)  # the loss
    return first, later


def measure_qwen3():
    plain = make_model("qwen3", num_hidden_layers=2, **SHAPE)
    moba = make_variant("moba", 4)
    bare, sparse, text = prompt(plain), patched(plain, SA, prompt), patched(plain, moba, generated)
    slopes = patched(plain, SA, gradients, kernel="reference")
    first, later = with_liger("qwen3", plain)
    with_liger_alone = prompt(later)
    found = {
        "sa, then Liger": worst(prompt(first), sparse),
        "Liger, then sa": worst(patched(later, SA, prompt), sparse),
        "Liger, then moba, generated": worst(patched(later, moba, generated), text),
        "gradients": worst(patched(later, SA, gradients), slopes),
        "Liger alone": worst(with_liger_alone, bare),
    }
    sa_patch.restore(first)
    return {**found, "restored or never patched": worst(prompt(first), with_liger_alone)}


def measure_qwen3_moe():
    plain = make_model("qwen3_moe", num_hidden_layers=1, **SHAPE)
    sparse = patched(plain, SA, prompt)
    first, later = with_liger("qwen3_moe", plain)
    return {
        "MoE: sa, then Liger": worst(prompt(first), sparse),
        "MoE: Liger, then sa": worst(patched(later, SA, prompt), sparse),
    }


if __name__ == "__main__":
    mend_interpreter()
    print(json.dumps({**measure_qwen3(), **measure_qwen3_moe()}))
