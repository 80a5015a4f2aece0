"""`sa_patch.tune` on a device with planted kernels and times: it takes what is right and fastest, never by noise."""

import json
import random

import pytest
import torch
from kernel_stand_ins import plant_kernel, plant_times
from models import make_model
from patch_cases import CASES, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels
from sa_patch.kernels import rules
from sa_patch.tuning import breadth_first, search
from sa_patch.tuning.arms import declared_arms
from sa_patch.variants import modes

pytestmark = pytest.mark.usefixtures("rules_folder")

SMALL = {"device": "cpu", "heads": 4, "kv_heads": 2, "head_dim": 16, "lengths": (128, 400), "windows": (12, 40)}
WITHOUT = ((127, "sdpa"), (None, "torch"))  # what the planted times of torch and sdpa say by themselves


@pytest.fixture
def device(monkeypatch):
    """A device with the kernels torch, sdpa and those that a test plants; returns the function that sets the times."""
    table = dict(kernels.KERNELS)  # put back as a whole, because the order of a table is its meaning
    for name in ("cpp", "triton", "flash", "flex"):
        del kernels.KERNELS[name]

    made = search.Search.__init__

    def timed(milliseconds):
        clock = plant_times(monkeypatch, milliseconds)

        def init(self, *args, **more):
            made(self, *args, clock=clock, **more)

        monkeypatch.setattr(search.Search, "__init__", init)

    yield timed
    kernels.KERNELS.clear()
    kernels.KERNELS.update(table)


def by_name(**milliseconds):
    return lambda name, length, window: milliseconds.get(name, 50.0)


def held(tuned):
    (entry,) = rules.parse(tuned.path.read_text()).entries
    return entry


def test_every_layout_that_variants_declare_is_tuned():
    arms = declared_arms()
    sparse = {name for name, mode in modes().items() if not mode.variant.always_dense}
    assert {arm.name for arm in arms} >= sparse
    timed = [arm for arm in arms if arm.timed]
    assert {layout for arm in timed for layout in arm.layouts} == set(rules.shipped()["cpu"].entries[0].crossover)
    assert any(arm.pieces for arm in timed)
    by_themselves = {"routed", "vertical-slash"}  # have sinks and a local window without being asked
    assert {arm.variant.name for arm in arms if not arm.timed} == {arm.variant.name for arm in timed} - by_themselves


def test_the_fastest_right_kernel_is_taken_and_runs_from_then_on(device, monkeypatch):
    plant_kernel(monkeypatch, "fast")
    device(by_name(full=20.0, fast=2.0, torch=10.0, sdpa=40.0))
    variant, tensors = make_variant("sa", 40), random_heads(400)
    before = sa_patch.attention(*tensors, variant)
    tuned = sa_patch.tune(**SMALL, seconds=500)
    assert not tuned.wrong and not tuned.left_out, tuned.text
    found = held(tuned)
    assert set(found.kernels) == set(rules.shipped()["cpu"].entries[0].crossover)
    assert all(steps[-1] == (None, "fast") for steps in found.kernels.values())
    pattern = make_pattern(variant, 400)
    assert kernels.choose("auto", pattern, *tensors) == "fast"
    torch.testing.assert_close(sa_patch.attention(*tensors, variant), before, rtol=1e-5, atol=1e-5)
    assert "measured here by tune" in sa_patch.apply(make_model(), "sa", 12).describe()
    assert set(found.crossover) == set(rules.shipped()["cpu"].entries[0].crossover)
    assert rules.crossover("permuted", 12, torch.device("cpu"), torch.float32) == 127


def test_a_wrong_kernel_is_never_taken_and_reported(device, monkeypatch):
    plant_kernel(monkeypatch, "wrong", factor=1.01)
    device(by_name(full=20.0, wrong=0.1, torch=10.0, sdpa=40.0))
    tuned = sa_patch.tune(**SMALL, seconds=500)
    assert list(tuned.wrong) == ["wrong"] and "off by" in tuned.wrong["wrong"]
    assert "WRONG on this device, never taken: wrong: swa at window 12: off by" in tuned.text
    assert "wrong" not in {name for steps in held(tuned).kernels.values() for _, name in steps}
    assert json.loads(tuned.path.read_text())["entries"][0]["wrong"] == tuned.wrong


