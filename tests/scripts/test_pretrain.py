"""`scripts/pretrain.py` as its user calls it, on a text of a few pages."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
CONFIGS = SCRIPTS.parent / "configs" / "pretrain"
TINY = """--length 64 --tokens 3072 --batch-tokens 512 --rows 4 --hidden 32 --layers 1 --heads 2 --kv-heads 1
    --head-dim 16 --inner 32 --vocab 400 --documents 3 --synthetic 0 --window 16 --save-every 2 --precision fp32"""


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pretrain

    return pretrain


@pytest.fixture
def book(tmp_path):
    """200 documents of random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(300)]
    pages = ("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(8)) for _ in range(200))
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"# Page {number}\n{page}" for number, page in enumerate(pages)))
    return file


def flags(book, out, *more):
    return ["--text", str(book), "--out", str(out), *TINY.split(), *more]


def test_runs_are_trained_measured_compared_and_never_twice(pretrain, book, tmp_path, capsys):
    out = tmp_path / "out"
    more = "--attention", "full,gated,sa", "--seeds", "0,1"
    pretrain.main(flags(book, out, *more))
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    names = ("full", "gated-w16", "sa-w16")
    assert folders == sorted(f"{name}-seed{seed}" for name in names for seed in (0, 1))
    kept = np.load(out / "gated-w16-seed0" / "measured.npz")
    assert kept["losses"].shape == (3, 63) and np.isfinite(kept["losses"]).all()
    assert kept["context"].shape == (3, 2)  # after 16 and after 32 tokens, which are all
    last = kept["losses"][:, -32:].mean(axis=1)
    assert np.allclose(kept["context"][:, 1], last, atol=1e-5) and (kept["context"][:, 0] != last).all()
    assert kept["gate_sa"].shape == (1, 2) and 0 < kept["gate_sa"].min() < kept["gate_sa"].max() < 1
    report = (out / "report.md").read_text()
    assert "| gated w=16 | 2 |" in report and "| full, read with sa+swa w=16 | 2 |" in report
    assert "| attention | 16 | all |" in report and "Gates of gated w=16" in report
    assert (out / "loss-by-position.png").stat().st_size > 5000
    kept = json.loads((out / "report.json").read_text())
    assert {(arm["title"], arm["seeds"]) for arm in kept["arms"]} >= {("full", 2), ("gated w=16", 2), ("sa w=16", 2)}
    assert 10_000 < kept["parameters"] < 30_000
    files = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    capsys.readouterr()
    pretrain.main(flags(book, out, *more))
    assert files == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    with pytest.raises(SystemExit, match=r"holds runs of other settings \(tokens: 3072 then, 1024 now\)"):
        pretrain.main([*flags(book, out), "--tokens", "1024"])


