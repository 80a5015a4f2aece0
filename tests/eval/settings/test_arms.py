"""Laws of the grid: every combination is an arm once, under one readable name, or is left out with its reason."""

import itertools

import pytest
import yaml
from eval_helpers import tiny_model
from hypothesis import given, strategies
from hypothesis import settings as fuzz

from sa_eval.commands.run import build_parser, effective_settings
from sa_eval.settings import layer_sets
from sa_eval.settings.arms import arms_from, left_out, sweep_of
from sa_eval.settings.config import SettingsError, settings_from, to_yaml
from sa_patch.variants import all_options, modes


def arms_of(**given):
    return arms_from(settings_from({"window": 64, **given}))


def names_of(**given):
    return [arm.name for arm in arms_of(**given)]


def layers_of(settings):
    return settings.options["dense_layers"]


def from_flags(*flags):
    return effective_settings(build_parser().parse(flags))


def test_every_combination_is_an_arm():
    lists = {"window": [32, 0.5], "sinks": [0, 8], "dense_layers": [[], ["1::2"]], "decode": ["full", "sparse"]}
    arms = arms_of(modes="swa,sa,moba", dense_tail=[0, 16], **lists)
    assert len(arms) == 1 + 3 * 2 * 2 * 2 * 2 * 2 == len({arm.name for arm in arms})
    for window, sinks, decode in itertools.product(lists["window"], lists["sinks"], lists["decode"]):
        found = [
            arm
            for arm in arms[1:]
            if (arm.window, arm.options.get("sinks", 0), arm.options["decode"]) == (window, sinks, decode)
        ]
        assert len(found) == 3 * 2 * 2
    assert not left_out(settings_from({"modes": "swa,sa,moba", "dense_tail": [0, 16], **lists}))


def test_single_values_give_the_arms_they_always_gave():
    arms = arms_of(modes="swa,sa", window=[32, 64], dense_tail=16, sinks=4, dense_layers=[0, -1], decode="sparse")
    assert [(arm.mode, arm.window, arm.dense_tail) for arm in arms[1:]] == [
        ("swa", 32, 16),
        ("sa", 32, 16),
        ("swa", 64, 16),
        ("sa", 64, 16),
    ]
    expected = {"budget": "pairs", "decode": "sparse", "dense_tail": 16, "sinks": 4, "dense_layers": (0, -1)}
    assert all(arm.options == expected for arm in arms[1:])


def test_only_options_off_their_default_are_in_a_name():
    assert names_of(modes="swa,sa-bucket", window=[64, 0.25]) == [
        "full",
        "swa-w64",
        "sa-bucket-w64",
        "swa-w0.25",
        "sa-bucket-w0.25",
    ]
    (_, arm) = arms_of(
        modes="sa",
        sinks=0.0625,
        local=0.125,
        dense_layers="1::2,-1",
        dense_below=32,
        decode="sparse",
        dense_tail=9,
        window=0.5,
    )
    assert arm.name == "sa-w0.5-sinks0.0625-local0.125-dense_from1by2_-1-below32-decode_sparse-tail9"
    assert arm.label == "sa-sinks0.0625-local0.125-dense_from1by2_-1-below32-decode_sparse"


def test_form_and_horizon_multiply_the_stochastic_modes_only():
    both = {"form": ["sliding", "bucket"], "horizon": ["length", "dyadic"]}
    arms = arms_of(modes="swa,moba,sa,sa+swa,sa-bucket,sa-dyadic", **both)
    assert [arm.label for arm in arms] == [
        "full",
        "swa",
        "moba",
        "sa",
        "sa-dyadic",
        "sa-bucket",
        "sa-dyadic-bucket",
        "sa+swa",
        "sa+swa-dyadic",
        "sa+swa-bucket",
        "sa+swa-dyadic-bucket",
    ]


def test_a_shorthand_keeps_what_it_fixes():
    (_, arm) = arms_of(modes="sa-bucket", form="sliding")
    assert arm.options["form"] == "bucket" and arm.name == "sa-bucket-w64"
    assert sweep_of(settings_from({"modes": "sa-bucket", "window": 64, "form": "sliding,bucket"})).combinations == 1
    assert names_of(modes="sa", form="bucket") == names_of(modes="sa-bucket") == ["full", "sa-bucket-w64"]


