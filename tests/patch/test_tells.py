"""What a patch tells about itself is what it does."""

import warnings

import pytest
import torch
from models import make_model

import sa_patch
from sa_patch.variants import VARIANTS


def test_describe_says_what_runs(qwen3, tokens):
    patch = sa_patch.apply(qwen3, "sa", 12, dense_layers=(-1,), seed=3)
    text = patch.describe()
    for part in (
        "sa (stochastic attention), window=12, active",
        "seed=3",
        "dense_layers=(-1,)",
        "verified architecture",
    ):
        assert part in text
    assert "full: [2]; all others sa" in text
    assert "the prompt must come in one call: horizon='length' permutes the tokens of the whole prompt" in text
    assert "sparse_prefill 0" in text
    with torch.no_grad():
        qwen3(tokens)
    assert "sparse_prefill 2, dense_short 0, dense_layer 1, full_decode 0" in patch.describe()
    patch.restore()
    assert "restored, not running" in patch.describe()


@pytest.mark.parametrize("limit, lengths", [(512, ["512"]), (4096, ["1,024", "4,096"])])
def test_the_budget_is_shown_at_lengths_the_model_has(limit, lengths):
    text = sa_patch.apply(make_model(max_position_embeddings=limit), "sa", 12).describe()
    shown = [line.split()[1] for line in text.splitlines() if line.startswith("budget")]
    assert shown == lengths


def test_saving_makes_the_folder(qwen3, tmp_path):
    patch = sa_patch.apply(qwen3, "sa", 12)
    for path, file in (("new/folder", "new/folder/sa_patch.json"), ("other/mine.json", "other/mine.json")):
        patch.save(tmp_path / path)
        assert (tmp_path / file).is_file()
        assert sa_patch.load(qwen3, tmp_path / path).config == patch.config


def test_describe_shows_a_budget_that_misses_its_target():
    qwen3 = make_model(max_position_embeddings=4096)
    patch = sa_patch.apply(qwen3, "sa", 600, form="bucket")
    budget = patch.budget(1024)
    assert budget.off_target > 0.05
    assert f"({budget.off_target:+.0%} of the" in patch.describe()
    assert "asked for)" not in sa_patch.apply(qwen3, "sa", 600).describe()


def test_notebooks_get_a_table_without_markup_from_names(qwen3):
    html = sa_patch.apply(qwen3, "swa", 12)._repr_html_()
    assert html.startswith("<table") and html.count("<tr>") == html.count("</tr>") >= 6
    assert "<class" not in html


@pytest.mark.parametrize("mode", VARIANTS)
@pytest.mark.parametrize("length", [1, 7, 500, 40_000])
def test_budget_adds_up(qwen3, mode, length):
    budget = sa_patch.apply(qwen3, mode, 64).budget(length)
    assert len(budget.per_layer) == 3
    assert budget.pairs == sum(layer.pairs for layer in budget.per_layer)
    assert budget.keys_per_query == pytest.approx(budget.pairs / 3 / length)
    assert budget.density == pytest.approx(budget.pairs / 3 / (length * (length + 1) / 2))
    assert 0 < budget.density <= 1
    assert (budget.router_cost > 0) == (length > {"moba": 86, "routed": 64, "vertical-slash": 64}.get(mode, length))
    if mode in ("swa", "sa"):
        assert budget.off_target == 0
    if mode in ("sa+swa", "moba"):
        assert abs(budget.off_target) < 0.05


def test_mask_and_budget_agree_layer_by_layer(qwen3):
    for mode, options in (("swa", {}), ("sa", {"sinks": 2}), ("sa+swa", {}), ("sa", {"dense_layers": (1,)})):
        patch = sa_patch.apply(qwen3, mode, 12, **options)
        pairs = [int(patch.mask(100, layer).sum()) for layer in range(3)]
        assert pairs == [layer.pairs for layer in patch.budget(100).per_layer]


def test_a_patch_says_when_it_was_overridden(qwen3, tokens):
    with torch.no_grad():
        before = qwen3(tokens).logits
        patch = sa_patch.apply(qwen3, "sa", 12)
        qwen3.set_attn_implementation("eager")
        assert not patch.active and not sa_patch.is_patched(qwen3)
        assert "NOT RUNNING: the attention implementation was set to 'eager' behind it" in patch.describe()
        patch.restore()
        assert torch.equal(qwen3(tokens).logits, before)


def test_variants_of_ones_own_run_at_once(qwen3, tokens):
    class EveryOther(type(sa_patch.variant("swa"))):
        name = "every-other"

        def sparse_pattern(self, group, layer_idx, query, key):
            return super().sparse_pattern(group, layer_idx, query, key) if layer_idx % 2 else self.dense(group)

    patch = sa_patch.apply(qwen3, variant=EveryOther(window=12))
    with torch.no_grad():
        qwen3(tokens)
    assert patch.budget(48).per_layer[0].pairs == 48 * 49 // 2
    assert patch.budget(48).per_layer[1].pairs < 48 * 12
    assert patch.config["mode"] == "every-other"
    assert "every-other" in repr(patch)
    with pytest.raises(ValueError, match="EveryOther is no built-in variant"):
        patch.save("never-written.json")


def test_buckets_cross_over_earlier_than_permuted_windows(qwen3):
    told = [sa_patch.apply(qwen3, "sa", 128, form=form, dense_below="crossover") for form in ("bucket", "sliding")]
    for patch, length in zip(told, (512, 1344), strict=True):
        assert f"prompts up to {length:,} tokens stay full" in patch.describe()
        assert patch.budget(length).density == 1 and patch.budget(length + 1).density < 1


@pytest.mark.parametrize("mode", sorted(sa_patch.variants.modes()))
def test_printing_a_patch_fits_a_screen(mode):
    patch = sa_patch.apply(make_model(max_position_embeddings=40_960), mode, 12, sinks=1, dense_layers=(0,))
    lines = repr(patch).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "refused" not in repr(patch) and "refused" in patch.describe()


def test_a_prompt_that_the_window_covers_is_warned_of_once(qwen3, tokens):
    with sa_patch.apply(qwen3, "swa", 64), pytest.warns(UserWarning, match="the prompt has 48 tokens") as seen:
        for _ in range(2):
            qwen3(tokens)
        qwen3.generate(tokens, max_new_tokens=2)
    assert len(seen) == 1
    with sa_patch.apply(qwen3, "swa", 12), warnings.catch_warnings():
        warnings.simplefilter("error")
        qwen3(tokens)