@pytest.mark.parametrize("attention", ["gated", "sa"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(pretrain, book, tmp_path, monkeypatch, attention):
    from pretraining import training

    more = "--attention", attention, "--seeds", "3"
    pretrain.main(flags(book, tmp_path / "whole", *more))

    class Stopped(training.InOrder):
        def training_step(self, *arguments, **named):
            if self.state.global_step == 4:
                raise KeyboardInterrupt
            return super().training_step(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "InOrder", Stopped)
        pretrain.main(flags(book, tmp_path / "stopped", *more))
    pretrain.main(flags(book, tmp_path / "stopped", *more))
    found = [np.load(next((tmp_path / name).rglob("measured.npz")))["losses"] for name in ("whole", "stopped")]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_train_what_one_does(pretrain, book, tmp_path):
    more = "--attention", "gated,sa", "--seeds", "0"
    pretrain.main(flags(book, tmp_path / "one", *more))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    given = flags(book, tmp_path / "two", *more, "--threads", "1")
    subprocess.run([*launcher, SCRIPTS / "pretrain.py", *given], check=True, capture_output=True, timeout=300)
    for name in ("gated-w16-seed0", "sa-w16-seed0"):
        losses = [np.load(tmp_path / out / name / "measured.npz")["losses"] for out in ("one", "two")]
        np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attention", "swaa"], "unknown attention swaa: choose from full, swa"),
        (
            ["--config", str(CONFIGS / "paper.yaml"), "--hidden", "64"],
            "leaves batch_to",
        ),
        (["--batch-tokens", "500"], "batch_tokens=500 is no multiple of rows=4 x length=64"),
        (["--text", "nowhere.txt"], "no such text file: nowhere.txt"),
        (["--window", "8,64"], "window=64 of rows of length=64 tokens: give a window of 1 to 63 keys"),
        (["--window", "0"], "window=0 of rows of length=64 tokens"),
        (["--attention", "swa,sa,swa"], "attention has swa more than once"),
        (["--seeds", "0,0"], "seeds has 0 more than once"),
        (["--seeds", "0,a"], "seeds=('0', 'a'): seeds takes whole numbers"),
        (["--rows", "0"], "rows=0 is out of range: it has to be positive"),
        (["--tokens", "100"], "tokens=100 is less than a step of batch_tokens=512"),
        (["--heads", "3", "--kv-heads", "2"], "heads=3 is no multiple of kv_heads=2"),
        (["--synthetic", "2"], "synthetic=2.0 is a share"),
        (["--vocab", "100"], "vocab=100 is too small: bytes and the end of a text are 257 tokens"),
        (["--document-start", "("], "document_start='(' is no regular expression"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_anything_is_written(pretrain, book, tmp_path, capsys, more, message):
    given = ["--text", str(book), "--out", str(tmp_path / "out"), *more]
    with pytest.raises(SystemExit):
        pretrain.main(given if "--config" in more else [*flags(book, tmp_path / "out"), *more])
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("- 1", "holds a list, not settings"),
        ("a: [", "is no YAML file"),
        ("colour: red", "has colour, which is no setting"),
        ("rate: fast", "rate='fast': rate takes numbers"),
        ("window: [null]", "window=[None]: window takes whole numbers"),
        ("layers: 1.5", "layers=1.5: layers takes whole numbers"),
    ],
)
def test_a_config_that_is_none_is_refused(pretrain, book, tmp_path, capsys, yaml, message):
    file = tmp_path / "config.yaml"
    file.write_text(yaml)
    with pytest.raises(SystemExit):
        pretrain.parse(["--text", str(book), "--out", "out", "--config", str(file)])
    assert message in capsys.readouterr().err


def test_a_config_may_give_one_value_and_numbers_as_yaml_reads_them(pretrain, book, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"text: {book}\nattention: swa\nwindow: 32\nseeds: 7\nrate: 2e-3\n")
    settings, _, _ = pretrain.parse(["--out", "out", "--config", str(file)])
    assert (settings.text, settings.attention, settings.window, settings.seeds) == ((str(book),), ("swa",), (32,), (7,))
    assert settings.rate == 0.002


def test_a_folder_is_of_other_settings_only_once_its_data_are_whole(pretrain, book, tmp_path):
    out = tmp_path / "out"
    more = "--attention", "swa", "--seeds", "0"
    with pytest.raises(SystemExit, match=r"0 held out|found 0 documents"):
        pretrain.main([*flags(book, out, *more), "--document-start", "^nowhere"])
    (out / "held_out.npz").write_bytes(b"half of a file")  # stopped while it was written
    pretrain.main(flags(book, out, *more))
    moved = book.rename(tmp_path / "other.txt")
    pretrain.main(flags(moved, out, *more, "--report"))  # the same text, whatever it is called
    moved.write_text(moved.read_text() + "more")
    for last in ([], ["--report"]):
        with pytest.raises(SystemExit, match="text_sha256"):
            pretrain.main(flags(moved, out, *more, *last))
    with pytest.raises(SystemExit, match="nothing has been trained in"):
        pretrain.main(flags(moved, tmp_path / "nowhere", "--report"))


def test_half_a_checkpoint_is_passed_over(pretrain, tmp_path):
    from pretraining.training import _last_checkpoint

    assert _last_checkpoint(tmp_path) is None
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"half'), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert _last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_report_has_all_that_is_finished_or_what_was_asked_for(pretrain, book, tmp_path, capsys):
    from filelock import FileLock

    out = tmp_path / "out"
    for attention, window in (("swa", "16"), ("swa-half", "8")):
        pretrain.main(flags(book, out, "--attention", attention, "--seeds", "0", "--window", window))
    kept = json.loads((out / "report.json").read_text())
    assert [arm["title"] for arm in kept["arms"]] == ["swa-half w=8", "swa w=16"]
    assert set(kept["sha256"]) == {"tokenizer", "train", "held_out"} and kept["versions"]["torch"]
    half, swa = kept["arms"]
    assert np.allclose(half["gate_swa"], 0.5) and np.allclose(half["gate_sa"], 0)
    assert len(swa["loss_by_distance"]) == 1 + len(kept["distances"]) and swa["loss_by_distance"][-1] is None
    pretrain.main(flags(book, out, "--attention", "swa", "--window", "16", "--report"))
    assert len(json.loads((out / "report.json").read_text())["arms"]) == 1
    with pytest.raises(SystemExit, match="nothing of what was asked for has been measured"):
        pretrain.main(flags(book, out, "--attention", "moba", "--window", "16", "--report"))
    capsys.readouterr()
    folder = out / "sa-w16-seed0"
    folder.mkdir()
    with FileLock(folder / ".lock"):  # another process trains it
        pretrain.main(flags(book, out, "--attention", "sa", "--seeds", "0"))
    assert "left to another process, which is at it: sa-w16-seed0" in capsys.readouterr().out
    assert not (folder / "trained.json").exists()


def test_several_devices_need_a_launcher(pretrain, book, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit, match="torchrun --nproc_per_node 2"):
        pretrain.main(flags(book, tmp_path / "out", "--attention", "swa"))
    assert not (tmp_path / "out").exists()


def test_the_shipped_comparison_is_readable(pretrain, book, tmp_path):
    config = str(CONFIGS / "small.yaml")
    settings, _, _ = pretrain.parse(["--text", str(book), "--out", str(tmp_path), "--config", config])
    assert len(list(settings.runs())) == 30 and settings.steps == 488
    assert json.loads(json.dumps(settings.as_dict()))["seeds"] == [0, 1, 2]


def test_differences_are_paired_by_seed_and_controls_are_told(pretrain):
    """Planted: seeds differ far more than attentions do; only one seed has both."""
    from pretraining import compared, report

    noise, level = np.random.default_rng(0).normal(size=(3, 40, 8)), np.array([0.0, 5.0, 9.0])[:, None, None]
    none, losses = np.zeros((3, 0), dtype=bool), noise + level
    base = compared.Arm("gated-swa w=8", (0, 1, 2), losses, none, none, {})
    found = compared.difference(compared.Arm("gated w=8", (1,), losses[1:2] - 0.5, none, none, {}), base)
    assert found.by_seed == pytest.approx((-0.5,)) and found.low == pytest.approx(-0.5) == found.high
    (row,) = report._controls([base, compared.Arm("gated w=8", (1, 2), losses[1:] + 0.25, none, none, {})])[2:-1]
    assert row == "| gated w=8 minus gated-swa w=8 | 2 | +0.250 (+0.250 to +0.250) | +0.250 to +0.250 |"
    assert compared.difference(compared.Arm("x", (7,), losses[:1], none, none, {}), base) is None


@pytest.mark.parametrize("name", ["gated-swa", "swa-scaled", "swa-half"])
def test_a_gated_window_is_a_window_once_its_gates_are_open(pretrain, name):
    """What of its gates is trained: all, one number per head, nothing."""
    from pretraining.arms import new_model, patched
    from pretraining.settings import Run, Settings

    settings = Settings(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, inner=48)
    ids = torch.arange(40)[None]
    logits = {}
    for arm in ("swa", name):
        model = new_model(settings, 0, 0, 50)
        patched(model, Run(arm, 8, 0), "step")
        for path, gate in model.named_modules():
            if path.endswith("gate_swa"):
                torch.nn.init.constant_(gate.bias, torch.inf)
        logits[arm] = model(input_ids=ids, labels=ids).logits
    torch.testing.assert_close(logits[name], logits["swa"])
    logits[name].sum().backward()
    given = (path for path, one in model.named_parameters() if one.grad is not None)
    own = {path.split(".gate_")[1] for path in given if ".gate_s" in path}
    assert own == {"gated-swa": {"swa.weight", "swa.bias"}, "swa-scaled": {"swa.bias"}, "swa-half": set()}[name]
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_is_in_one_optimizer_and_moves_as_it_says(pretrain, name):
    from pretraining.arms import new_model, patched
    from pretraining.optimizers import make_optimizer
    from pretraining.settings import Run, Settings

    settings = Settings(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, inner=48)
    model = new_model(settings, 0, 0, 50)
    patched(model, Run("gated", 8, 0), "never")
    optimizer = make_optimizer(name, model, 0.01, 0.0)
    listed = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(listed) == sorted(id(one) for one in model.parameters())
    before = {path: one.detach().clone() for path, one in model.named_parameters()}
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    for path, one in model.named_parameters():
        moved = (one.detach() - before[path])[one.grad.abs() > 1e-6]
        if name == "muon" and path.endswith("_proj.weight"):  # orthogonal, as long as AdamW's
            rows = (one.detach() - before[path]) / (0.01 * 0.2 * max(one.shape) ** 0.5)
            values = torch.linalg.svdvals(rows.float())
            assert 0.5 < values.max() < 1.3, path
        else:  # Adam's first step moves every weight by the rate
            torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=0.05, atol=0.0)


def test_every_window_is_held_against_its_own_sliding_window(pretrain):
    from pretraining import compared, report

    none = np.zeros((3, 0))

    def arm(title, loss):
        noise = np.random.default_rng(len(title)).normal(0, 0.01, (3, 8, 16))
        return compared.Arm(title, (0, 1, 2), loss + noise, none, none, {})

    arms = [arm("full", 4.0), arm("swa w=8", 5.0), arm("swa w=16", 3.0), arm("sa w=8", 6.0), arm("sa w=16", 3.5)]
    cells = {row.split(" | ")[0].lstrip("| "): row for row in report._losses(arms)}
    assert "+0.5" in cells["sa w=16"] and "+1.0" in cells["sa w=8"]
    assert "-1.0" in cells["full"]  # of no window: against the first
    assert cells["swa w=8"].endswith("|  |  |  |") and cells["swa w=16"].endswith("|  |  |  |")
