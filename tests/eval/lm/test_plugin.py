"""Laws of lm-eval's model type `sa`: sa-eval's scores under lm-eval's command line, and nothing ignored silently."""

import json
import multiprocessing
import os
import subprocess
import sys
from functools import partialmethod
from importlib import metadata

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from sa_eval.lm import command
from sa_eval.lm.plugin import SparseLM
from sa_eval.loading import sources
from sa_eval.progress import Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.run import runner
from sa_eval.settings.config import settings_from
from sa_eval.settings.values import SettingsError

pytestmark = pytest.mark.usefixtures("few_tasks")

TEXT = "The clerk examined the bundle near the square and the magic number was late again"
ROWS = [
    {
        "text": " ".join((TEXT.split() * 6)[number : number + 30 + 7 * (number % 3)]),
        "choices": [" clever", " late again"],
        "gold": number % 2,
    }
    for number in range(6)
]
TASKS = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
---
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
NAMES = ("local_choice", "local_text")
TINY = "qwen3-tiny"


def _no_network(*_, **__):
    raise OSError("no network")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The folder of two task files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lm_eval.models.huggingface.HfApi.model_info", _no_network)
    only_ours = partialmethod(TaskManager.__init__, include_defaults=False)  # thousands of tasks take seconds to list
    monkeypatch.setattr(TaskManager, "__init__", only_ours)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in zip(NAMES, TASKS.format(data=data).split("---"), strict=True):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def answers(lm, folder):
    """{task: what the model said to each document} through lm-eval's own evaluation."""
    manager = TaskManager(include_path=str(folder))
    found = simple_evaluate(
        lm, tasks=list(NAMES), task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    if found is None:  # not the first of several processes
        return None
    return {
        name: [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for name, samples in found["samples"].items()
    }


def assert_same(found, expected):
    assert found["local_text"] == expected["local_text"]
    scores = [
        torch.tensor([[float(score) for score, _ in document] for document in side["local_choice"]])
        for side in (found, expected)
    ]
    torch.testing.assert_close(*scores, rtol=1e-5, atol=2e-4)


def sparse(**arguments):
    return SparseLM(sources.find(TINY).path, **arguments)


def test_scores_are_those_of_sa_eval_document_by_document(tasks):
    settings = settings_from(
        {
            "model": TINY,
            "tasks": [str(tasks / f"{name}.yaml") for name in NAMES],
            "modes": ["sa-bucket"],
            "window": [12],
            "dense_tail": [3],
            "num_samples": "all",
            "lengths": [64],
            "seeds": [1],
            "device": "cpu",
            "speed": False,
            "out": str(tasks / "run"),
        }
    )
    runner.run(settings, Progress(enabled=False))
    directory = RunDirectory(tasks / "run")
    records = {(row.arm, row.name, row.index): row.output for row in directory.records()}
    for mode in ("full", "sa-bucket"):
        lm = sparse(mode=mode, window=12, seed=1, dense_tail=3, dtype="float32", batch_size=3)
        found = answers(lm, tasks)
        arm = "full" if mode == "full" else f"{mode}-w12-tail3"
        assert (lm.patch is None) == (mode == "full")
        assert lm.patch is None or lm.patch.calls[0]["sparse_prefill"] > 0
        for index in range(len(ROWS)):
            assert found["local_text"][index] == [records[arm, "local_text", index]]
            said = torch.tensor([float(score) for score, _ in found["local_choice"][index]])
            torch.testing.assert_close(said, torch.tensor(records[arm, "local_choice", index]), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32", "float64"])
def test_a_log_likelihood_is_the_plain_models_in_the_dtype_that_is_loaded(dtype):
    """Without one the checkpoint's, as in lm-eval; half precision moves a sum of four log-probabilities by .24 here."""
    path, (context, continuation) = sources.find(TINY).path, ("the river stone market window", " garden letter")
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids, start = tokenizer.encode(context + continuation), len(tokenizer.encode(context))

    def by_hand(precision):
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=precision).eval()
        with torch.inference_mode():
            log_probs = plain(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return sum(float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids)))

    lm = sparse(mode="full", **({"dtype": dtype} if dtype else {}))
    ((found, _),) = lm.loglikelihood([Instance("loglikelihood", {}, (context, continuation), 0, ("task", 0, 1))])
    assert lm.model.dtype == getattr(torch, dtype or "bfloat16")
    assert found == pytest.approx(by_hand(dtype or "auto"), abs=1e-4)
    assert found == pytest.approx(by_hand("float64"), abs=1e-3 if dtype in ("float32", "float64") else 0.3)


def test_full_is_lm_evals_own_model(tasks):
    manager = TaskManager(include_path=str(tasks))
    path = sources.find(TINY).path
    plain = simple_evaluate(
        "hf",
        model_args={"pretrained": path, "dtype": "float32"},
        device="cpu",
        tasks=list(NAMES),
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
    expected = {name: [sample["filtered_resps"] for sample in rows] for name, rows in plain["samples"].items()}
    assert_same(answers(sparse(mode="full", dtype="float32", batch_size=4), tasks), expected)


def test_the_command_line_runs_and_says_what_ran(tasks, capsys):
    path = sources.find(TINY).path
    status = command.main(
        [
            *("run", "--model", "sa", "--model_args", f"pretrained={path},mode=sa,window=12,dense_layers=[0],seed=3"),
            *("--tasks", ",".join(NAMES), "--include_path", str(tasks), "--output_path", str(tasks / "results.json")),
        ]
    )
    assert status == 0 and "local_choice" in capsys.readouterr().out
    (file,) = tasks.glob("results*.json")
    config = json.loads(file.read_text())["config"]
    assert {task: said["answered"] for task, said in config["cut_answers"].items()} == {"local_text": len(ROWS)}
    written = config["sa_patch"]
    assert (written["mode"], written["window"], written["seed"], written["dense_layers"]) == ("sa", 12, 3, [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"needs mode=.*random-keys"),
        ({"mode": "sq"}, r"mode 'sq' is not known: did you mean 'sa'"),
        ({"mode": "sa", "windwo": 12}, r"unknown argument 'windwo'.*did you mean 'window'"),
        ({"mode": "sa", "pef": "x"}, r"unknown argument 'pef'.*did you mean 'peft'"),
        ({"mode": "swa", "form": "bucket"}, r"option 'form' is for mode sa"),
        (
            {"mode": "sa-bucket", "form": "sliding"},
            r"'sa-bucket' is mode 'sa' with form='bucket': leave form='sliding' out",
        ),
        ({"mode": "sa", "window": 0}, r"window must be"),
        ({"mode": "sa", "batch_size": "auto"}, r"--batch_size auto is for --model hf"),
        ({"mode": "sa", "truncation": True}, r"truncation=True does nothing.*nothing is truncated"),
        ({"mode": "sa", "mixed_precision_dtype": "bfloat16"}, r"no autocast here"),
        ({"mode": "sa", "think_end_token": 10**6}, r"taken for a token's number.* the tokenizer has \d+ tokens"),
        ({"mode": "sa", "backend": "seq2seq"}, r"takes causal language models; this is 'qwen3' as a seq2seq"),
    ],
)
def test_what_would_be_ignored_or_mistaken_is_refused(arguments, message):
    with pytest.raises(SettingsError, match=message):
        sparse(**arguments)


def test_models_that_are_not_causal_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 8, "num_layers": 1}))
    with pytest.raises(SettingsError, match=r"takes causal language models; this is 't5': run it with --model hf"):
        SparseLM(str(tmp_path), mode="sa")


