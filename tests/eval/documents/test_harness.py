"""Laws of lm-eval's own tasks: any of them runs, scored by its own metric, on the documents it brings."""

import json
import os
import sys
from unittest import mock

import datasets
import evaluate
import nltk
import numpy as np
import pytest
from eval_helpers import tiny_model, tiny_tokenizer
from planted import summarised

from sa_eval.documents import harness, ruler
from sa_eval.documents.score import score_of
from sa_eval.lm.exact import ExactLM
from sa_eval.loading import models, sources
from sa_eval.progress import Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.run import runner
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import SettingsError, settings_from

pytestmark = pytest.mark.usefixtures("few_tasks", "few_words")

ROWS = [
    {
        "text": f"The clerk examined bundle {number} near the square. It was",
        "choices": [" clever", " late"],
        "gold": number % 2,
    }
    for number in range(5)
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """
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


@pytest.fixture
def task_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choice", CHOICE), ("text", TEXT)):
        (tmp_path / f"{name}.yaml").write_text(text.format(data=data))
    return [str(tmp_path / "choice.yaml"), str(tmp_path / "text.yaml")]


def test_an_empty_choice_of_the_first_document_is_named(task_files, tmp_path):
    row = {"text": "The clerk was", "choices": [" clever", ""], "gold": 0}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    _, results = run(tmp_path / "run", tasks=task_files)
    (failure,) = results["failures"]
    assert failure["task"] == task_files[0]
    assert failure["error"].startswith(f"ValueError: document 0 of {task_files[0]}: choice 1 ('') has no text")


@pytest.mark.parametrize("num_samples", [3, "all"])
def test_any_task_runs_with_its_own_metric_and_documents(task_files, tmp_path, num_samples):
    harness.check_names(task_files)
    directory, results = run(tmp_path / "run", tasks=task_files, num_samples=num_samples)
    assert not results["failures"]
    records = list(directory.records())
    assert len(records) == 2 * 2 * (len(ROWS) if num_samples == "all" else 3)
    assert {(record.task, record.metric) for record in records} == {
        ("local_choice", "acc"),
        ("local_text", "exact_match"),
    }
    assert all("acc_norm" in record.metrics for record in records if record.task == "local_choice")
    assert all(row["length"] is None for row in results["budgets"])


def test_the_preferred_metric_scores_a_document():
    assert score_of({"acc": 1.0, "4096": 0.5}, "4096", {}) == ("4096", 0.5)
    assert score_of({"acc_norm": 0.0, "acc": 1.0}, None, {}) == ("acc", 1.0)
    assert score_of({"ter": 37.5, "hit": 1.0}, None, {"ter": False, "hit": True}) == ("hit", 1.0)
    with pytest.raises(ValueError, match="no number per document"):
        score_of({}, None, {})


@pytest.mark.parametrize("value", [37.5, -1.0, float("nan")])
def test_what_is_no_share_of_a_right_answer_is_refused(value):
    with pytest.raises(ValueError, match=r"only shares of right answers \(0 to 1\)"):
        score_of({"bleu": value}, None, {})


def test_a_task_where_less_is_better_is_refused_and_the_others_go_on(task_files, tmp_path):
    worse = tmp_path / "worse.yaml"
    text = TEXT.format(data=tmp_path / "data.jsonl").replace("local_text", "local_worse")
    worse.write_text(text.replace("higher_is_better: true", "higher_is_better: false"))
    assert "higher_is_better: false" in worse.read_text()
    directory, results = run(tmp_path / "run", tasks=[task_files[0], str(worse)], num_samples=2)
    assert len(results["failures"]) == 1
    assert "less is better" in results["failures"][0]["error"]
    assert {record.task for record in directory.records()} == {"local_choice"}


LETTERS = ["A", "B", "C", "D"]
ENDINGS = [" runs home.", " [x] sings a very long and winding song.", " eats.", " waits at the door."]
HUB = {  # what the hub would send for the paper's tasks, in the fields of the real data sets
    "cais/mmlu": [
        {"question": f"What is {n} plus one?", "choices": [str(n + k) for k in range(4)], "answer": 1} for n in range(4)
    ],
    "aps/super_glue": [
        {"passage": f"There are {n} ships.", "question": f"are there {n} ships", "label": n % 2} for n in range(4)
    ],
    "Rowan/hellaswag": [
        {
            "activity_label": "Dog",
            "ctx_a": f"Dog {n} [y] jumps.",
            "ctx_b": "then it",
            "endings": ENDINGS,
            "label": str(n),
        }
        for n in range(4)
    ],
    "EleutherAI/lambada_openai": [{"text": f"The {n} ships sail. The sea has ships"} for n in range(4)],
    "allenai/ai2_arc": [
        {
            "question": f"Which is {n}?",
            "choices": {"text": ["one", "a very long two"], "label": ["A", "B"]},
            "answerKey": k,
        }
        for n, k in enumerate("ABBA")
    ],
    "openai/openai_humaneval": [
        {"prompt": f"def f{n}():\n", "test": "def check(f): pass", "entry_point": f"f{n}", "task_id": str(n)}
        for n in range(2)
    ],
}
PAPER = ["mmlu_virology", "boolq", "hellaswag", "lambada_openai", "arc_easy", "arc_challenge", "humaneval"]


class CodeEval:
    """Stands where the hub's code_eval would: every program passes."""

    def compute(self, references, predictions, k):
        return {f"pass@{size}": 1.0 for size in k}, {}


@pytest.fixture
def hub(monkeypatch):
    """Data sets and metrics come from the tables above; whatever else is asked of the hub fails."""
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append(path)
        if path not in HUB:
            raise ConnectionError(f"cannot reach {path}")
        rows = datasets.Dataset.from_list(HUB[path][: 2 if name == "astronomy" else None])
        return datasets.DatasetDict({split: rows for split in ("train", "dev", "validation", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(evaluate, "load", lambda name: CodeEval())
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    return asked


def run(path, **given):
    settings = settings_from({"modes": "sa", "window": 8, "seeds": 0, "num_samples": 4, "speed": False, **given})
    model, source = tiny_model(), sources.Source("tiny", "tiny", local=False)
    loaded = models.Loaded(model, tiny_tokenizer(), source, models.identity(source, model))
    directory = RunDirectory.create(str(path), "tiny")
    runner.run_loaded(settings, loaded, arms_from(settings), directory, Progress(enabled=False))
    return directory, summarised(directory)


@pytest.fixture
def paper(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(ExactLM, "generate_until", lambda self, requests, **options: ["    return 7\n"] * len(requests))
    return run(tmp_path / "run", tasks=PAPER, confirm_unsafe_code=True)


def test_the_papers_tasks_run_through_lm_evals_own_files_and_report_both_metrics(paper):
    directory, results = paper
    assert not results["failures"]
    metrics = {record.name: (record.metric, set(record.metrics)) for record in directory.records()}
    assert metrics == {
        "mmlu_virology": ("acc", {"acc"}),
        "boolq": ("acc", {"acc"}),
        "hellaswag": ("acc", {"acc", "acc_norm"}),
        "lambada_openai": ("acc", {"acc", "perplexity"}),
        "arc_easy": ("acc", {"acc", "acc_norm"}),
        "arc_challenge": ("acc", {"acc", "acc_norm"}),
        "humaneval": ("pass@1", {"pass@1"}),
    }
    choices = {
        "hellaswag": [ending.replace("[x] ", "") for ending in ENDINGS],
        "arc_easy": [" one", " a very long two"],
    }
    gold = {"hellaswag": [0, 1, 2, 3], "arc_easy": [0, 1, 1, 0]}
    disagreed = 0
    for record in directory.records():
        if record.name not in choices:
            continue
        likelihoods = np.array(record.output)
        lengths = np.array([len(text.strip()) for text in choices[record.name]])
        right = gold[record.name][record.index]
        assert record.score == record.metrics["acc"] == float(likelihoods.argmax() == right)
        assert record.metrics["acc_norm"] == float((likelihoods / lengths).argmax() == right)
        disagreed += likelihoods.argmax() != (likelihoods / lengths).argmax()
    assert disagreed  # the two metrics are told apart here


def test_code_that_a_model_writes_runs_only_when_that_is_confirmed(hub, tmp_path):
    directory, results = run(tmp_path / "run", tasks=["humaneval", "boolq"])
    (failure,) = results["failures"]
    assert failure["task"] == "humaneval" and "--confirm-unsafe-code" in failure["error"]
    assert {record.name for record in directory.records()} == {"boolq"}
    assert "HF_ALLOW_CODE_EVAL" not in os.environ and "openai/openai_humaneval" not in hub


def test_a_file_that_asks_to_run_code_is_refused_as_well(task_files, tmp_path):
    with open(task_files[1], "a") as stream:
        stream.write("unsafe_code: true\n")
    _, results = run(tmp_path / "run", tasks=task_files)
    assert [failure["task"] for failure in results["failures"]] == [task_files[1]]
    _, results = run(tmp_path / "other", tasks=task_files, confirm_unsafe_code=True)
    assert not results["failures"]


def add_group(monkeypatch, name, members, **config):
    """As a YAML file of lm-eval would."""
    manager = harness.task_manager()
    cfg = {"group": name, "task": members, **config}
    group = type(manager.task_index["boolq"])(name, harness.Kind.GROUP, None, cfg=cfg)
    monkeypatch.setitem(manager.task_index, name, group)


def test_a_group_that_lm_eval_weighs_by_size_counts_as_one_task(hub, tmp_path, monkeypatch):
    """MMLU's 57 subjects are one of the paper's seven numbers, and a large subject weighs more than a small one."""
    rule = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    add_group(monkeypatch, "subjects", ["mmlu_virology", "mmlu_astronomy"], **rule)
    rows = [{**row, "answer": letter} for letter in (0, 1, 2, 3) for row in HUB["cais/mmlu"]]
    monkeypatch.setitem(HUB, "cais/mmlu", rows)
    directory, results = run(tmp_path / "run", tasks=["subjects", "boolq"], seeds=[0, 1], num_samples="all")
    scores = {arm: {"subjects": [], "boolq": []} for arm in ("full", "sa-w8")}
    for record in directory.records():
        scores[record.arm]["boolq" if record.name == "boolq" else "subjects"].append(record.score)
    cells = {(cell["arm"], cell["name"]): cell for cell in results["cells"]}
    assert cells["full", "mmlu_virology"]["accuracy"] != cells["full", "mmlu_astronomy"]["accuracy"]
    for arm, (subjects, boolq) in ((arm, found.values()) for arm, found in scores.items()):
        assert cells[arm, "subjects"]["accuracy"] == pytest.approx(np.mean(subjects))
        assert cells[arm, "overall"]["accuracy"] == pytest.approx((np.mean(subjects) + np.mean(boolq)) / 2)
        assert cells[arm, "subjects"]["documents"] == 16 + 2


def test_one_member_of_a_group_that_cannot_be_fetched_costs_no_other(hub, tmp_path, monkeypatch):
    monkeypatch.delitem(HUB, "Rowan/hellaswag")
    add_group(monkeypatch, "pair", ["boolq", "hellaswag"])
    directory, results = run(tmp_path / "run", tasks=["pair"])
    (failure,) = results["failures"]
    assert failure["task"] == "hellaswag" and "cannot reach Rowan/hellaswag" in failure["error"]
    assert [(task["name"], task["family"]) for task in results["tasks"]] == [("boolq", "pair")]
    assert {record.name for record in directory.records()} == {"boolq"}


def prepared(name, **given):
    settings = settings_from({"num_samples": 3, **given})
    (wanted,) = harness.wanted([name], settings)
    (task,) = harness.prepare(wanted, settings, ExactLM(tiny_model(), tiny_tokenizer()))
    return task


def test_solved_examples_are_drawn_alike_every_time_and_counted(hub):
    none, two, again = prepared("boolq"), prepared("boolq", num_fewshot=2), prepared("boolq", num_fewshot=2)
    assert two.hashes == again.hashes != none.hashes
    assert [task.row().num_fewshot for task in (none, two)] == [0, 2]
    assert [request.args[0].count("Question:") for request in two.task.instances] == [3] * 6
    other = prepared("boolq", num_fewshot=2, doc_seed=1)
    assert other.hashes != two.hashes


def test_a_task_that_fixes_zero_examples_keeps_it(hub):
    task = prepared("humaneval", num_fewshot=3, confirm_unsafe_code=True)
    assert task.row().num_fewshot == 0 and task.task.instances[0].args[0] == "def f0():\n"


def test_longbench_is_loaded_from_the_hub_and_says_when_it_cannot_be(hub, tmp_path, monkeypatch):
    row = {"context": "Ann has 3 ships.", "question": "How many?", "answers": ["3"], "all_classes": [], "length": 9}
    for package in ("jieba", "fuzzywuzzy", "rouge"):  # an extra of lm-eval; the questions here don't need them
        monkeypatch.setitem(sys.modules, package, mock.MagicMock())
    with mock.patch.dict(HUB, {"Xnhyacinth/LongBench": [row] * 3}):
        directory, results = run(tmp_path / "run", tasks=["longbench_2wikimqa"], num_samples=2)
    assert not results["failures"] and {record.metric for record in directory.records()} == {"score"}
    with pytest.raises(SettingsError, match="cannot reach Xnhyacinth/LongBench"):
        run(tmp_path / "none", tasks=["longbench_2wikimqa"])


def test_essays_get_the_sentence_splitter_after_an_offline_task_was_built(monkeypatch, tmp_path):
    """RULER's module asks for it on import only, and an offline task imports it with downloads switched off."""
    settings = settings_from({"num_samples": 2})
    ruler.load("niah_single_1", 600, settings, tiny_tokenizer())
    from lm_eval.tasks.ruler import prepare_niah

    fetched = tmp_path / "fetched"

    def find(resource):
        if not fetched.exists():
            raise LookupError(resource)

    def fetch(name, **options):
        fetched.write_text(name)
        return True

    essay = " ".join(f"Essay sentence number {number} speaks of work." for number in range(400))
    monkeypatch.setattr(nltk.data, "find", find)
    monkeypatch.setattr(nltk, "download", fetch)
    monkeypatch.setattr(prepare_niah, "sent_tokenize", lambda text: find("punkt") or text.split(". "))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: {"text": [essay]})
    task = ruler.load("niah_single_2", 2600, settings, tiny_tokenizer())
    assert fetched.read_text() == "punkt_tab"  # written by the child
    assert len(task.dataset["test"]) == 2 and "Essay sentence" in task.dataset["test"][0]["input"]


def test_essays_without_a_sentence_splitter_say_what_to_fetch(monkeypatch):
    def missing(resource):
        raise LookupError(resource)

    monkeypatch.setattr(nltk.data, "find", missing)
    monkeypatch.setattr(nltk, "download", lambda name, **options: False)
    with pytest.raises(RuntimeError, match=r"python -m nltk\.downloader punkt_tab"):
        ruler.load("niah_single_2", 1500, settings_from({}), tiny_tokenizer())


def test_documents_that_ruler_drops_are_missed(monkeypatch):
    monkeypatch.setattr(ruler, "_in_child", lambda work, seconds, late: [{"outputs": ["7"]}] * 3)
    with pytest.raises(ValueError, match="made 3 of 4 documents"):
        ruler.load("niah_single_1", 600, settings_from({"num_samples": 4}), tiny_tokenizer())