def test_a_local_part_inside_a_sliding_window_is_no_other_arm():
    assert names_of(modes="swa,sa", local=[0, 16], sinks=[0, 8]) == [
        "full",
        "swa-w64",
        "sa-w64",
        "swa-w64-sinks8",
        "sa-w64-sinks8",
        "sa-w64-local16",
        "sa-w64-sinks8-local16",
    ]
    (_, arm) = arms_of(modes="swa", local=100, budget="nominal")
    assert arm.name == "swa-w64-local100"
    with pytest.raises(SettingsError, match="exceed the budget"):
        arms_of(modes="swa", local=60, sinks=10)


def test_what_a_variant_refuses_is_left_out_with_its_reason_and_the_others_run():
    settings = settings_from({"modes": "sa,sa+swa,sa-circular", "window": [8, 64], "local": [0, 16], "form": "bucket"})
    names = [arm.name for arm in arms_from(settings)]
    bare = ["sa-bucket-w8", "sa+swa-bucket-w8", "sa-bucket-w64", "sa+swa-bucket-w64"]
    assert names == ["full", *bare, "sa-bucket-w64-local16"]
    reasons = {row["name"]: row["reason"] for row in left_out(settings)}
    assert len(names) - 1 + len(reasons) == 3 * 2 * 2 == sweep_of(settings).combinations
    assert "already part of sa+swa" in reasons["sa+swa-bucket-w64-local16"]
    assert "exceed the budget" in reasons["sa-bucket-w8-local16"]
    assert "no meaning for form='bucket'" in reasons["sa-bucket-circular-w64"]


def test_a_sweep_of_which_nothing_is_left_is_refused():
    with pytest.raises(SettingsError, match=r"arm sa-w8-sinks64 cannot run \(and 1 more\): .* exceed the budget"):
        arms_of(modes="sa", window=8, sinks=[64, 65])
    assert names_of(modes="full") == ["full"]


def test_a_slip_of_the_keyboard_is_no_grid():
    many = list(range(1, 100))
    with pytest.raises(SettingsError, match="19,602 combinations"):
        arms_of(modes="swa,sa", window=many, sinks=many)


LISTS = {
    "window": strategies.sampled_from([1, 2, 16, 64, 0.25, 0.5, 1e-9]),
    "sinks": strategies.sampled_from([0, 1, 4, 0.1]),
    "local": strategies.sampled_from([0, 2, 0.2]),
    "dense_tail": strategies.sampled_from([0, 1, 16]),
    "dense_below": strategies.sampled_from([0, 7, "crossover"]),
    "decode": strategies.sampled_from(["full", "sparse"]),
    "form": strategies.sampled_from(["sliding", "bucket"]),
    "horizon": strategies.sampled_from(["length", "dyadic"]),
    "modes": strategies.sampled_from(list(modes())),
}
SET = strategies.lists(strategies.sampled_from([0, 1, -1, "1::2", ":2", "3:-1:2"]), max_size=4, unique=True)
GRID = strategies.fixed_dictionaries(
    {name: strategies.lists(item, min_size=1, max_size=2, unique=True) for name, item in LISTS.items()}
    | {"dense_layers": strategies.lists(SET, min_size=1, max_size=2, unique_by=frozenset)}
)


@fuzz(max_examples=60, deadline=None)
@given(grid=GRID)
def test_names_are_unique_and_every_meaning_is_there_once(grid):
    settings = settings_from(grid)
    sweep = sweep_of(settings)
    names = [arm.name.casefold() for arm in (*sweep.arms, *(arm for arm, _ in sweep.left_out))]
    assert len(set(names)) == len(names) and names[0] == "full"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.+_-") for name in names)
    meanings = [(arm.mode, arm.window, repr(sorted(arm.options.items(), key=repr))) for arm in sweep.arms]
    assert len(set(meanings)) == len(meanings)
    assert settings_from(yaml.safe_load(to_yaml(settings))) == settings
    for arm in sweep.arms:
        arm.check()


