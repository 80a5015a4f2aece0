"""`sa-eval tune`: teaches, refuses early, writes rules that the next command follows, and keeps to its budget."""

import json
import re
import subprocess
import sys

import pytest
import torch
from kernel_stand_ins import plant_kernel
from patch_cases import make_pattern, make_variant, random_heads

from sa_eval.cli import main
from sa_patch import kernels
from sa_patch.kernels import rules

pytestmark = pytest.mark.usefixtures("rules_folder")

SMALL = ["--device", "cpu", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--window", "12", "--threads", "1"]


def test_it_writes_rules_that_are_followed(rules_folder, capsys):
    asked = [*SMALL, "--lengths", "64,300", "--kernels", "torch,sdpa", "--seconds", "20"]
    assert main(["tune", *asked]) == 0
    shown = capsys.readouterr()
    (file,) = rules_folder.iterdir()
    assert f"rules: {file}" in shown.out and re.search(r"^  window +\w+", shown.out, re.MULTILINE)
    held = json.loads(file.read_text())
    assert [(entry["heads"], entry["kv_heads"], entry["head_dim"]) for entry in held["entries"]] == [(4, 2, 16)]
    figure = held["entries"][0]["figures"][0]
    assert all(low <= ms <= high for ms, low, high in figure["ms"].values())
    assert max(map(len, file.read_text().splitlines())) < 400  # for people, too
    assert rules.used(torch.device("cpu")).startswith("measured here by tune on ")
    choice = rules.choice(torch.device("cpu"), torch.float32, 16, 2)
    assert choice.at("window") == rules.parse(file.read_text()).entries[0].kernels["window"]


def test_a_wrong_kernel_is_told_by_the_exit_status(monkeypatch, capsys):
    plant_kernel(monkeypatch, "wrong", factor=1.01)
    asked = [*SMALL, "--lengths", "64", "--kernels", "wrong", "--seconds", "20"]
    assert main(["tune", *asked]) == 1
    assert "WRONG on this device, never taken: wrong: " in capsys.readouterr().out
    tensors = random_heads(300)
    assert kernels.choose("auto", make_pattern(make_variant("sa"), 300), *tensors) == "torch"


def test_a_shape_gives_its_heads(tmp_path, capsys):
    out = tmp_path / "out.json"
    asked = ["--shape", "qwen3-8b", "--device", "cpu", "--lengths", "20", "--window", "4", "--out", str(out)]
    assert main(["tune", *asked, "--seconds", "1", "--kernels", "torch", "--kv-heads", "32"]) == 0
    (entry,) = json.loads(out.read_text())["entries"]
    assert (entry["dtype"], entry["heads"], entry["kv_heads"], entry["head_dim"]) == ("float32", 32, 32, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--second", "5"], "unknown argument '--second': did you mean --seconds?"),
        (["--seconds", "0"], "seconds must be at least 1, found 0"),
        (["--device", "tpu"], "device 'tpu' is none: give cpu or cuda"),
        (["--dtype", "float64"], "dtype 'float64' is not known"),
        (["--kernels", "tritn"], "unknown kernel 'tritn'"),
        (["--heads", "3", "--kv-heads", "2"], "heads must be a multiple of kv_heads"),
        (["--lengths", "8", "--window", "8"], "no length is longer than a window"),
        (["--model", "qwen3-tiny", "--shape", "qwen3-8b"], "model and shape were both given"),
        (["--model", "./nowhere"], "nor a hub id"),
    ],
)
def test_bad_arguments_give_one_message_and_write_nothing(rules_folder, capsys, arguments, message):
    assert main(["tune", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not rules_folder.exists()


def test_a_file_that_cannot_be_written_is_one_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    asked = [
        *SMALL,
        "--lengths",
        "64",
        "--kernels",
        "torch",
        "--seconds",
        "1",
        "--out",
        str(tmp_path / "file" / "x.json"),
    ]
    assert main(["tune", *asked]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys; from sa_eval.cli import main\n"
        "try: main(['tune', '--help'])\n"
        "except SystemExit: pass\n"
        "main(['tune', '--seconds', '0'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sa_patch', 'pydantic', 'lm_eval', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples\n  sa-eval tune" in done.stdout and "SA_PATCH_HOME" in done.stdout
