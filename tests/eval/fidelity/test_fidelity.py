"""Laws of the fidelity measurement: every number equals what a brute force over whole matrices gives."""

import numpy as np
import pytest
import torch
from models import make_model
from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM

import sa_patch
from sa_eval.fidelity import buckets, layer_errors, measuring, sums, texts
from sa_eval.fidelity.head import AGREE, KL, NATS, NATS_FULL, Head, kl
from sa_eval.records.types import plain
from sa_eval.settings.arm import Arm
from sa_eval.settings.values import SettingsError
from sa_patch.geometry import Group
from sa_patch.kernels.reference import Reference
from sa_patch.patterns import Dense

LENGTH = 96
ARMS = [
    Arm("swa-w16", "swa", "swa", 16),
    Arm("sa-w16", "sa", "sa", 16, seeds=(0, 1)),
    Arm("sa-dyadic-w16", "sa-dyadic", "sa", 16, options={"horizon": "dyadic"}),
    Arm("moba-w16", "moba", "moba", 16, options={"dense_layers": (0,), "dense_tail": 3}),
    Arm("sa+swa-w24", "sa+swa", "sa+swa", 24, options={"sinks": 2}),
]
FULL = Arm("full", "full", "full", None)


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe", "llama"])
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="module")
def tiny():
    return make_model("qwen3")


def passage(length=LENGTH, seed=0):
    ids = torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed))
    return texts.Passage("text", seed, tuple(ids.tolist()))


def cut(*passages):
    return texts.Cut(max(len(one.ids) for one in passages), tuple(passages), ())


def measured(model, arm, *passages, chunk=None):
    passages = passages or (passage(),)
    subject = measuring.Subject.of(model, passages[0], chunk)
    return measuring.measure(subject, arm, cut(*passages), lambda text, count: None)


def cell(model, arm, *passages, chunk=None):
    """As fidelity.json holds it."""
    return plain(sums.summarise(measured(model, arm, *passages, chunk=chunk)))


def logits(model, ids, arm=FULL, seed=0):
    patch = arm.apply(model, seed)
    try:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0].double()
    finally:
        if patch is not None:
            patch.restore()


def calls(model, ids):
    """Every layer's attention call of the unpatched model."""
    found = []
    few = measuring.Subject.of(model, passage(32))
    with torch.inference_mode():
        few.probe.read(torch.tensor([ids]), found.append, lambda layer, residual: None)
    return found


def visible_of(model, arm, call):
    """Who sees whom in one layer: bool [length, length], or [1, heads, length, length] where content decides."""
    with arm.apply(model, 0) as patch:
        if arm.mode != "moba":
            return patch.mask(LENGTH, call.layer)
        if call.layer in patch.variant.dense_layers:
            return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        group = Group(LENGTH, LENGTH, torch.device("cpu"))
        return patch.variant.sparse_pattern(group, call.layer, call.query, call.key).visible()


def weights_of(call, visible):
    """Softmax weights over visible pairs in float64: [1, heads, length, length]."""
    key = call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
    scores = call.query.double() @ key.transpose(-1, -2) * call.scaling
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


def test_the_full_arm_is_the_full_model_exactly(model):
    found = cell(model, FULL)
    overall = found["overall"]
    assert (overall["kl"], overall["agreement"], overall["nats"], overall["kept_mass"]) == (0.0, 1.0, 0.0, 1.0)
    assert all(overall[name] == 0.0 for name in sums.ERRORS)
    assert all(row["kept_mass"] == 1.0 for row in found["mass_by_distance"])


