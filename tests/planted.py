"""A run directory with planted accuracies: what the runner would leave, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import (
    VERSION,
    ArmRow,
    ArmRun,
    Budget,
    Check,
    Manifest,
    Prompt,
    Record,
    SessionRow,
    Speed,
    TaskRow,
)
from sa_eval.results import summary
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
        TaskRow(
            name,
            length,
            family,
            output="generate_until",
            documents=documents,
            hashes=[f"{name}{length}{index}" for index in range(documents)],
        )
        for length in checked.lengths
        for name, family in families.items()
    ]
    arms = arms_from(checked)
    directory.write_manifest(manifest(checked, arms, tasks, said))
    for task in tasks:
        directory.append(*(_prompt(task, index, said) for index in range(documents)))
    rng = np.random.default_rng(draw)
    for arm in arms:
        _measure(directory, arm, checked.lengths)
        for seed in arm.seeds:
            for task in tasks:
                scores = rng.random(documents) < planted[arm.label][task.family]
                rows = [_record(arm, seed, task, index, float(score), said) for index, score in enumerate(scores)]
                directory.append_records(rows)
            directory.append(ArmRun(arm.name, seed, seconds=1.0, describe=arm.name))
    return directory


def manifest(settings, arms, tasks, said):
    started = "2026-01-01T00:00:00Z"
    return Manifest(
        schema=VERSION,
        started=started,
        settings=settings.to_dict(),
        versions={"torch": "2", "said": said},
        model={"name": "tiny <b>", "parameters": 10, "dtype": "float32"},
        hardware=HARDWARE,
        arms=[ArmRow(**arm.to_dict()) for arm in arms],
        tasks=tasks,
        sessions=[SessionRow(started, processes=1, hardware=HARDWARE)],
    )


def _about(task, index):
    return {
        "task": task.key,
        "index": index,
        "hash": task.hashes[index],
        "prompt_tokens": task.length - 8,
        "depth": (index + 0.5) / task.documents if task.family == "retrieval" else None,
        "expected": "a right answer",
    }


def _prompt(task, index, said):
    return Prompt(**_about(task, index), head=said[:240], tail=(said * 480)[-480:])


def _record(arm, seed, task, index, score, said):
    return Record(
        arm=arm.name,
        seed=seed,
        name=task.name,
        length=task.length,
        **_about(task, index),
        score=score,
        metric="score",
        metrics={"score": score},
        output=f"{arm.name} seed {seed}: {said}",
        key="key",
        cut=False,
    )


def _measure(directory, arm, lengths):
    for length in lengths:
        keys = length / 2 if arm.window is None else 60.0
        directory.append(Budget(arm.name, length, keys_per_query=keys, density=2 * keys / length))
        prefill_ms = 10.0 if arm.window is None else 5.0
        repeats = [prefill_ms] * 3
        directory.append(Speed(arm.name, length, length, prefill_ms, repeats, spread=0.0, first_ms=[]))
    directory.append(Check("batch invariance", arm.name, "passed", "equal"))


def summarised(directory):
    """results.json, computed anew, as it stands on the disk."""
    summary.summarise(directory)
    return json.loads((directory.path / summary.RESULTS).read_text(encoding="utf-8"))
