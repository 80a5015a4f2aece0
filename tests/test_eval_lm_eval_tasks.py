"""Laws of lm-eval's own tasks: any of them runs, scored by its own metric, on the documents it brings."""

import json

import pytest
from eval_helpers import tiny_model, tiny_tokenizer

from sa_eval import lm_eval_tasks, models, runner, summary
from sa_eval.arms import arms_from
from sa_eval.config import settings_from
from sa_eval.progress import Progress
from sa_eval.store import RunDirectory

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


@pytest.mark.parametrize("num_samples", [3, "all"])
def test_any_task_runs_with_its_own_metric_and_documents(task_files, tmp_path, num_samples):
    settings = settings_from(
        {"tasks": task_files, "modes": "sa", "window": 8, "num_samples": num_samples, "seeds": 0, "speed": False}
    )
    lm_eval_tasks.check_names(task_files)
    loaded = models.Loaded(tiny_model(), tiny_tokenizer(), models.Source("tiny", "tiny", local=False), {"name": "tiny"})
    directory = RunDirectory.create(str(tmp_path / "run"), "tiny")
    runner.run_loaded(settings, loaded, arms_from(settings), directory, Progress(enabled=False))
    results = summary.summarise(directory)
    assert not results["failures"]
    records = list(directory.records())
    assert len(records) == 2 * 2 * (len(ROWS) if num_samples == "all" else 3)
    assert {(record["task"], record["metric"]) for record in records} == {
        ("local_choice", "acc"),
        ("local_text", "exact_match"),
    }
    assert all("acc_norm" in record["metrics"] for record in records if record["task"] == "local_choice")
    assert all(row["length"] is None for row in results["budgets"])


def test_the_preferred_metric_scores_a_document():
    assert lm_eval_tasks.score_of({"acc": 1.0, "4096": 0.5}, "4096") == ("4096", 0.5)
    assert lm_eval_tasks.score_of({"acc_norm": 0.0, "acc": 1.0}, None) == ("acc", 1.0)
    with pytest.raises(ValueError, match="no number per document"):
        lm_eval_tasks.score_of({}, None)
