"""Laws of the self-test: a batch that changes answers stops the run before scoring, an honest one does not."""

import json

import pytest
import torch
from eval_helpers import save_tiny_model, tiny_model, tiny_tokenizer
from run_helpers import undrawn

from sa_eval.cli import main
from sa_eval.lm.exact import ExactLM
from sa_eval.page import report
from sa_eval.run import selftest
from sa_eval.settings.arms import Arm
from sa_patch.geometry import Geometry
from sa_patch.integration import attention

TEXT = " ".join(f"The magic number for banjo {number} is {number * number}." for number in range(24))
ARMS = [
    Arm("full", "full", "full", None),
    Arm("swa-w24", "swa", "swa", 24),
    Arm("sa-w24", "sa", "sa", 24),
    Arm("sa+swa-w24", "sa+swa", "sa+swa", 24),
    Arm("moba-w32", "moba", "moba", 32),
]


def rows():
    ids = tiny_tokenizer().encode(TEXT)
    return [ids[start : start + length] for start, length in ((0, 200), (9, 120), (3, 160), (0, 90), (40, 150))]


def lm(model=None, batch_size=4):
    return ExactLM(model or tiny_model(), tiny_tokenizer(), batch_size=batch_size)


def count_padding(monkeypatch):
    """An attention that takes padding for tokens: the mask got lost on the way."""
    honest = attention.attend

    def attend(query, key, value, geometry, *more, **options):
        return honest(query, key, value, Geometry(geometry.columns), *more, **options)

    monkeypatch.setattr(attention, "attend", attend)
    monkeypatch.setattr(report, "write", undrawn)


def test_honest_arms_pass_in_float32():
    found = selftest.check(lm(), ARMS, rows())
    assert [row.status for row in found] == ["passed"] * len(ARMS)
    assert max(row.worst for row in found) < 1e-4 and {row.allowed for row in found[1:]} == {1e-3}
    selftest.refuse(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_honest_arms_pass_in_half_precision(dtype):
    found = selftest.check(lm(tiny_model().to(dtype)), ARMS, rows())
    assert [row.status for row in found] == ["passed"] * len(ARMS)
    assert all(row.allowed < 1 for row in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_attention_that_counts_padding_fails(monkeypatch, dtype):
    count_padding(monkeypatch)
    found = selftest.check(lm(tiny_model().to(dtype)), ARMS, rows())
    assert {row.arm: row.status for row in found} == {
        "full": "passed",
        "swa-w24": "failed",
        "sa-w24": "failed",
        "sa+swa-w24": "failed",
        "moba-w32": "failed",
    }
    assert all(row.worst > 2 * row.allowed for row in found[1:])
    with pytest.raises(selftest.SettingsError, match=r"swa-w24 by [\d.]+ nats \(allowed .*--batch-size 1"):
        selftest.refuse(found)


def test_rows_that_see_each_other_fail_without_padding_too(monkeypatch):
    """Scoring by log-likelihood has no mask; there, a row must not read its neighbour."""
    model = tiny_model()
    honest = model.model.forward

    def mixed(*given, **named):
        output = honest(*given, **named)
        output.last_hidden_state = output.last_hidden_state + 0.1 * output.last_hidden_state.mean(0, keepdim=True)
        return output

    monkeypatch.setattr(model.model, "forward", mixed)
    cut = [row[:90] for row in rows()]
    (found,) = selftest.check(lm(model), ARMS[:1], cut)
    assert found.status == "failed"


def test_arms_that_run_the_same_code_are_tested_once_with_the_narrowest_window(monkeypatch):
    asked = []
    honest = Arm.apply
    monkeypatch.setattr(Arm, "apply", lambda self, *given: asked.append(self.name) or honest(self, *given))
    arms = [
        Arm("full", "full", "full", None),
        Arm("sa-w48", "sa", "sa", 48),
        Arm("sa-w24", "sa", "sa", 24, seeds=(3, 4)),
        Arm("sa-half", "sa", "sa", 0.5),
        Arm("sa-w24-sinks8", "sa", "sa", 24, options={"sinks": 8}),
        Arm("sa-w32-sinks4", "sa", "sa", 32, options={"sinks": 4}),
        Arm("sa-bucket-w24", "sa", "sa", 24, options={"form": "bucket"}),
        Arm("sa-w24-tail4", "sa", "sa", 24, dense_tail=4, options={"dense_tail": 4}),
        Arm("sa-w24-reference", "sa", "sa", 24, kernel="reference"),
        Arm("swa-w24", "swa", "swa", 24),
    ]
    found = {row.arm: row for row in selftest.check(lm(), arms, rows())}
    assert [*found] == [arm.name for arm in arms]
    tested = [name for name, row in found.items() if row.status == "passed"]
    assert tested == [name for name in found if name not in ("sa-w48", "sa-half", "sa-w32-sinks4")]
    assert sorted(asked) == sorted(tested)
    assert all(found[name].status == "covered" for name in ("sa-w48", "sa-half", "sa-w32-sinks4"))
    assert "runs the code of sa-w24," in found["sa-w48"].text
    assert "runs the code of sa-w24-sinks8," in found["sa-w32-sinks4"].text


def test_an_arm_that_cannot_run_covers_no_other(monkeypatch):
    honest = Arm.apply

    def apply(self, *given):
        if self.window == 8:
            raise NotImplementedError("not that narrow")
        return honest(self, *given)

    monkeypatch.setattr(Arm, "apply", apply)
    arms = [ARMS[0], *(Arm(f"swa-w{window}", "swa", "swa", window) for window in (8, 24, 48))]
    found = {row.arm: row.status for row in selftest.check(lm(), arms, rows())}
    assert found == {"full": "passed", "swa-w8": "skipped", "swa-w24": "passed", "swa-w48": "covered"}


def test_alone_there_is_nothing_to_test():
    found = selftest.check(lm(batch_size=1), ARMS, rows())
    assert {row.status for row in found} == {"skipped"}
    selftest.refuse(found)


@pytest.mark.parametrize("batch_size", [2, 4, 16])
def test_prompts_have_different_lengths_whatever_the_documents_have(batch_size):
    for given in (rows(), [row[:90] for row in rows()], rows()[:1], [list(range(6000))] * 3):
        lengths = [len(prompt) for prompt in selftest.prompts_from(given, batch_size)]
        assert len(lengths) == len(set(lengths)) == min(4, batch_size) and max(lengths) <= 4096


def test_a_failed_self_test_stops_the_run_before_scoring(tmp_path, monkeypatch, capsys):
    count_padding(monkeypatch)
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "run"
    flags = ["--model", model, "--device", "cpu", "--lengths", "192", "--window", "24", "--num-samples", "2"]
    tasks = ["--no-speed", "--tasks", "cloze", "--modes", "swa"]
    assert main(["run", *flags, *tasks, "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert "stopped before scoring" in shown and "swa-w24 by" in shown and "--batch-size 1" in shown
    assert not list((out / "records").iterdir())
    checks = [json.loads(line) for line in (out / "checks.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["status"]) for row in checks} == {("full", "passed"), ("swa-w24", "failed")}
    assert main(["resume", str(out)]) == 2  # it is tested again
    assert "stopped before scoring" in capsys.readouterr().err
    assert main(["run", *flags, *tasks, "--batch-size", "1", "--out", str(tmp_path / "alone")]) in (0, 1)