def test_perplexity_of_full_is_the_models_own_loss(model):
    ids = torch.tensor([passage().ids])
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    overall = cell(model, ARMS[0])["overall"]
    assert np.log(overall["perplexity_full"]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_tokens_equal_a_brute_force_over_whole_logits(model, arm):
    found, ids = measured(model, arm), passage().ids
    full = logits(model, ids).log_softmax(-1)[:-1]
    follows = torch.tensor(ids[1:])[:, None]
    for seed, (passage_sums,) in zip(arm.seeds, found.tokens, strict=True):
        sparse = logits(model, ids, arm, seed).log_softmax(-1)[:-1]
        count = len(ids) - 1
        expected = np.zeros(5)
        expected[KL] = (full.exp() * (full - sparse)).sum()
        expected[AGREE] = (full.argmax(-1) == sparse.argmax(-1)).sum()
        expected[NATS], expected[NATS_FULL] = (-one.gather(1, follows).sum() for one in (sparse, full))
        expected[measuring.COUNT] = count
        np.testing.assert_allclose(passage_sums.scored, expected, rtol=1e-5)
        assert expected[KL] / count > 0.01  # or it would prove nothing


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_isolated_errors_equal_the_reference_kernel_over_visible_pairs(model, arm):
    found = cell(model, Arm(arm.name, arm.label, arm.mode, arm.window, options=arm.options))
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for row, call in zip(found["layers"], calls(model, passage().ids), strict=True):
        value = call.value.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
        full, sparse = (weights_of(call, seen) @ value for seen in (causal, visible_of(model, arm, call)))
        reference = Reference()(call.query, call.key, call.value, Dense(length=LENGTH, query_len=LENGTH), call.scaling)
        torch.testing.assert_close(full.float(), reference)
        expected = float((sparse - full).norm() / full.norm())
        assert row["isolated_error"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_kept_mass_equals_a_brute_force_over_softmax_and_visible_pairs(model, arm):
    found = cell(model, Arm(arm.name, arm.label, arm.mode, arm.window, options=arm.options))
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    sink = torch.arange(LENGTH) < buckets.SINKS
    for row, call in zip(found["layers"], calls(model, passage().ids), strict=True):
        weights = weights_of(call, distance >= 0)
        seen = weights * visible_of(model, arm, call)
        assert row["kept_mass"] == pytest.approx(float(seen.sum() / weights.sum()), rel=1e-5)
        for part in row["mass_by_distance"]:
            inside = sink if part["low"] is None else (distance >= part["low"]) & (distance <= part["high"]) & ~sink
            mass, kept = float((weights * inside).sum()), float((seen * inside).sum())
            assert part["share_of_mass"] == pytest.approx(mass / float(weights.sum()), rel=1e-5)
            assert part["kept_mass"] == pytest.approx(kept / mass, rel=1e-5) and 0 <= part["kept_mass"] <= 1


def test_accumulated_errors_equal_a_brute_force_over_hidden_states(model):
    arm, ids = ARMS[0], torch.tensor([passage().ids])

    def residuals(patch):
        with torch.inference_mode():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        if patch is not None:
            patch.restore()
        return hidden[1:-1]  # after the last layer, transformers shows the normed one

    full, sparse = residuals(None), residuals(arm.apply(model, 0))
    found = cell(model, arm)["layers"]
    assert found[0]["attention_error"] == pytest.approx(found[0]["isolated_error"], rel=1e-5)  # nothing came before it
    for row, one, other in zip(found[:-1], sparse, full, strict=True):
        assert row["residual_error"] == pytest.approx(float((one - other).norm() / other.norm()), rel=1e-5)


@pytest.mark.parametrize("mode", ["swa", "sa", "moba"])
def test_a_window_over_the_whole_text_changes_nothing_but_rounding(tiny, mode):
    overall = cell(tiny, Arm(mode, mode, mode, 4 * LENGTH))["overall"]
    assert 0 <= overall["kl"] < 1e-9 and overall["agreement"] == 1.0 and overall["kept_mass"] == 1.0
    assert all(overall[name] < 1e-5 for name in sums.ERRORS)


def test_kl_is_never_negative_and_takes_impossible_tokens():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(50, 97, generator=generator, dtype=torch.float64).log_softmax(-1)
    near = (one + 1e-9 * torch.randn(50, 97, generator=generator, dtype=torch.float64)).log_softmax(-1)
    assert bool((kl(one, near) >= 0).all()) and bool((kl(one, one) == 0).all())
    certain = torch.tensor([0.0, -torch.inf])
    assert kl(certain, certain) == 0 and kl(torch.tensor([0.5, 0.5]).log(), certain) == torch.inf


def test_chunks_change_nothing(tiny, monkeypatch):
    whole = cell(tiny, ARMS[1])
    monkeypatch.setattr(layer_errors, "SCORES", 4 * LENGTH * 7)
    parts = cell(tiny, ARMS[1], chunk=5)
    for name, value in whole["overall"].items():
        assert parts["overall"][name] == pytest.approx(value, rel=1e-5), name
    for one, other in zip(whole["layers"], parts["layers"], strict=True):
        assert other["kept_mass"] == pytest.approx(one["kept_mass"], rel=1e-6)


def test_two_measurements_are_identical_and_the_model_is_as_before(tiny):
    before = logits(tiny, passage().ids)
    assert cell(tiny, ARMS[1]) == cell(tiny, ARMS[1])
    assert torch.equal(before, logits(tiny, passage().ids)) and not sa_patch.is_patched(tiny)


def test_the_head_never_sees_more_than_a_chunk(tiny):
    seen = []
    handle = tiny.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    try:
        measured(tiny, ARMS[0], chunk=10)
    finally:
        handle.remove()
    assert max(seen[2:]) == 10 and sum(seen[2:]) == 2 * (LENGTH - 1)  # the first two look at a few tokens


def test_the_head_is_the_models_own_with_its_softcapping():
    torch.manual_seed(0)
    shape = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = Gemma2Config(
        **shape, num_key_value_heads=2, head_dim=16, final_logit_softcapping=0.5, initializer_range=0.2
    )
    model, ids = Gemma2ForCausalLM(config).eval(), torch.tensor([passage().ids])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0]
        head = Head(model, ids[:, :16])
        torch.testing.assert_close(head.logits(head.states(ids)), expected)
    assert float(expected.abs().max()) <= 0.5 and "forward" not in model.model.__dict__


def test_a_head_that_depends_on_more_than_hidden_states_is_refused(tiny):
    class Odd(type(tiny)):
        def forward(self, input_ids=None, **options):
            output = super().forward(input_ids=input_ids, **options)
            output.logits = output.logits * input_ids.shape[1]
            return output

    odd = Odd(tiny.config).eval()
    with pytest.raises(SettingsError, match="gives other logits"):
        measuring.Subject.of(odd, passage())


def test_an_exception_inside_an_arm_leaves_the_model_as_it_was(tiny):
    before = logits(tiny, passage().ids)
    with pytest.raises(ValueError, match="dense_layers"):
        measured(tiny, Arm("swa", "swa", "swa", 16, options={"dense_layers": (7,)}))

    def stop(text, count):
        if count:
            raise KeyboardInterrupt

    subject = measuring.Subject.of(tiny, passage())
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(subject, ARMS[0], cut(passage()), stop)
    assert torch.equal(before, logits(tiny, passage().ids)) and not sa_patch.is_patched(tiny)


def test_eager_attention_is_measured_like_any_other(tiny):
    eager = make_model("qwen3")
    eager.set_attn_implementation("eager")
    one, other = cell(tiny, ARMS[0])["overall"], cell(eager, ARMS[0])["overall"]
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-4), name


