"""A kernel that can't run on the device is refused before anything is scored; results name the rules and the kernel."""

import csv
import json

import pytest
import torch
from eval_helpers import save_tiny_model

from sa_eval import machine
from sa_eval.cli import main
from sa_patch.kernels import rules


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


COMMON = ["--lengths", "320", "--window", "32", "--device", "cpu", "--modes", "swa,sa"]


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["run", "--no-speed"], ["speed"], ["fidelity"]])
def test_flash_on_a_cpu_is_refused_before_anything_is_scored(model, tmp_path, capsys, command):
    out = ["--out", str(tmp_path / "out")]
    text = []
    if command == ["fidelity"]:
        (tmp_path / "text.txt").write_text("one word after another " * 400)
        text = ["--text", str(tmp_path / "text.txt")]
    assert main([*command, "--model", model, *COMMON, "--kernel", "flash", *out, *text]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert "swa-w32, sa-w32: kernel 'flash': it needs a GPU, the tensors are on 'cpu'. Use --kernel auto" in shown
    assert not list((tmp_path / "out").rglob("*.jsonl")) and not (tmp_path / "out" / "speed.json").exists()


def test_a_dry_run_asks_about_the_device_that_will_be_used(model, tmp_path, capsys):
    asked = ["--model", model, *COMMON, "--dry-run"]
    assert main([*asked, "--kernel", "torch"]) == 0
    assert main([*asked, "--kernel", "auto"]) == 0


def test_a_run_names_the_rules_it_followed(model, tmp_path):
    out = tmp_path / "run"
    asked = ["--model", model, *COMMON, "--tasks", "cloze", "--num-samples", "1", "--seeds", "0", "--no-speed"]
    assert main([*asked, "--out", str(out)]) == 0
    hardware = json.loads((out / "manifest.json").read_text())["hardware"]
    sha256 = rules.shipped()["cpu"].sha256
    assert hardware["kernel_rules"] == f"measured on an x86 CPU in float32 (sha256 {sha256[:16]})"
    assert machine.hardware(torch.device("cpu"))["kernel_rules"] == hardware["kernel_rules"]


def test_speed_shows_which_kernel_ran(model, tmp_path, capsys):
    out = tmp_path / "speed"
    asked = ["--repeats", "1", "--new-tokens", "1", "--out", str(out)]
    assert main(["speed", "--model", model, *COMMON, *asked]) == 0
    shown = capsys.readouterr().out
    lines = {
        line.split()[0]: line.split()[1] for line in shown.splitlines() if line.startswith(("swa-", "sa-", "none"))
    }
    assert (lines["swa-w32"], lines["sa-w32"], lines["none"]) == ("torch", "torch", "\u2013")
    rows = {row["arm"]: row["kernels"] for row in json.loads((out / "speed.json").read_text())["rows"]}
    assert rows == {"full": [], "swa-w32": ["torch"], "sa-w32": ["torch"], "none": []}
    table = {row["arm"]: row["kernels"] for row in csv.DictReader((out / "speed.csv").read_text().splitlines())}
    assert table["sa-w32"] == "torch"
