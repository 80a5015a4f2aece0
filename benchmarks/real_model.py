"""What every variant costs a real pretrained model: fidelity on text, LAMBADA and PIQA, at matched budgets.

    python scripts/get_smollm2.py FOLDER
    python benchmarks/real_model.py --model FOLDER --data DATA --out OUT

DATA holds `lambada_test.jsonl` (key text), `piqa_valid.jsonl` (keys goal, sol1, sol2, label) and the folder `text` with
the files of TEXTS. OUT gets real_model.json, real_model.md and the records; the same command again continues where it
was stopped, arm by arm. Float32, one seed, the model's first positions included where nothing else is said.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import real_model_table
import torch
from real_model_arms import LENGTH, WINDOWS, arms, read_counting
from real_model_tasks import FILES, TASKS, run_task

from sa_eval import environment, machine
from sa_eval.fidelity import buckets, measuring, sums, texts
from sa_eval.loading import models, sources
from sa_eval.progress import Progress
from sa_eval.records.types import plain
from sa_eval.settings.arm import Arm
from sa_eval.settings.config import settings_from

TEXTS = {"technical": "rust_book.txt", "fiction": "pride_and_prejudice.txt"}
LATE = 128  # predictions after so many tokens, where the larger window first leaves something out
Rows = list[dict[str, Any]]


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_DATASETS_CACHE", str(options.out / "cache"))
    progress = Progress()
    settings = settings_from(
        {"model": str(options.model), "dtype": "float32", "threads": options.threads, "batch_size": options.batch_size}
    )
    with progress.step(f"loading {options.model}"):
        loaded = models.load(sources.find(settings.model), settings)
    about = {
        "model": loaded.identity.to_dict(),
        "files": {name: _sha256(options.data / name) for name in (*FILES.values(), *_text_names())},
        "length": LENGTH,
        "passages": options.passages,
        "windows": {name: list(windows) for name, windows in WINDOWS.items()},
        "predictions_after": LATE,
    }
    _refuse_other(options.out / "about.json", json.loads(json.dumps(about)))
    about |= {
        "documents": options.documents,
        "threads": options.threads,
        "hardware": machine.hardware(loaded.model.device),
        "versions": environment.versions(),
    }
    results: dict[str, Any] = {"about": about, "fidelity": fidelity(loaded, options, progress)}
    for task in TASKS:
        _write(options.out, results)
        results[task] = run_task(task, loaded, settings, options, progress)
    text = _write(options.out, results)
    seconds = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{text}\n{(seconds.ru_utime + seconds.ru_stime) / 60:.0f} CPU minutes in this call; result: {options.out}")


def _write(out: Path, results: dict[str, Any]) -> str:
    """Results and tables as far as they go; returns the tables."""
    (out / "real_model.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = real_model_table.render(results)
    (out / "real_model.md").write_text(text, encoding="utf-8")
    return text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files named above")
    parser.add_argument("--out", type=Path, default=Path("runs/real-model"), help="folder of the results")
    parser.add_argument("--passages", type=int, default=4, help="of each text, spread over it")
    parser.add_argument("--documents", type=int, default=300, help="of each task")
    parser.add_argument("--plans", type=Path, nargs="+", default=[], help="folders of sa-eval calibrate: arms of tasks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    for name in (*FILES.values(), *_text_names()):
        if not (options.data / name).is_file():
            parser.error(f"{options.data / name} is missing: --data needs the files named above")
    return options


def _text_names() -> list[str]:
    return [f"text/{name}" for name in TEXTS.values()]


def _refuse_other(file: Path, about: dict[str, Any]) -> None:
    """Rows of an earlier call are kept, so they have to be about the same thing."""
    if not file.exists():
        file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    earlier = json.loads(file.read_text("utf-8"))
    for name, value in about.items():
        if earlier[name] != value:
            raise SystemExit(
                f"{file.parent} holds results with {name} {earlier[name]}, not {value}: give another --out"
            )


def _sha256(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def fidelity(loaded: models.Loaded, options: argparse.Namespace, progress: Progress) -> Rows:
    """One row per kind of text, variant and window; rows of an earlier call are kept."""
    file = options.out / "fidelity.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    wanted = [(kind, *one) for kind in TEXTS for one in arms("fidelity")]
    done = {(row["kind"], row["variant"], row["window"]) for row in rows}
    with progress.bar(len(wanted), "fidelity", unit="arm", done=len(rows)) as bar:
        reader: Reader | None = None
        for kind, name, arm in wanted:
            if (kind, name, arm.window) in done:
                continue
            if reader is None or reader.kind != kind:
                reader = Reader(kind, loaded, options)
            bar.describe(f"fidelity · {kind} · {arm.name}", now=True)
            rows.append({"kind": kind, "variant": name, "window": arm.window, **reader.measure(arm)})
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            bar.advance(1)
    return rows


class Reader:
    """The passages of one kind of text, read by the full model once."""

    def __init__(self, kind: str, loaded: models.Loaded, options: argparse.Namespace) -> None:
        given = texts.read([str(options.data / "text" / TEXTS[kind])])
        self.kind, self.cut = kind, texts.cut(given, loaded.tokenizer, LENGTH, options.passages)
        self.subject = measuring.Subject.of(loaded.model, self.cut.passages[0])
        with torch.inference_mode():
            self.full = [self.subject.head.states(torch.tensor([passage.ids])) for passage in self.cut.passages]

    def measure(self, arm: Arm) -> dict[str, Any]:
        """KL, agreement and cost with intervals over passages, and the keys per query that were seen."""
        found_sums, keys = [], []
        for passage, full in zip(self.cut.passages, self.full, strict=True):
            ids = torch.tensor([passage.ids])
            with torch.inference_mode():
                states, seen, router = read_counting(self.subject, arm, ids)
                found = self.subject.head.compare(full, states, ids)
            found_sums.append(measuring.token_sums(found, passage, LENGTH).position)
            keys.append(seen)
        late = [
            bucket for bucket in range(buckets.num_position_buckets(LENGTH)) if buckets.position_range(bucket)[0] > LATE
        ]
        per_passage = np.array(found_sums)[:, late].sum(1)
        return {
            **plain(sums.part_means(per_passage.sum(0))),
            "intervals": plain(sums.intervals(per_passage)),
            "kl_all_positions": sums.part_means(np.array(found_sums).sum((0, 1))).kl,
            "keys_per_query": float(np.mean(keys)),
            "density": float(np.mean(keys)) / ((LENGTH + 1) / 2),
            "router": router,
        }


if __name__ == "__main__":
    main()