def test_seeds_are_averaged_and_their_spread_is_told_apart(tiny):
    found = cell(tiny, ARMS[1])
    alone = [cell(tiny, Arm("sa", "sa", "sa", 16, seeds=(seed,))) for seed in (0, 1)]
    values = [one["overall"]["kl"] for one in alone]
    assert [row["kl"] for row in found["seeds"]["each"]] == pytest.approx(values, rel=1e-9)
    assert found["overall"]["kl"] == pytest.approx(np.mean(values), rel=1e-9)
    assert found["seeds"]["sd"]["kl"] == pytest.approx(np.std(values, ddof=1), rel=1e-9) and values[0] != values[1]
    assert alone[0]["seeds"] is None


def test_buckets_add_up_to_the_whole(tiny):
    found = cell(tiny, ARMS[0], passage(), passage(80, seed=1))
    for name in ("by_position", "by_copy_distance"):
        rows = [row for row in found[name] if row["predictions"]]
        assert sum(row["predictions"] for row in rows) == found["overall"]["predictions"] == 95 + 79
        total = sum(row["predictions"] * row["kl"] for row in rows)
        assert total / 174 == pytest.approx(found["overall"]["kl"], rel=1e-9)
    assert sum(row["share_of_mass"] for row in found["mass_by_distance"]) == pytest.approx(1, abs=1e-9)


def test_a_window_keeps_all_mass_inside_it_and_none_beyond(tiny):
    rows = {row["bucket"]: row["kept_mass"] for row in cell(tiny, ARMS[0])["mass_by_distance"]}
    assert [rows[name] for name in ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63")] == [1, 1, 1, 1, 1, 0, 0]


def test_an_interval_needs_two_passages_and_holds_the_mean(tiny):
    assert cell(tiny, ARMS[0])["intervals"] == {"kl": None, "agreement": None, "nats": None}
    found = cell(tiny, ARMS[0], *(passage(seed=seed) for seed in range(6)))
    for name, (low, high) in found["intervals"].items():
        assert low < found["overall"][name] < high
    full = cell(tiny, FULL, passage(), passage(seed=1))
    assert full["intervals"]["kl"] == [0.0, 0.0]


def test_long_passages_are_probed_in_places_spread_over_them(monkeypatch):
    monkeypatch.setattr(layer_errors, "PROBED", 16)
    places = layer_errors.positions_to_probe(100)
    assert len(places) == 16 and bool((np.diff(places) > 0).all())
    edges = np.linspace(0, 100, 17).astype(int)
    assert all(low <= place < high for place, low, high in zip(places, edges[:-1], edges[1:], strict=True))
    assert list(layer_errors.positions_to_probe(16)) == list(range(16))


def test_probed_places_estimate_the_whole(tiny, monkeypatch):
    whole = cell(tiny, ARMS[0], passage(400))["overall"]
    monkeypatch.setattr(layer_errors, "PROBED", 100)
    probed = cell(tiny, ARMS[0], passage(400))["overall"]
    assert probed["kl"] == whole["kl"] and probed["kept_mass"] != whole["kept_mass"]
    assert probed["kept_mass"] == pytest.approx(whole["kept_mass"], rel=0.1)
    assert probed["residual_error"] == pytest.approx(whole["residual_error"], rel=0.1)


def test_copy_distances_point_at_the_token_after_the_last_earlier_pair():
    assert list(buckets.copy_distances([1, 2, 3, 1, 2, 3])) == [-1, -1, -1, 2, 2]
    assert list(buckets.copy_distances([7, 7, 7, 7])) == [-1, 0, 0]
    assert list(buckets.copy_distances([1, 2, 5, 1, 3, 1, 2])) == [-1, -1, -1, -1, -1, 4]


def test_bucket_ranges_are_what_the_buckets_hold():
    read = np.arange(1, 5000)
    for value, bucket in zip(read, buckets.position_bucket(read), strict=True):
        low, high = buckets.position_range(bucket)
        assert low <= value <= high
    for value, bucket in zip(read - 1, buckets.distance_bucket(read - 1), strict=True):
        low, high = buckets.distance_range(bucket)
        assert low <= value <= high
