"""LAMBADA and PIQA from local files, run by sa-eval's own machinery."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from real_model_arms import arms, plans, read_counting

from sa_eval.fidelity import measuring, texts
from sa_eval.loading import models
from sa_eval.progress import Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.results.summary import summarise
from sa_eval.run import runner
from sa_eval.settings.arm import Arm
from sa_eval.settings.config import Settings, settings_from

COUNTED = 16  # prompts of a task on which visible pairs are counted
TASKS = {
    "lambada": """\
task: lambada
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list: [{{metric: acc}}]
""",
    "piqa": """\
task: piqa
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{goal}}}}\\nAnswer:"
doc_to_target: label
doc_to_choice: "{{{{[sol1, sol2]}}}}"
metric_list: [{{metric: acc}}]
""",
}
FILES = {"lambada": "lambada_test.jsonl", "piqa": "piqa_valid.jsonl"}


def run_task(
    task: str, loaded: models.Loaded, settings: Settings, options: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    """Accuracy of every arm by sa-eval's own run, and keys per query counted on the first prompts."""
    listed = [*arms(task), *plans(task, options.plans)]
    directory = run_arms(task, [arm for _, arm in listed], loaded, settings, options, progress)
    with progress.step("statistics"):
        summarise(directory)
    results = json.loads((directory.path / "results.json").read_text("utf-8"))
    cells = {cell["arm"]: cell for cell in results["cells"] if cell["scope"] == "overall"}
    prompts = _prompts(task, options)
    lengths = [len(loaded.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    rows: list[dict[str, Any]] = []
    with progress.bar(len(listed), f"counting {task}", unit="arm") as bar, torch.inference_mode():
        ids = [torch.tensor([loaded.tokenizer(prompt)["input_ids"]]) for prompt in prompts[:COUNTED]]
        subject = measuring.Subject.of(loaded.model, texts.Passage(task, 0, tuple(ids[0][0].tolist())))
        for name, arm in listed:
            seen = sum(read_counting(subject, arm, one)[1] * one.shape[1] for one in ids)
            possible = sum(one.shape[1] * (one.shape[1] + 1) / 2 for one in ids)
            keys = {"keys_per_query": seen / sum(one.shape[1] for one in ids), "density": seen / possible}
            rows.append({"variant": name, "window": arm.window, **cells[arm.name], **keys})
            bar.advance(1)
    return {"tokens": {"mean": float(np.mean(lengths)), "most": max(lengths)}, "full": cells["full"], "arms": rows}


def run_arms(
    task: str,
    arms: list[Arm],
    loaded: models.Loaded,
    settings: Settings,
    options: argparse.Namespace,
    progress: Progress,
) -> RunDirectory:
    """Records of full attention and the arms on a task, by sa-eval's own run, continued where it was stopped."""
    path = options.out / task
    (path / "records").mkdir(parents=True, exist_ok=True)
    (path / "task.yaml").write_text(TASKS[task].format(file=(options.data / FILES[task]).absolute()), encoding="utf-8")
    asked = settings_from(
        {
            **{name: getattr(settings, name) for name in ("model", "dtype", "threads", "batch_size")},
            **{"modes": ["full"], "tasks": [str(path / "task.yaml")], "num_samples": options.documents},
            "speed": False,
        }
    )
    directory = RunDirectory(path)
    runner.run_loaded(asked, loaded, [Arm("full", "full", "full", None), *arms], directory, progress)
    return directory


def _prompts(task: str, options: argparse.Namespace) -> list[str]:
    lines = (options.data / FILES[task]).read_text("utf-8").splitlines()[: options.documents]
    documents = [json.loads(line) for line in lines]
    if task == "lambada":
        return [one["text"] for one in documents]
    return [f"Question: {one['goal']}\nAnswer: {one[side]}" for one in documents for side in ("sol1", "sol2")]