def test_wrong_in_one_place_is_not_taken_anywhere(device, monkeypatch):
    planted = plant_kernel(monkeypatch, "careless")
    right = type(planted).__call__

    def careless(self, query, key, value, pattern, scaling):
        return right(self, query, key, value, pattern, scaling) * (1.01 if pattern.sinks and pattern.local else 1.0)

    monkeypatch.setattr(type(planted), "__call__", careless)
    device(by_name(full=20.0, careless=0.1, torch=10.0, sdpa=40.0))
    tuned = sa_patch.tune(**SMALL, seconds=500)
    assert "careless" in tuned.wrong
    assert "careless" not in {name for steps in held(tuned).kernels.values() for _, name in steps}


def test_a_kernel_that_fails_is_reported_and_the_others_go_on(device, monkeypatch):
    planted = plant_kernel(monkeypatch, "broken")
    plant_kernel(monkeypatch, "fast")

    def fail(*_):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(type(planted), "__call__", fail)
    device(by_name(full=20.0, broken=0.1, fast=1.0, torch=10.0, sdpa=40.0))
    tuned = sa_patch.tune(**SMALL, seconds=500)
    assert "RuntimeError: out of shared memory" in tuned.wrong["broken"]
    assert held(tuned).kernels["window"][-1] == (None, "fast")


def test_what_a_kernel_refuses_stays_with_the_default(device, monkeypatch):
    plant_kernel(monkeypatch, "fast", refuses=["permuted", "merged"])
    device(by_name(full=20.0, fast=2.0, torch=10.0, sdpa=40.0))
    found = held(sa_patch.tune(**SMALL, seconds=500)).kernels
    assert found["permuted"] == WITHOUT and found["window"][-1] == (None, "fast")


def test_nothing_is_chosen_by_noise(device, monkeypatch):
    """As fast as the default, with times that scatter."""
    plant_kernel(monkeypatch, "as-fast")
    draw = random.Random(1)
    device(lambda name, length, window: 20.0 if name == "full" else draw.gauss(10, 1.5))
    found = held(sa_patch.tune(**SMALL, seconds=2000)).kernels
    chosen = [name for steps in found.values() for _, name in steps]
    assert chosen.count("as-fast") <= 1, found  # some of 12 places may always look faster


def test_a_choice_by_length(device, monkeypatch):
    plant_kernel(monkeypatch, "for-long")
    device(lambda name, length, window: {"full": 20.0, "for-long": 2000 / length}.get(name, 10.0))
    found = held(sa_patch.tune(**SMALL, seconds=500)).kernels
    assert found["window"] == ((256, "sdpa"), (399, "torch"), (None, "for-long"))


def test_a_budget_is_kept_and_what_was_left_out_is_said(device, monkeypatch):
    plant_kernel(monkeypatch, "fast")
    device(lambda name, length, window: {"full": 20.0, "fast": 2.0}.get(name, 10.0) * 10)
    tuned = sa_patch.tune(**SMALL, seconds=5)
    assert 4 < tuned.seconds < 7
    assert any("random-keys" in line for line in tuned.left_out) and "and " in tuned.text and "left out" in tuned.text
    assert "scattered" not in held(tuned).kernels  # nothing is said of what was not read


def test_a_kernel_that_compiles_comes_last_and_is_not_begun_without_time(device, monkeypatch):
    plant_kernel(monkeypatch, "compiled", compile_seconds=50)
    device(by_name(full=20.0, compiled=0.1, torch=10.0, sdpa=40.0))
    tuned = sa_patch.tune(**SMALL, seconds=30)
    assert "compiled on swa: not verified" in tuned.left_out
    assert held(tuned).kernels["window"] == WITHOUT
    tuned = sa_patch.tune(**SMALL, seconds=500)
    assert not tuned.left_out and held(tuned).kernels["window"][-1] == (None, "compiled")


def test_a_layout_that_was_not_verified_to_the_end_keeps_its_default(device, monkeypatch):
    """Sinks and a local window come last: without them "merged" is not taken."""
    plant_kernel(monkeypatch, "fast", compile_seconds=1)
    device(by_name(full=20.0, fast=0.1, torch=10.0, sdpa=40.0))
    monkeypatch.setattr(search.Search, "_has_time", lambda self, name: self.left() > 1988)
    verified = search.Search._verified

    def without_extras(self, arm, names):
        return verified(self, arm, names) if arm.timed else []

    monkeypatch.setattr(search.Search, "_verified", without_extras)
    found = held(sa_patch.tune(**SMALL, seconds=2000)).kernels
    assert found["merged"] == ((512, "sdpa"), (None, "torch")) and found["window"][-1] == (None, "fast")


