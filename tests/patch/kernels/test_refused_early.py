"""An explicit kernel that can't run a variant where the model is says so when the patch is applied."""

import pytest
import torch
from kernel_stand_ins import plant_kernel, stand_in_for_flash
from models import make_model
from patch_cases import CASES, make_variant, random_heads

import sa_patch
from sa_patch import kernels, probing
from sa_patch.kernels.rules import layout_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["flash", "flex"])
@pytest.mark.parametrize("case", CASES)
def test_apply_refuses_what_the_first_prompt_would(case, name, monkeypatch):
    stand_in_for_flash(monkeypatch)
    variant, tensors = make_variant(case, 100), random_heads(450, batch=1)
    monkeypatch.setattr("sa_patch.kernels.flex.kernel.flexible", lambda query, *_, **more: (query, None))
    try:
        sa_patch.attention(*tensors, variant, kernel=name)
    except NotImplementedError as error:
        expected = str(error).split(": ", 1)[1].split(". Use kernel='auto'")[0]
    else:
        expected = None
    assert probing.refusal(name, variant, CPU, torch.float32, 4, 2, 16) == expected


def test_a_refused_patch_leaves_the_model_as_it_was(qwen3, tokens):
    with torch.no_grad():
        before = qwen3(tokens).logits
        with pytest.raises(
            NotImplementedError, match=r"'flash' can't run 'sa' on this model: it needs a GPU.*before the"
        ):
            sa_patch.apply(qwen3, "sa", 12, kernel="flash")
        assert not sa_patch.is_patched(qwen3)
        assert torch.equal(qwen3(tokens).logits, before)


def test_every_layer_of_a_plan_is_asked(qwen3, monkeypatch):
    plant_kernel(monkeypatch, "windows-only", refuses=["permuted"])
    variants = sa_patch.variant("swa", 12), sa_patch.variant("sa", 12), sa_patch.variant("full")
    with pytest.raises(NotImplementedError, match="'windows-only' can't run 'sa'"):
        sa_patch.apply(qwen3, plan=sa_patch.Plan(variants), kernel="windows-only")


def test_a_skeleton_may_be_put_on_any_device():
    with torch.device("meta"):
        model = make_model()
    assert sa_patch.apply(model, "sa", 12, kernel="flash").active


def test_auto_and_full_attention_are_never_refused():
    for mode, kernel in (("sa", "auto"), ("full", "flash")):
        assert sa_patch.apply(make_model(), mode, 12, kernel=kernel).active


@pytest.mark.parametrize("window", [12, 100, 512, 0.25, 200_000])
@pytest.mark.parametrize("case", CASES)
def test_a_short_pattern_is_built_like_the_long_one(case, window):
    """Whatever the window, at little cost: what kernels refuse is a matter of the build."""
    try:
        variant = make_variant(case, window)
    except ValueError:
        pytest.skip("no such variant")
    found = (
        {layout_of(piece) for piece in probing.pieces_of(probing.probe(variant))} if not variant.always_dense else {}
    )
    pattern = probing.probe(make_variant(case, 100))
    expected = {layout_of(piece) for piece in probing.pieces_of(pattern)} if not variant.always_dense else {}
    assert found == expected


def test_what_ran_is_counted(qwen3, tokens):
    for kernel, expected in (("auto", {"sdpa": 3}), ("torch", {"torch": 3}), ("reference", {"reference": 3})):
        patch = sa_patch.apply(qwen3, "sa", 12, kernel=kernel)
        assert not patch.ran
        with torch.no_grad():
            qwen3(tokens)
        assert patch.ran == expected
    assert set(kernels.KERNELS) >= {"sdpa", "torch", "reference"}
