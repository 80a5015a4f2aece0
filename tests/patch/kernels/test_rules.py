"""Rules: measured, never guessed; a file is read for the device and versions it was made with, and no others."""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch
from models import make_model
from patch_cases import CASES, make_pattern, make_variant, random_heads

import sa_patch
from sa_patch import kernels, machine
from sa_patch.kernels import rules
from sa_patch.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("rules_folder")

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for the identity of a GPU; returns a function that names it."""

    def named(name, **versions):
        known = {"driver": "1.2.3", "torch": "2", "triton": "3", "sa_patch": "0", **versions}
        monkeypatch.setattr(machine, "identity", lambda device: machine.Identity(name, known))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        rules.forget()
        return torch.device("cuda", 0)

    return named


def a_file(**changes):
    now = machine.identity(CPU)
    entry = {
        "dtype": "float32",
        "head_dim": 16,
        "heads": 4,
        "kv_heads": 2,
        "kernels": {"permuted": [[100, "torch"], [None, "sdpa"]]},
        "crossover": {"permuted": [3, 50]},
        "tiles": {"triton": [64, 32, 4, 2]},
    }
    held = {
        "format": 1,
        "kind": "cpu",
        "device": now.name,
        "versions": now.versions,
        "source": "measured in a test",
        "entries": [entry],
    }
    return {**held, **changes}


def write(held):
    file = rules.users_file(CPU)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(held if isinstance(held, str) else json.dumps(held))
    rules.forget()
    return file


def ran(length, case="sa", **shape):
    tensors = random_heads(length, batch=1, **shape)
    return kernels.choose("auto", make_pattern(make_variant(case), length, 0, *tensors[:2]), *tensors)


@pytest.mark.parametrize(("case", "limit"), [("swa", 256), ("sa", 256), ("sa-sinks-local", 512)])
def test_on_a_cpu_short_prompts_are_masked(case, limit):
    assert (ran(limit, case), ran(limit + 1, case)) == ("sdpa", "torch")
    text = sa_patch.apply(make_model(), variant=make_variant(case)).describe()
    assert (
        f"kernel auto: sdpa with a mask up to {limit} tokens, torch beyond: measured on an x86 CPU in float32" in text
    )


def test_a_variants_layout_is_that_of_its_patterns():
    for case in CASES:
        variant = make_variant(case)
        pattern = make_pattern(variant, 400, 0, *random_heads(400)[:2])
        if variant.sinks or variant.local or variant.always_dense or hasattr(pattern, "pieces"):
            continue
        expected = "buckets" if case == "moba-top1" else variant.layout  # its own block alone: nothing is routed
        assert rules.layout_of(pattern) == expected, case


def test_every_layout_has_its_crossover_on_a_cpu():
    layouts = {make_variant(case).layout for case in CASES if not make_variant(case).always_dense} | {"merged"}
    assert all(rules.crossover(layout, 64, CPU, torch.float32) for layout in layouts)
    assert {kind.layout for kind in VARIANTS.values() if isinstance(kind.layout, str)} <= layouts


def test_the_users_file_decides_for_the_tensors_it_was_measured_on():
    write(a_file())
    assert (ran(100), ran(101)) == ("torch", "sdpa")
    assert ran(300, "swa") == "torch"  # a layout it does not hold
    assert ran(300, head_dim=32) == "torch"
    assert rules.crossover("permuted", 64, CPU, torch.float32) == 192
    assert rules.crossover("window", 64, CPU, torch.float32) == 640
    assert "measured in a test" in sa_patch.apply(make_model(), "sa", 12).describe()
    assert "measured in a test (sha256 " in rules.used(CPU)


@pytest.mark.parametrize("case", CASES)
def test_with_and_without_a_file_results_are_equal_to_rounding(case):
    tensors = random_heads(300)
    before = sa_patch.attention(*tensors, make_variant(case))
    write(a_file(entries=[{**a_file()["entries"][0], "kernels": {"any": [[50, "torch"], [None, "sdpa"]]}}]))
    other = {ran(300, case)} - {"torch"} if not make_variant(case).always_dense else {"sdpa"}
    assert other == {"sdpa"}
    torch.testing.assert_close(sa_patch.attention(*tensors, make_variant(case)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("not json", "it is no file of rules"),
        ("[]", "it is no file of rules"),
        ("[" * 100_000, "it is no file of rules"),
        ({"format": 2}, "it has format 2, this release reads 1"),
        ({"device": "another"}, "it was measured on another with other versions"),
        ({"versions": {"torch": "1"}}, "with other versions"),
        ({"entries": [{}]}, "it is no file of rules"),
        ({"kernels": {"window": [[100, "torch"]]}}, "do not grow to one without an end"),
        ({"kernels": {"window": [[100, "torch"], [50, "torch"], [None, "torch"]]}}, "do not grow"),
        ({"crossover": {"window": [-1, 5]}}, "it holds '-1' where a number is wanted"),
        ({"tiles": {"triton": [64, "x"]}}, "it holds 'x' where a number is wanted"),
        ({"dtype": 5}, "it holds '5' where text is wanted"),
    ],
)
def test_a_corrupt_or_foreign_file_is_told_of_once_and_counts_as_none(changes, reason):
    if isinstance(changes, dict) and not changes.keys() & a_file().keys():
        changes = {"entries": [{**a_file()["entries"][0], **changes}]}
    file = write(changes if isinstance(changes, str) else a_file(**changes))
    with pytest.warns(UserWarning, match="the kernel rules .* are ignored") as told:
        assert ran(300) == "torch" and ran(100) == "sdpa"
    assert len(told) == 1 and reason in str(told[0].message) and str(file) in str(told[0].message)
    assert "\n" not in str(told[0].message)


def test_unknown_kernels_in_a_file_are_passed_over():
    write(a_file(entries=[{**a_file()["entries"][0], "kernels": {"any": [[None, "cuda-magic"]]}}]))
    assert ran(300) == "torch"


def test_rules_of_other_versions_are_not_used_and_describe_says_so(monkeypatch):
    write(a_file())
    now = machine.identity(CPU)
    later = machine.Identity(now.name, {**now.versions, "torch": "99.0"})
    monkeypatch.setattr(machine, "identity", lambda device: later)
    rules.forget()
    text = sa_patch.apply(make_model(), "sa", 12).describe()
    assert ran(300) == "torch" and "measured on an x86 CPU" in text
    assert f"rules measured with torch {now.versions['torch']} (now 99.0) are not used: run sa-eval tune again" in text


def test_a_gpu_follows_shipped_rules_of_its_own_name_only(gpu, monkeypatch):
    known = [held for held in rules.shipped().values() if held.kind == "cuda"]
    assert known
    for held in known:
        entry = held.entries[0]
        place = gpu(held.device)
        found = rules.choice(place, getattr(torch, entry.dtype), entry.head_dim, entry.group)
        assert {layout: found.at(layout) for layout in entry.kernels} == dict(entry.kernels)
        assert not any(found.is_borrowed(layout) for layout in entry.kernels)
        found = rules.choice(gpu("NVIDIA Never-Seen"), getattr(torch, entry.dtype), entry.head_dim, entry.group)
        assert found.at("window") == ((256, "sdpa"), (None, "torch")) and found.is_borrowed("window")
        with pytest.raises(
            NotImplementedError, match="not been measured on this 'cuda' device in bfloat16: give a number"
        ):
            kernels.crossover("window", 64, gpu("NVIDIA Never-Seen"), torch.bfloat16)


def test_what_was_not_measured_on_a_gpu_is_told_once(gpu, monkeypatch):
    place = gpu("NVIDIA Never-Seen")
    monkeypatch.setattr(kernels, "_TOLD", set())
    pattern = make_pattern(make_variant("sa"), 400)
    query, key, value = (tensor.to("meta") for tensor in random_heads(400))

    class OnGpu:
        device, dtype, shape, requires_grad = place, torch.bfloat16, query.shape, False

    with pytest.warns(
        UserWarning, match="nothing was measured for bfloat16 and head_dim 16 on NVIDIA Never-Seen"
    ) as told:
        assert kernels.choose("auto", pattern, OnGpu, key, value) == "torch"
        assert kernels.choose("auto", pattern, OnGpu, key, value) == "torch"
    assert len(told) == 1 and "sa-eval tune" in str(told[0].message)


def test_short_prompts_on_a_gpu_are_no_reason_to_tell(gpu, monkeypatch):
    monkeypatch.setattr(kernels, "_TOLD", set())
    place, short = gpu("NVIDIA Never-Seen"), random_heads(100)

    class OnGpu:
        device, dtype, shape, requires_grad = place, torch.bfloat16, short[0].shape, False

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.choose("auto", make_pattern(make_variant("sa"), 100), OnGpu, *short[1:]) == "sdpa"


def test_shipped_rules_of_a_gpu_are_what_the_committed_figures_say():
    root = Path(__file__).parents[3]
    spec = importlib.util.spec_from_file_location("write_gpu_rules", root / "scripts" / "write_gpu_rules.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    files = [file for file in rules.SHIPPED.glob("*.json") if json.loads(file.read_text())["kind"] == "cuda"]
    assert files
    for file in files:
        how = json.loads(file.read_text())["how"]
        figures = json.loads((root / how.split()[-1]).read_text())
        assert json.loads(file.read_text()) == json.loads(json.dumps(script.rules_from(figures, how)))