@pytest.mark.parametrize(
    ("text", "value", "sets"),
    [
        ("0,-1", [0, -1], ((0, -1),)),
        ("1::2", ["1::2"], (("1::2",),)),
        ("none/0,-1/1::2", [[], [0, -1], ["1::2"]], ((), (0, -1), ("1::2",))),
        ("none", [], ((),)),
        (" 2 : 8 : 3 / : ", [["2:8:3"], [":"]], (("2:8:3",), (":",))),
        ("01:04:1", "1:4", (("1:4",),)),
    ],
)
def test_layer_sets_are_the_same_as_text_and_as_lists(text, value, sets):
    assert layers_of(from_flags("--dense-layers", text)) == layers_of(settings_from({"dense_layers": value})) == sets


def test_layers_given_one_by_one_are_one_set():
    assert layers_of(from_flags("--dense-layers", "0", "-1")) == ((0, -1),)


def test_yaml_does_not_count_slices_in_sixties(tmp_path):
    (tmp_path / "run.yaml").write_text("dense_layers: [1:30, 12:40]\n")
    assert layers_of(from_flags("--config", str(tmp_path / "run.yaml"))) == (("1:30", "12:40"),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1::0", "no slice"),
        ("1::-1", "no slice"),
        ("a:b", "no slice"),
        ("1:2:3:4", "no slice"),
        ("x", "whole number"),
        ([[0], 1], "list of its own"),
        ([[0, 1], [1, 0]], "holds the set 1_0 twice"),
        ("0,0", "0 twice"),
        ("none,1", "none beside layers"),
        ([None], "whole number"),
        ([True], "whole number"),
        ("9" * 5000, "whole number"),
        (2**40, "at most"),
    ],
)
def test_what_is_no_set_of_layers_is_refused(value, message):
    with pytest.raises(SettingsError, match=message):
        settings_from({"dense_layers": value})


@pytest.mark.parametrize(
    ("members", "depth", "expected"),
    [
        (("1::2",), 6, (1, 3, 5)),
        (("1::2",), 5, (1, 3)),
        (("-2:",), 6, (4, 5)),
        ((0, -1, ":2"), 4, (0, -1, 1)),
        ((), 4, ()),
    ],
)
def test_a_slice_means_the_layers_of_the_model_that_runs(members, depth, expected):
    assert layer_sets.resolve(members, depth) == expected


def test_a_slice_is_resolved_when_the_arm_is_applied_and_refused_where_it_is_empty():
    model = tiny_model()  # two layers
    (_, arm) = arms_of(modes="swa", window=4, dense_layers="1::2")
    with arm.apply(model, 0) as patch:
        kinds = [layer.kind for layer in patch.budget(64).per_layer]
    assert kinds[0] == "sparse" and kinds[1] != "sparse"
    (_, arm) = arms_of(modes="swa", window=4, dense_layers="5::2")
    with pytest.raises(ValueError, match="none of this model's 2 layers"):
        arm.apply(model, 0)


ENTRY = {"name": "fair-swa", "mode": "swa", "window": 512, "sinks": 64, "dense_layers": "1::2", "decode": "full"}


def test_a_named_arm_is_what_it_says():
    settings = settings_from({"arms": [ENTRY]})
    (full, arm) = arms_from(settings)
    assert full.name == "full" and arm.name == arm.label == "fair-swa"
    assert (arm.mode, arm.window, arm.options["sinks"], arm.options["dense_layers"]) == ("swa", 512, 64, ("1::2",))
    assert settings_from(yaml.safe_load(to_yaml(settings))) == settings


def test_named_arms_stand_beside_the_grid_or_instead_of_it():
    assert names_of(arms=[ENTRY]) == ["full", "fair-swa"]
    assert names_of(arms=[ENTRY], modes="swa,sa") == ["full", "swa-w64", "sa-w64", "fair-swa"]