def test_sizes_of_a_kernel_are_candidates(device, monkeypatch):
    plant_kernel(monkeypatch, "sized", sizes=[(8, 8), (16, 16), (32, 32)])
    times = {"full": 20.0, "sized": 4.0, "sized (8, 8)": 3.9, "sized (16, 16)": 2.0, "sized (32, 32)": 9.0}
    device(lambda name, length, window: times.get(name, 40.0))
    tuned = sa_patch.tune(**SMALL, seconds=500)
    assert held(tuned).tiles == {"sized": (16, 16)}


def test_other_tensors_of_the_same_device_stay_in_the_file(device, monkeypatch):
    device(by_name(full=20.0, torch=10.0, sdpa=40.0))
    sa_patch.tune(**SMALL, seconds=500)
    tuned = sa_patch.tune(**{**SMALL, "head_dim": 32}, seconds=500)
    entries = rules.parse(tuned.path.read_text()).entries
    assert [entry.head_dim for entry in entries] == [32, 16]
    tuned = sa_patch.tune(**{**SMALL, "head_dim": 32}, seconds=500)
    assert [entry.head_dim for entry in rules.parse(tuned.path.read_text()).entries] == [32, 16]


def test_a_model_gives_the_shapes(device):
    device(by_name(full=20.0, torch=10.0, sdpa=40.0))
    model = make_model().bfloat16()
    config = model.config
    found = held(sa_patch.tune(model, lengths=(128,), windows=(12,), seconds=500))
    shape = "bfloat16", config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert (found.dtype, found.heads, found.kv_heads, found.head_dim) == shape


def test_rules_written_elsewhere_change_nothing_here(device, monkeypatch, tmp_path, rules_folder):
    plant_kernel(monkeypatch, "fast")
    device(by_name(full=20.0, fast=0.1, torch=10.0, sdpa=40.0))
    tuned = sa_patch.tune(**SMALL, seconds=500, out=tmp_path / "new" / "rules.json")
    assert tuned.path == tmp_path / "new" / "rules.json" and not rules_folder.exists()
    assert kernels.choose("auto", make_pattern(make_variant("sa"), 400), *random_heads(400)) == "torch"


def test_the_default_of_tuning_is_not_an_earlier_result(device, monkeypatch):
    plant_kernel(monkeypatch, "fast")
    device(by_name(full=20.0, fast=0.1, torch=10.0, sdpa=40.0))
    sa_patch.tune(**SMALL, seconds=500)
    device(by_name(full=20.0, fast=10.0, torch=10.0, sdpa=40.0))
    assert held(sa_patch.tune(**SMALL, seconds=500)).kernels["window"] == WITHOUT


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is none: give cpu or cuda"),
        ({"device": "meta"}, "device 'meta' can't be timed: give cpu or cuda"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, got 'float64'"),
        ({"heads": 5}, "heads must be a multiple of kv_heads, got 5 and 2"),
        ({"head_dim": -1}, "head_dim must be whole numbers above 0, got -1"),
        ({"lengths": (0,)}, "lengths must be whole numbers above 0, got 0"),
        ({"lengths": (10,)}, "no length is longer than a window"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"kernels": ["tritn"]}, "unknown kernel 'tritn'.*did you mean 'triton'"),
    ],
)
def test_what_cannot_be_tuned_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        sa_patch.tune(**{**SMALL, **given})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device 'cuda' is not there: this machine has 0 GPUs"):
        sa_patch.tune(device="cuda")


def test_a_short_budget_reads_the_middle_and_the_ends_first():
    assert breadth_first([1, 2, 3, 4, 5]) == [3, 1, 5, 2, 4]
    assert breadth_first([7]) == [7]


def test_cases_are_made_once_for_all_kernels(device, monkeypatch):
    made = []
    exact = search.exact_output
    monkeypatch.setattr(search, "exact_output", lambda *args: made.append(args) or exact(*args))
    for number in range(3):
        plant_kernel(monkeypatch, f"kernel {number}")
    device(by_name(full=20.0))
    sa_patch.tune(**SMALL, seconds=2000)
    arms = declared_arms()
    assert len(made) == sum(2 if arm.timed else 1 for arm in arms) and len(CASES) > len(arms)