def test_a_cache_of_answers_is_refused(tasks, capsys):
    assert command.main(["run", "--model", "sa", "--tasks", "local_text", "--use_cache", str(tasks / "kept")]) == 2
    assert "another mode, window or seed would be given this one's" in capsys.readouterr().err
    manager = TaskManager(include_path=str(tasks))
    with pytest.raises(SettingsError, match="--use_cache keeps answers under the request alone"):
        simple_evaluate(sparse(mode="sa"), tasks=["local_text"], task_manager=manager, use_cache=str(tasks / "kept"))


def test_the_help_names_the_model_type_its_modes_and_options(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert "--model sa --model_args" in shown and "sa+swa" in shown and "dense_tail" in shown
    assert "usage: " in shown  # lm-eval's own follows


@pytest.mark.parametrize("package", ["lm_eval", "accelerate"])
def test_a_missing_package_is_one_sentence_that_says_what_to_install(package, monkeypatch, capsys):
    def missing():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(command, "_parts", missing)
    assert command.main(["run", "--model", "sa"]) == 2
    told = f'the package {package} is missing, which evaluating needs: pip install "sa-patch[eval]"'
    assert capsys.readouterr().err == f"sa-lm-eval: {told}\n"


def test_without_lm_eval_the_command_says_so_in_a_process_of_its_own():
    """As from an installation without extras: nothing is imported before that needs one."""
    code = "import sys; sys.modules['lm_eval'] = None; from sa_eval.lm.command import main; sys.exit(main(['ls']))"
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert 'pip install "sa-patch[eval]"' in ended.stderr.splitlines()[-1]


def test_a_document_that_cannot_be_asked_ends_the_command_with_its_name(tasks, capsys):
    rows = [*ROWS[:2], {**ROWS[2], "choices": [" clever", ""]}]  # lm-eval itself stumbles over one in the first
    (tasks / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = sources.find(TINY).path
    asked = ["run", "--model", "sa", "--model_args", f"pretrained={path},mode=sa,window=12"]
    assert command.main([*asked, "--tasks", "local_choice", "--include_path", str(tasks)]) == 2
    assert "document 2 of local_choice: choice 1 ('') has no tokens" in capsys.readouterr().err


def test_newer_versions_find_it_by_its_entry_point():
    (entry,) = metadata.entry_points(group="lm_eval.models", name="sa")
    assert entry.load() is SparseLM and entry.value == command.TARGET


def _one_of_two(rank, folder, arguments, port, results):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, HF_DATASETS_CACHE=f"{folder}/cache{rank}")
    os.environ.update(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    lm = sparse(**arguments)
    results.put((rank, lm.rank, lm.world_size, answers(lm, folder), lm.cut_answers))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"tp_plan": "auto"}], ids=["documents shared out", "tensor parallel"])
def test_two_processes_give_the_answers_of_one(tasks, arguments, free_port):
    asked = {"mode": "sa", "window": 12, "dtype": "float32", "batch_size": 2}
    lm = sparse(**asked)
    expected = answers(lm, tasks)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_one_of_two, args=(rank, str(tasks), {**asked, **arguments}, free_port, results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    seen = sorted((results.get(timeout=120) for _ in processes), key=lambda row: row[0])
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    places = [(rank, world) for _, rank, world, *_ in seen]
    assert places == ([(0, 1), (0, 1)] if arguments else [(0, 2), (1, 2)])
    assert_same(seen[0][3], expected)
    assert all(cut == lm.cut_answers and len(cut) == len(ROWS) for *_, cut in seen)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