def test_what_a_named_arm_leaves_out_comes_from_the_settings(tmp_path):
    entry = {"name": "mine", "mode": "sa", "sinks": [0, 4]}
    arms = arms_of(arms=[entry], window=[32, 64], dense_tail=8)
    assert [arm.name for arm in arms] == ["full"] + [
        f"mine-w{window}{sinks}-tail8" for sinks in ("", "-sinks4") for window in (32, 64)
    ]
    assert all(len(arm.seeds) == 2 for arm in arms[1:])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"arms": [entry]}))
    from_file = from_flags("--config", str(tmp_path / "run.yaml"), "--window", "32", "64", "--dense-tail", "8")
    assert arms_from(from_file) == arms


def test_a_named_arm_that_says_what_another_says_is_left_out():
    settings = settings_from({"arms": [{"name": "a", "mode": "swa"}, {"name": "b", "mode": "swa"}], "window": 64})
    assert [arm.name for arm in arms_from(settings)] == ["full", "a-w64"]
    assert [(row["name"], row["reason"]) for row in left_out(settings)] == [("b-w64", "the same as a-w64")]
    assert names_of(arms=[{"name": "a", "mode": "swa"}], modes="swa") == ["full", "a-w64"]  # the given name wins


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([{**ENTRY, "sink": 4}], "unknown key 'sink': did you mean 'sinks'"),
        ([{"name": "a"}], "needs a mode"),
        ([{"mode": "sa"}], "needs a name"),
        ([{"name": "a", "mode": "sam"}], "did you mean 'sa"),
        ([{"name": "a", "mode": "full"}], "leave it out"),
        ([{"name": "full", "mode": "sa"}], "cannot name an arm"),
        ([{"name": "../a", "mode": "sa"}], "cannot name an arm"),
        ([{"name": "a" * 65, "mode": "sa"}], "cannot name an arm"),
        ([{"name": "a", "mode": "sa"}, {"name": "A", "mode": "swa"}], "'A' twice"),
        ([{"name": "a", "mode": "sa", "sinks": "x"}], "arm a: sinks must be"),
        ([{"name": "a", "mode": "sa-bucket", "form": "sliding"}], "mode sa-bucket fixes form already"),
        ([{"name": "a", "mode": "swa", "horizon": "dyadic"}], "mode swa has no horizon"),
        ([{"name": "swa-w64", "mode": "sa", "window": 64}], "two arms are called 'swa-w64'"),
        ({"a": 1}, "must be a list"),
        (["sa"], "where an entry"),
        ([{"name": "a", "mode": "sa", "window": None}], "arm a: window is empty"),
    ],
)
def test_bad_named_arms_are_refused_with_what_to_do(arms, message):
    with pytest.raises(SettingsError, match=message):
        arms_from(settings_from({"arms": arms, "modes": "swa", "window": 64}))


def test_a_mode_that_is_registered_is_swept_by_the_options_it_has(monkeypatch):
    import sa_patch

    class Mine(sa_patch.VARIANTS["sa"]):
        name = "mine"

    monkeypatch.setitem(sa_patch.VARIANTS, "mine", Mine)
    assert names_of(modes="mine", form=["sliding", "bucket"]) == ["full", "mine-w64", "mine-bucket-w64"]


def test_what_named_arms_may_say_is_what_settings_sweep():
    swept = {name for name, item in all_options().items() if item.swept}
    assert {"window", "top_k", "block_size", "circular"} < swept
    for name, value in settings_from({}).options.items():
        entry = {"name": "a", "mode": "sa", name: list(value) if name in swept else value}
        if name in swept:
            assert settings_from({"arms": [entry]}).arms[0].values == {name: value}
        else:
            with pytest.raises(SettingsError, match=f"unknown key '{name}'"):
                settings_from({"arms": [entry]})


def test_options_of_one_variant_are_swept_and_named_like_the_others():
    names = names_of(modes="swa,moba", top_k=[None, 4], window=[64], block_size="none")
    assert names == ["full", "swa-w64", "moba-w64", "moba-top4-w64"]
    assert [arm.label for arm in arms_of(modes="sa", circular=[False, True])] == ["full", "sa", "sa-circular"]
    assert names == [
        arm.name for arm in arms_from(from_flags(*["--modes", "swa", "moba", "--top-k", "none", "4", "--window", "64"]))
    ]
    (_, arm) = arms_of(modes="moba", top_k=3, block_size=26)
    assert arm.label == "moba-top3-block26" and arm.options["block_size"] == 26
