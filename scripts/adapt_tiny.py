"""Trains the bundled model on with another attention: what can training bring back that a pattern takes away?

  python scripts/adapt_tiny.py --out runs/adapted
  python scripts/adapt_tiny.py --out runs/adapted --attention swa,sa,gated --window 128 --steps 600

The model has learned to look far back with full attention. Every run takes its weights, one attention and a seed (of
the scenes and of the random keys), trains on scenes of the suite's training split, loss on the answers, and answers the
same held-out questions before and after: right where every word of the answer is, with the words before it given. A run
that is finished is not trained again; report.md and report.json tell what there is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from pretraining.arms import patched, redrawn
from pretraining.settings import ATTENTION, Run
from scipy.stats import bootstrap
from tiny_data import Batch, Recipe, make_batch, start
from tiny_model import score
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import sa_patch
from sa_eval.tasks import TASKS
from sa_patch.variants.gated import at_step

ASSETS = Path(__file__).parents[1] / "eval" / "assets" / "qwen3-tiny"
UNSEEN = 1_000_000  # the seed of held-out scenes, apart from every run's
_WARM_UP = 20
_GIVEN = 0.9  # gates of a gated window at first: alone it should begin near what a window is


def train(options: argparse.Namespace, run: Run, held: dict[str, list[Batch]], pool: ProcessPoolExecutor) -> dict:
    """Answers before and after, and the log, of one run."""
    torch.manual_seed(run.seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    patch = patched(model, run, "step", initial=_GIVEN if run.attention == "gated-swa" else 0.5)
    before, began = answers(model, held, f"{run.name}: before"), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.95), weight_decay=0.0)
    drawn = redrawn(patch)
    ahead = [pool.submit(make_batch, recipe(options, run, step)) for step in range(3)]
    losses = []
    for step in (bar := tqdm(range(options.steps), desc=run.name, mininterval=5)):
        batch = ahead.pop(0).result()
        ahead.append(pool.submit(make_batch, recipe(options, run, step + 3)))
        if drawn is not None:
            sa_patch.apply(model, variant=at_step(drawn, step + 1))
        share = min((step + 1) / _WARM_UP, 1 - step / options.steps)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * share
        loss, _ = score(model.train(), batch, own_forward)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    if drawn is not None:
        sa_patch.apply(model, variant=drawn)
    after = answers(model, held, f"{run.name}: after")
    return {**run.__dict__, "before": before, "after": after, "losses": losses, "seconds": round(time.time() - began)}


def own_forward(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, no load-balancing loss) of the patched model's own forward pass."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden, hidden.new_zeros(())


def recipe(options: argparse.Namespace, run: Run, step: int) -> Recipe:
    """Rows of the longest length in every second step, of half and of a quarter of it in the others."""
    length = options.length >> (0, 1, 0, 2)[step % 4]
    weights = tuple((task, 1.0) for task in TASKS)
    return Recipe(run.seed, step, length, options.tokens // length, 0.0, weights)


def held_out(options: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, list[Batch]]:
    """One question of every scene, a scene a row, of pairs that training never shows."""
    asked = {
        task: [Recipe(UNSEEN, index, options.length, 1, 0.0, ((task, 1.0),), "eval", 1) for index in range(number)]
        for task, number in dict.fromkeys(TASKS, options.documents).items()
    }
    return {task: list(pool.map(make_batch, recipes)) for task, recipes in asked.items()}


@torch.no_grad()
def answers(model: nn.Module, held: dict[str, list[Batch]], title: str) -> dict[str, list[int]]:
    """task -> 1 where the answer was right throughout, else 0."""
    model.eval()
    with tqdm(total=sum(map(len, held.values())), desc=title, mininterval=5, leave=False) as bar:
        found: dict[str, list[int]] = {}
        for task, batches in held.items():
            found[task] = []
            for batch in batches:
                found[task] += [int(right) for right in score(model, batch, own_forward)[1]]
                bar.update()
    return found


def report(options: argparse.Namespace, out: Path) -> str:
    """The table of what is finished, also as report.json."""
    runs = [json.loads(file.read_text()) for file in sorted(out.glob("*-seed*.json"))]
    arms: dict[str, list[dict]] = {name: [] for name in ATTENTION}
    for run in runs:
        if run["attention"] == "full" or run["window"] == options.window:
            arms[run["attention"]].append(run)
    arms = {name: found for name, found in arms.items() if found}
    families = dict.fromkeys(task.family for task in TASKS.values())
    head = ["attention", "seeds", "overall", *families, "against swa"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    rows += [_row(name, found, arms, list(families)) for name, found in arms.items()]
    kept = {"steps": options.steps, "tokens": options.tokens, "length": options.length, "window": options.window}
    kept |= {"documents": options.documents, "rate": options.rate, "torch": torch.__version__}
    kept["arms"] = [
        {"attention": name, "seeds": [run["seed"] for run in found]}
        | {when: {task: _mean(found, when, [task]) for task in TASKS} for when in ("before", "after")}
        for name, found in arms.items()
    ]
    (out / "report.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = "Right answers in %, before -> after:\n\n" + "\n".join(rows) + "\n"
    (out / "report.md").write_text(text)
    return text


def _row(name: str, found: list[dict], arms: dict[str, list[dict]], families: Sequence[str]) -> str:
    cells = [name, str(len(found))]
    for family in (None, *families):
        tasks = [task.name for task in TASKS.values() if family in (None, task.family)]
        cells.append(f"{100 * _mean(found, 'before', tasks):.0f} -> {100 * _mean(found, 'after', tasks):.0f}")
    cells.append(_difference(found, arms["swa"]) if name != "swa" and "swa" in arms else "")
    return "| " + " | ".join(cells) + " |"


def _mean(found: list[dict], when: str, tasks: Sequence[str]) -> float:
    return float(np.mean([run[when][task] for run in found for task in tasks]))


def _difference(found: list[dict], base: list[dict]) -> str:
    """After training, over the seeds that both have: 95 % over held-out questions, and the lowest to highest seed."""
    seeds = sorted({run["seed"] for run in found} & {run["seed"] for run in base})
    if not seeds:
        return ""

    def points(runs: list[dict]) -> np.ndarray:  # [seeds, questions]
        known = {run["seed"]: np.concatenate([run["after"][task] for task in TASKS]) for run in runs}
        return np.stack([known[seed] for seed in seeds])

    change = 100.0 * (points(found) - points(base))
    whole = bootstrap((change.mean(0),), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    own = change.mean(1)
    return f"{change.mean():+.1f} ({whole.low:+.1f} to {whole.high:+.1f}; seeds {own.min():+.1f} to {own.max():+.1f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default=str(ASSETS), help="what every run starts from (default: qwen3-tiny)")
    parser.add_argument("--attention", default=",".join(ATTENTION), help="comma-separated (default: all of them)")
    parser.add_argument("--window", type=int, default=64, help="keys per query (default: 64)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step (default: 4096)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the longest rows (default: 1024)")
    parser.add_argument("--documents", type=int, default=24, help="held-out questions per task (default: 24)")
    parser.add_argument("--rate", type=float, default=5e-4, help="highest learning rate (default: 5e-4)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    strange = [name for name in options.attention.split(",") if name not in ATTENTION]
    if strange:
        parser.error(f"unknown attention {', '.join(strange)}: choose from {', '.join(ATTENTION)}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=(options.model,)) as pool:
        held = held_out(options, pool)
        for seed in map(int, options.seeds.split(",")):
            for name in options.attention.split(","):
                run = Run(name, None if name == "full" else options.window, seed)
                file = options.out / f"{run.name}.json"
                if not file.exists():
                    file.write_text(json.dumps(train(options, run, held, pool)) + "\n")
    print(report(options, options.out))


if __name__ == "__main__":
    main()
