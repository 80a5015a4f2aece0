"""Laws of `sa-eval speed`: what is timed, what is not, what is counted, and that nothing is left out in silence."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from eval_helpers import save_tiny_model, tiny_model

from sa_eval.commands.speed import main
from sa_eval.progress import Progress
from sa_eval.records.types import Speed, plain
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import SettingsError, settings_from
from sa_eval.speed import clock, length_by_length, memory, time_table
from sa_eval.speed.beside_full import beside_full
from sa_eval.speed.floor import Floor
from sa_eval.speed.settings import speed_settings

ROOT = Path(__file__).parents[3]
PROMPT = list(range(5, 205))
LAYERS = 2


def arms(**settings):
    return arms_from(settings_from({"modes": "swa,sa", "window": 16, **settings}))


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def measured(folder, out, **given):
    """The result of a quiet run on the saved tiny model."""
    asked = {"model": folder, "device": "cpu", "threads": 1, "out": str(out), "repeats": 2, "new_tokens": 3, **given}
    directory, result, _ = length_by_length.run(speed_settings(asked), Progress(enabled=False))
    return result, directory


class Slow:
    """A clock that moves by the model's calls alone: seconds for a first call after binding, and for any other."""

    def __init__(self, model, first_s, later_s, token_s):
        self.now, self.bound, self.prefills = 0.0, False, []
        self.costs = {True: first_s, False: later_s}
        self.token_s, self.running = token_s, None
        model.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, module, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            self.now += self.token_s
            return
        self.prefills.append(self.running)
        self.now += self.costs[self.bound]
        self.bound = False

    def arm(self, arm):
        """The arm, telling the clock when it is bound."""
        clock = self

        class Told(type(arm)):
            def apply(self, model, seed):
                clock.bound, clock.running = True, self.name
                return super().apply(model, seed)

        return Told(**{name: getattr(arm, name) for name in arm.__dataclass_fields__})


def test_only_warm_calls_are_timed_and_tokens_are_counted_from_the_first_one(model):
    slow = Slow(model, first_s=100.0, later_s=0.25, token_s=0.125)
    timed = [slow.arm(arm) for arm in [*arms(), Floor()]]
    rows = clock.measure_prefill(
        model, timed, {"any": PROMPT}, repeats=3, new_tokens=4, batch_size=2, clock=lambda: slow.now
    )
    for row in rows:
        assert row.repeats_ms == [250.0] * 3 and row.prefill_ms == 250.0 and row.spread == 0.0
        assert row.first_ms == [100_000.0] * 3
        assert row.decode_tokens_per_s == 2 / 0.125 and row.decode_repeats == [16.0] * 3


def test_arms_take_turns_within_every_repeat_and_each_call_follows_one_of_its_own_arm(model):
    slow = Slow(model, 1.0, 1.0, 1.0)
    timed = [slow.arm(arm) for arm in [*arms(), Floor()]]
    turns = []
    clock.measure_prefill(model, timed, {1: PROMPT}, repeats=2, clock=lambda: slow.now, progress=turns.append)
    names = ["full", "swa-w16", "sa-w16", "none"]
    assert turns == names * 2
    # A warm-up and a timed call; on a CPU the first turn reads memory in a third one, after the timed call.
    assert slow.prefills == [name for name in names for _ in range(3)] + [name for name in names for _ in range(2)]


@pytest.mark.parametrize("decode", ["full", "sparse"])
def test_the_timed_call_runs_the_pattern_and_decodes_as_asked(model, decode):
    timed = arms(decode=decode)
    full, *rows = clock.measure_prefill(model, timed, {200: PROMPT}, repeats=1, new_tokens=5)
    assert full.calls is None  # the model's own attention
    for row in rows:
        assert row.calls == {"sparse_prefill": LAYERS, f"{decode}_decode": 5 * LAYERS}


def test_the_model_is_bit_identical_afterwards_also_after_a_failure(model):
    ids = torch.tensor([PROMPT])
    before, config = model(input_ids=ids).logits, model.config.to_dict()
    timed = [*arms(), Failing("mid"), Floor()]
    clock.measure_prefill(model, timed, {200: PROMPT}, repeats=1, new_tokens=2)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config.to_dict() == config and model.config._attn_implementation == "sdpa"


