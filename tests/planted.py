"""Owns a run directory with planted accuracies: what the runner would leave, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sa_eval.records.directory import RunDirectory
from sa_eval.settings.arms import arms_from
from sa_eval.settings.config import settings_from

FAMILIES = {
    "needle_single": "retrieval",
    "kv_retrieval": "retrieval",
    "majority_topic": "aggregation",
    "cloze": "cloze",
}
GOOD, BAD = 0.95, 0.30
# Who is good where: sa wins aggregation and loses the rest, overall it loses to both.
PLANTED = {
    "full": {"retrieval": GOOD, "aggregation": GOOD, "cloze": GOOD},
    "swa": {"retrieval": 0.7, "aggregation": BAD, "cloze": 0.9},
    "sa": {"retrieval": BAD, "aggregation": GOOD, "cloze": BAD},
    "moba": {"retrieval": 0.9, "aggregation": 0.4, "cloze": 0.9},
}
HARDWARE = {"cpu": "a cpu", "threads": 1}


def planted_run(
    path: Path,
    documents: int = 60,
    planted: dict[str, dict[str, float]] = PLANTED,
    said: str = "an answer",
    families: dict[str, str] = FAMILIES,
    draw: int = 0,
    **settings: object,
) -> RunDirectory:
    """Scores are drawn from the planted accuracies; `said` is what every model output and prompt holds."""
    given = {"window": 64, "lengths": "512,1024", "seeds": "0,1", "modes": [mode for mode in planted if mode != "full"]}
    checked = settings_from({**given, **settings})
    directory = RunDirectory.create(str(path), "tiny")
    tasks = [
        {
            "name": name,
            "length": length,
            "family": family,
            "output": "generate_until",
            "documents": documents,
            "hashes": [f"{name}{length}{index}" for index in range(documents)],
        }
        for length in checked.lengths
        for name, family in families.items()
    ]
    arms = arms_from(checked)
    directory.write_json("manifest.json", manifest(checked, arms, tasks, said))
    for task in tasks:
        directory.append("documents", *(_document(task, index, said) for index in range(documents)))
    rng = np.random.default_rng(draw)
    for arm in arms:
        _measure(directory, arm, checked.lengths)
        for seed in arm.seeds:
            for task in tasks:
                scores = rng.random(documents) < planted[arm.label][task["family"]]
                rows = [_record(arm, seed, task, index, float(score), said) for index, score in enumerate(scores)]
                directory.append_records(arm.name, seed, rows)
            ran = {"arm": arm.name, "seed": seed, "seconds": 1.0, "calls": None, "describe": arm.name}
            directory.append("arm_runs", ran)
    return directory


def manifest(settings, arms, tasks, said):
    return {
        "schema": 1,
        "started": "2026-01-01T00:00:00Z",
        "settings": settings.to_dict(),
        "versions": {"torch": "2", "said": said},
        "model": {"name": "tiny <b>", "parameters": 10, "dtype": "float32"},
        "hardware": HARDWARE,
        "arms": [arm.to_dict() for arm in arms],
        "left_out": [],
        "tasks": tasks,
        "sessions": [{"started": "2026-01-01T00:00:00Z", "processes": 1, "hardware": HARDWARE}],
    }


def key_of(task):
    return f"{task['name']}@{task['length']}"


def _place(task, index):
    depth = (index + 0.5) / task["documents"] if task["family"] == "retrieval" else None
    return {
        "index": index,
        "hash": task["hashes"][index],
        "prompt_tokens": task["length"] - 8,
        "depth": depth,
        "expected": "a right answer",
    }


def _document(task, index, said):
    return {"task": key_of(task), **_place(task, index), "head": said[:240], "tail": (said * 480)[-480:]}


def _record(arm, seed, task, index, score, said):
    return {
        "arm": arm.name,
        "seed": seed,
        "task": key_of(task),
        "name": task["name"],
        "length": task["length"],
        **_place(task, index),
        "score": score,
        "metric": "score",
        "metrics": {"score": score},
        "output": f"{arm.name} seed {seed}: {said}",
        "key": "key",
    }


def _measure(directory, arm, lengths):
    for length in lengths:
        keys = length / 2 if arm.window is None else 60.0
        budget = {"keys_per_query": keys, "density": 2 * keys / length, "off_target": 0.0}
        about = {"arm": arm.name, "length": length}
        directory.append("budgets", {**about, **budget, "router_cost_per_query": 0.0, "exact": True})
        prefill_ms = 10.0 if arm.window is None else 5.0
        speed = {"prompt_tokens": length, "prefill_ms": prefill_ms, "repeats_ms": [prefill_ms] * 3}
        directory.append("speed", {**about, **speed})
    directory.append("checks", {"check": "batch invariance", "arm": arm.name, "status": "passed", "text": "equal"})
