"""Laws of the command line: it works end to end without a network, answers fast, and says what is wrong."""

import json
import re
import subprocess
import sys

import pytest
import torch
from eval_helpers import save_tiny_model

import sa_patch
from sa_eval.cli import main

# RULER's documents are made in a forked child; newer Pythons warn about forking a process that has threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.usefixtures("few_tasks", "few_words"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def flags(model, out, *more):
    return [
        "--model",
        model,
        "--out",
        str(out),
        "--lengths",
        "320",
        "--window",
        "32",
        "--num-samples",
        "2",
        "--device",
        "cpu",
        "--no-speed",
        *more,
    ]


def test_one_command_gives_table_records_and_report(model, tmp_path, capsys):
    assert main(flags(model, tmp_path / "run", "--seeds", "0", "--num-samples", "1")) == 0
    shown = capsys.readouterr()
    assert re.search(r"^full .*\n^swa-w32 .*\n^sa-w32 .*\n^moba-w32 ", shown.out, re.MULTILINE)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.yaml",
        "manifest.json",
        "records",
        "results.json",
        "summary.csv",
        "report.html",
    }
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (
        len(results["tasks"]) == 9
        and not results["failures"]
        and re.fullmatch("[0-9a-f]{64}", results["model"]["weights_sha256"])
    )


def test_a_saved_config_runs_again_with_the_same_documents(model, tmp_path, capsys):
    assert main(flags(model, tmp_path / "one", "--tasks", "cloze", "--modes", "swa")) == 0
    config = tmp_path / "one" / "config.yaml"
    assert "out: null" in config.read_text()  # or it would point at the finished run
    assert main(["--config", str(config), "--out", str(tmp_path / "two")]) == 0
    one, two = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two"))
    assert one["tasks"] == two["tasks"] and one["cells"] == two["cells"]


def test_a_run_directory_is_never_written_twice(model, tmp_path, capsys):
    assert main(flags(model, tmp_path / "run", "--tasks", "cloze", "--modes", "swa")) == 0
    assert main(flags(model, tmp_path / "run", "--tasks", "cloze", "--modes", "swa")) == 2
    assert "already holds" in capsys.readouterr().err


def test_ruler_runs_offline_at_its_length(model, tmp_path, capsys):
    assert (
        main(
            flags(
                model, tmp_path / "run", "--tasks", "niah_single_1", "--modes", "sa", "--seeds", "0", "--lengths", "600"
            )
        )
        == 0
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (task,) = results["tasks"]
    assert (task["name"], task["length"], task["family"], task["documents"]) == ("niah_single_1", 600, "retrieval", 2)
    assert 300 < task["median_prompt_tokens"] <= 600 - 128


def test_a_failure_is_told_by_the_exit_status(model, tmp_path, capsys):
    assert main(flags(model, tmp_path / "run", "--tasks", "cloze", "--modes", "swa", "--lengths", "24,320")) == 1
    assert "cloze@24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "sa_bucket"], "did you mean 'sa-bucket'"),
        (["--window", "0"], "window must be at least 1"),
        (["--model", "qwen3-tinny"], "did you mean 'qwen3-tiny'"),
        (["--model", "./nowhere"], "nor a hub id"),
        (["--tasks", "needle_singel"], "did you mean 'needle_single'"),
        (["--sinks", "64", "--window", "32"], "cannot run"),
        (["--kernel", "cudnn"], "cudnn"),
        (["--config", "missing.yaml"], "cannot read the config"),
        (["--windows", "64"], "unknown argument '--windows': did you mean --window?"),
        (["--windows=64"], "unknown argument '--windows': did you mean --window?"),
        (["--mode", "sa"], "unknown argument '--mode': did you mean --modes?"),
        (["--length", "64"], "unknown argument '--length': did you mean --lengths?"),
        (["--top_k", "4"], "unknown argument '--top_k': did you mean --top-k?"),
        (["--window"], "argument --window: expected at least one argument"),
    ],
)
def test_bad_arguments_give_one_message_and_status_2(model, tmp_path, capsys, arguments, message):
    given = arguments if "--model" in arguments else ["--model", model, *arguments]
    assert main([*given, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "unknown command 'rnu': did you mean 'run'?"),
        (["x"], "choose from run, resume, report, compare, speed, fidelity, calibrate, coverage, tune"),
        (["speed", "--new-token", "4"], "unknown argument '--new-token': did you mean --new-tokens?"),
        (["speed", "--shape", "qwen"], "neither a file nor the name of shipped shapes: qwen3-8b"),
        (["fidelity", "--texts", "x"], "unknown argument '--texts': did you mean --text?"),
        (["compare", "a"], "the following arguments are required: B"),
    ],
)
def test_every_command_names_what_was_meant(capsys, arguments, message):
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("sa-eval: ") and message in shown and shown.count("\n") == 1


def test_the_version_is_that_of_everything_that_counts(capsys):
    assert main(["--version"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["sa_patch"] == sa_patch.__version__ and lines["torch"] == torch.__version__


BARE = """\
import sys
for name in ("yaml", "lm_eval", "scipy", "matplotlib", "tqdm", "accelerate", "jinja2", "nltk", "wonderwords"):
    sys.modules[name] = None  # importing it says that there is no such module
from sa_eval.cli import main
print([main(arguments) for arguments in ([], ["speed"], ["compare", "x", "y"])])
"""


def test_without_the_extra_a_command_says_which_is_missing(tmp_path):
    done = subprocess.run([sys.executable, "-c", BARE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and done.stdout == "[2, 2, 2]\n", done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("sa-eval: ")]
    assert len(lines) == 3 and all(line.endswith('pip install "sa-patch[eval]"') for line in lines)


def test_a_dry_run_shows_the_plan_and_writes_nothing(model, tmp_path, capsys):
    assert main(flags(model, tmp_path / "run", "--dry-run", "--modes", "swa,sa,moba")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"sa-w32 +0,1 +30\.\d +0\.19", shown) and "needle_single" in shown and "memory" in shown
    assert not (tmp_path / "run").exists()


def test_help_and_bad_settings_import_nothing_heavy():
    code = (
        "import sys; from sa_eval.cli import main; from sa_eval.commands.run import build_parser;"
        "build_parser().format_help(); main(['--window', '0']); main(['--modes', 'sax']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sa_patch', 'pydantic', 'lm_eval', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_module_is_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "sa_eval", "--list-tasks"], capture_output=True, text=True, check=True
    ).stdout
    assert "needle_single" in shown and "niah_single_1" in shown