class Failing:
    """An arm that breaks: when it is bound, or in the middle of a call."""

    seeds = (0,)

    def __init__(self, when):
        self.name, self.when = f"failing-{when}", when

    def apply(self, model, seed):
        if self.when == "bound":
            raise NotImplementedError("this device has no such kernel")
        self.handle = model.lm_head.register_forward_pre_hook(self.fail)
        return self

    def fail(self, module, args):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    def restore(self):
        self.handle.remove()


def test_an_arm_that_fails_is_told_and_the_others_go_on(model):
    told = []
    broken = [Failing("bound"), Failing("mid")]
    rows = clock.measure_prefill(
        model,
        [broken[0], *arms(), broken[1], Floor()],
        {200: PROMPT},
        repeats=2,
        refused=lambda arm, error: told.append((arm.name, type(error).__name__)),
    )
    assert told == [("failing-bound", "NotImplementedError"), ("failing-mid", "OutOfMemoryError")]
    assert [row.arm for row in rows] == ["full", "swa-w16", "sa-w16", "none"]


def test_peak_memory_is_that_of_known_allocations():
    def call():
        kept = torch.ones(3_000_000)
        torch.ones(5_000_000)  # given back before the next one is made
        return kept, torch.ones(1_000_000)

    (kept, other), peak = memory.with_peak(call, torch.device("cpu"))
    assert kept.numel() + other.numel() == 4_000_000
    assert peak == pytest.approx(4 * 8_000_000, rel=0.02)


def test_peak_memory_counts_scratch_inside_operators_and_not_what_was_there_before():
    values = torch.rand(2_000_000)
    (found, order), peak = memory.with_peak(lambda: values.sort(), torch.device("cpu"))
    results = found.nbytes + order.nbytes
    assert results < peak < 3 * results


def test_peak_memory_of_a_model_holds_at_least_its_cache(model):
    (row,) = clock.measure_prefill(model, arms()[:1], {200: PROMPT}, repeats=1, batch_size=4)
    cache = LAYERS * 2 * 4 * 200 * 2 * 8 * 4  # keys and values of 4 rows, 2 heads of 8, in float32
    assert cache < row.peak_gib * 2**30 < 100 * cache


def test_the_floor_is_the_model_in_which_every_token_sees_itself_only(model):
    ids = torch.tensor([PROMPT[:40]])
    removed = Floor().apply(model, 0)
    try:
        floor = model(input_ids=ids, use_cache=True)
    finally:
        removed.restore()
    mask = torch.full((1, 1, 40, 40), -torch.inf).masked_fill(torch.eye(40, dtype=torch.bool), 0.0)
    model.set_attn_implementation("eager")
    itself = model(input_ids=ids, attention_mask={"full_attention": mask}, use_cache=True)
    torch.testing.assert_close(floor.logits, itself.logits, rtol=1e-5, atol=1e-5)
    for left, right in zip(floor.past_key_values.layers, itself.past_key_values.layers, strict=True):
        assert left.keys.shape == (1, 2, 40, 8)
        torch.testing.assert_close(left.keys, right.keys)
        torch.testing.assert_close(left.values, right.values)


def test_the_floor_decodes_without_its_cache(model):
    ids = torch.tensor([PROMPT[:40]])
    removed = Floor().apply(model, 0)
    try:
        whole = model(input_ids=ids).logits[:, -1]
        cached = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        last = model(input_ids=ids[:, -1:], past_key_values=cached).logits[:, -1]
    finally:
        removed.restore()
    torch.testing.assert_close(last, whole, rtol=1e-5, atol=1e-5)


def test_every_arm_and_length_has_a_row_with_every_quantity(folder, tmp_path):
    result, directory = measured(folder, tmp_path / "out", modes="sa", window="16,32", lengths="64,128")
    names = ["full", "sa-w16", "sa-w32", "none"]
    assert [(row.arm, row.length) for row in result.rows] == [(name, n) for n in (64, 128) for name in names]
    for row in result.rows:
        assert len(row.repeats_ms) == len(row.decode_repeats) == 2
        assert min(row.prefill_ms, row.peak_gib, row.decode_tokens_per_s, row.times_as_fast) > 0
        assert row.times_as_fast == result.at(row.length)["full"].prefill_ms / row.prefill_ms
    assert json.loads((directory.path / "speed.json").read_text()) == plain(result)
    (directory.path / "speed.csv").write_text(time_table.to_csv(result))
    lines = list(csv.DictReader((directory.path / "speed.csv").read_text().splitlines()))
    assert [(line["arm"], int(line["length"])) for line in lines] == [(row.arm, row.length) for row in result.rows]


def test_the_result_says_where_and_how_it_was_made(folder, tmp_path):
    result, _ = measured(folder, tmp_path / "out", modes="swa", window=16, lengths=64)
    assert result.versions["torch"] == torch.__version__
    assert {"torch", "transformers", "python", "sa_patch"} <= set(result.versions)
    assert result.hardware["device"] == "cpu" and result.hardware["threads"] == 1 and result.hardware["cpu"]
    assert result.model["weights"] == "the checkpoint's" and result.model["shape"]["num_hidden_layers"] == LAYERS
    assert result.settings["window"] == [16] and result.settings["new_tokens"] == 3
    assert result.started <= result.finished


def test_failed_arms_are_rows_with_their_reason(folder, tmp_path, monkeypatch):
    whole = clock.generate

    def short_of_memory(model, ids, new_tokens, clock):
        if model.config._attn_implementation == "sa_patch" and ids.shape[1] == 128:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return whole(model, ids, new_tokens, clock)

    monkeypatch.setattr(clock, "generate", short_of_memory)
    result, _ = measured(folder, tmp_path / "out", modes="swa,sa", window=16, lengths="64,128,160")
    assert [(row.arm, row.length) for row in result.failures] == [("swa-w16", 128), ("sa-w16", 128)]
    assert all("3 GiB" in row.error for row in result.failures)
    assert len(result.rows) == 3 * 4 - 2
    text = time_table.table(result)
    assert "swa-w16 at 128: OutOfMemoryError: tried to allocate 3 GiB" in text
    assert len([line for line in text.splitlines() if line.endswith("failed")]) == 2
    lines = list(csv.DictReader(time_table.to_csv(result).splitlines()))
    assert [line["arm"] for line in lines if line["error"]] == ["swa-w16", "sa-w16"]


def timed_row(arm, times, rates=(), length=64):
    """A row as the clock leaves it; the median is the one in the middle."""
    middle = len(times) // 2
    return Speed(
        arm=arm,
        length=length,
        prompt_tokens=length,
        prefill_ms=times[middle],
        repeats_ms=list(times),
        spread=0.1,
        first_ms=[9 * times[middle]],
        decode_tokens_per_s=rates[middle] if rates else None,
        decode_repeats=list(rates),
    )


def test_the_table_says_what_is_slower_than_full():
    rows = [
        timed_row("full", [9.0, 10.0, 11.0], [90.0, 100.0, 110.0]),
        timed_row("swa-w16", [19.0, 20.0, 21.0], [195.0, 200.0, 205.0]),
        timed_row("sa-w16", [10.0, 12.5, 14.0], [80.0, 95.0, 99.0]),
        timed_row("none", [4.0, 5.0, 6.0], [1.0, 2.0, 3.0]),
    ]
    notes = time_table.notes(beside_full(rows))
    assert notes[0].endswith(": swa-w16 0.50x at 64; sa-w16 ~0.80x at 64.") and "first token" in notes[0]
    assert notes[1].endswith(": sa-w16 ~0.95x at 64.")
    assert "none at 64: 45 ms" in notes[2] and "first call" in notes[2]
    assert time_table.notes(beside_full([rows[0], rows[3]]))[0] == "Nothing is slower than full."


def test_times_as_fast_is_above_1_where_it_is_faster_to_the_first_token_and_after_it():
    rows = [
        timed_row("full", [9.0, 10.0, 11.0], [90.0, 100.0, 110.0]),
        timed_row("swa-w16", [4.0, 5.0, 6.0], [195.0, 200.0, 205.0]),
        timed_row("none", [4.0, 5.0, 6.0]),
    ]
    full, faster, floor = beside_full(rows)
    assert (faster.times_as_fast, faster.decode_times_as_fast) == (2.0, 2.0)
    assert full.over_floor == 1.0 and floor.over_floor == 0.0 and floor.decode_times_as_fast is None


def test_lengths_beyond_the_positions_are_refused_unless_the_weights_are_random(folder, tmp_path):
    with pytest.raises(SettingsError, match=r"1022.*3 new tokens.*1024 positions"):
        measured(folder, tmp_path / "one", modes="swa", window=16, lengths=1022)
    assert not (tmp_path / "one").exists()
    result, _ = measured(folder, tmp_path / "two", modes="swa", window=16, lengths=1022, random_weights=True, repeats=1)
    assert result.model["weights"] == "random" and result.model["shape"]["max_position_embeddings"] == 1025
    assert result.model["shape"]["hidden_size"] == 32 and any("moba" in note for note in result.notes)


def test_a_shape_file_is_enough(tmp_path):
    shape = json.loads((ROOT / "configs/shapes/qwen3-8b.json").read_text())
    small = {**shape, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 100}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "auto_map": {"AutoConfig": "x.Y"}}
    (tmp_path / "shape.json").write_text(json.dumps(small))
    given = {"shape": str(tmp_path / "shape.json"), "modes": "swa", "window": 16, "lengths": 64, "dtype": "bfloat16"}
    asked = speed_settings({**given, "new_tokens": 0, "repeats": 1, "out": str(tmp_path / "out"), "device": "cpu"})
    _, result, _ = length_by_length.run(asked, Progress(enabled=False))
    assert (result.model["name"], result.model["dtype"]) == ("shape", "bfloat16")
    assert result.model["parameters"] < 40_000 and not result.failures
    assert all(row.decode_tokens_per_s is None for row in result.rows)


def test_the_shipped_shape_is_qwen3_8b():
    from sa_eval.speed.measured_model import shape_file

    config = shape_file("qwen3-8b")
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == "Qwen3ForCausalLM" and config.rope_parameters["rope_theta"] == 1e6
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_190_735_360  # as published


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": "x.json", "model": "qwen3-tiny"}, "model and shape"),
        ({"cpu_time": True}, "--threads 1"),
        ({"random_weights": True, "device_map": "auto"}, "device_map"),
        ({"repeats": "0"}, "repeats must be at least 1"),
        ({"new_tokens": "many"}, "new_tokens must be a whole number"),
        ({"modes": "sa_bucket"}, "did you mean 'sa-bucket'"),
    ],
)
def test_settings_that_contradict_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        speed_settings(given)


def test_a_shape_that_is_none_is_refused(tmp_path):
    (tmp_path / "shape.json").write_text('{"model_type": "no-such-model"}')
    for path in (tmp_path / "shape.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(SettingsError, match="cannot be used"):
            length_by_length.run(
                speed_settings({"shape": str(path), "out": str(tmp_path / "out")}), Progress(enabled=False)
            )


BLOCKED = (
    "lm_eval",
    "scipy",
    "statsmodels",
    "matplotlib",
    "datasets",
    "nltk",
    "pandas",
    "sklearn",
    "wonderwords",
)
BLOCK = f"""
import importlib.util, sys
blocked, find = {BLOCKED!r}, importlib.util.find_spec
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in blocked else find(name, package)
"""


def test_the_command_runs_without_installing_it_and_without_what_only_a_run_needs(tmp_path):
    (tmp_path / "sa_eval").symlink_to(ROOT / "eval")
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    arguments = ["--random-weights", "--modes", "swa,sa,moba", "--window", "16", "--lengths", "64", "--new-tokens", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "sa_eval", "speed", *arguments, "--repeats", "1", "--device", "cpu", "--out", "result"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "full " in done.stdout and "none " in done.stdout and "matplotlib is not installed" in done.stdout
    assert {path.name for path in (tmp_path / "result").iterdir()} == {"speed.json", "speed.csv", "run.lock"}


def test_an_interrupt_keeps_the_lengths_that_were_finished(folder, tmp_path, monkeypatch):
    whole = clock.generate

    def interrupted(model, ids, new_tokens, clock):
        if ids.shape[1] == 128:
            raise KeyboardInterrupt
        return whole(model, ids, new_tokens, clock)

    monkeypatch.setattr(clock, "generate", interrupted)
    flags = ["--model", folder, "--modes", "swa", "--window", "16", "--lengths", "64,128", "--repeats", "1"]
    assert main([*flags, "--new-tokens", "0", "--device", "cpu", "--out", str(tmp_path / "out")]) == 130
    saved = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert [(row["arm"], row["length"]) for row in saved["rows"]] == [("full", 64), ("swa-w16", 64), ("none", 64)]
    assert saved["interrupted"] and saved["finished"] is None
