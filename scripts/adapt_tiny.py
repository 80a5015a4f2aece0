"""Trains the bundled model on with another attention: what can training bring back that a pattern takes away?

  python scripts/adapt_tiny.py --out runs/adapted
  python scripts/adapt_tiny.py --out runs/wide --attention swa,sa,gated --window 128 --steps 600

The model has learned to look far back with full attention. Every run takes its weights, one attention and a seed (of
the scenes and of the random keys), trains on scenes of the suite's training split, loss on the answers, and answers the
same held-out questions before and after: right where every word of the answer is, with the words before it given. A run
that is finished is not trained again; report.md and report.json tell what there is. Other settings take another --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from pretraining.arms import patched, redrawn
from pretraining.settings import HELP, Run
from tiny_adapted import ARMS, write_report
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
SHORTEST = 320  # of the longest rows: in those of half of it, every task finds room
_WARM_UP = 20
_COUNTED = 3  # questions of a task whose keys are counted
_ALONE = 0.9  # the gates of a gated window at first: by itself it is to begin near what a window is


def train(options: argparse.Namespace, run: Run, held: dict[str, list[Batch]], pool: ProcessPoolExecutor) -> dict:
    """Answers before and after, and the log, of one run."""
    torch.manual_seed(run.seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    patch = patched(model, run, "step", initial=_ALONE if run.attention == "gated-swa" else 0.5)
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
    found = {"before": before, "after": after, "keys": keys_where_asked(run, patch, held), "losses": losses}
    return {**run.__dict__, **found, "seconds": round(time.time() - began)}


def own_forward(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, no load-balancing loss) of the patched model's own forward pass."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden, hidden.new_zeros(())


def recipe(options: argparse.Namespace, run: Run, step: int) -> Recipe:
    """Rows of the longest length in every second step, of half of it in the others."""
    length = options.length >> step % 2
    weights = tuple((task, 1.0) for task in TASKS)
    return Recipe(run.seed, step, length, options.tokens // length, 0.0, weights)


def held_out(options: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, list[Batch]]:
    """One question of every scene, of pairs that training never shows; a scene a row, which ends with the answer."""
    asked = {
        task: [
            Recipe(UNSEEN + number, index, options.length, 1, 0.0, ((task, 1.0),), "eval", 1)
            for index in range(options.documents)
        ]
        for number, task in enumerate(TASKS)
    }
    return {task: [_ended(batch) for batch in pool.map(make_batch, recipes)] for task, recipes in asked.items()}


def _ended(batch: Batch) -> Batch:
    """Without the end tokens that fill a row: a pattern that permutes a whole row would count them."""
    if batch.tasks.count(batch.tasks[0]) != 1 or len(batch.ids) != 1:
        raise ValueError(f"a held-out row has to ask one question, this one asks {len(batch.tasks)}")
    return replace(batch, ids=batch.ids[:, : int(batch.column.max()) + 1])


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


def keys_where_asked(run: Run, patch: sa_patch.Patch | None, held: dict[str, list[Batch]]) -> float | None:
    """Mean keys per query that predicts a word of an answer, over layers and some questions of every task; None for
    moba, whose keys depend on the text. The halves of a gate are counted as what either shows."""
    counts = []
    for batch in (batch for batches in held.values() for batch in batches[:_COUNTED]):
        asked = batch.column - 1
        if run.attention in ("full", "swa", "gated-swa"):
            counts.append((asked + 1).clamp(max=run.window or batch.ids.shape[1]).float())
            continue
        try:
            masks = [patch.mask(batch.ids.shape[1], layer) for layer in range(patch.num_layers)] if patch else []
        except ValueError:
            return None
        counts += [mask[asked].sum(-1).float() for mask in masks]
    return float(torch.cat(counts).mean())


def _settings(options: argparse.Namespace) -> dict:
    """What all runs of a folder have in common."""
    weights = hashlib.sha256(Path(options.model, "model.safetensors").read_bytes()).hexdigest()[:16]
    names = ("window", "steps", "tokens", "length", "documents", "rate")
    return {**{name: getattr(options, name) for name in names}, "weights": weights}


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what could not be trained or compared, before anything is."""
    strange = [name for name in options.attention if name not in ARMS]
    if strange:
        parser.error(f"unknown attention {', '.join(strange)}: choose from {', '.join(ARMS)}")
    missing = [name for name in ("model.safetensors", "tokenizer.json") if not Path(options.model, name).is_file()]
    if missing:
        parser.error(f"--model {options.model} has no {' and no '.join(missing)}: give the folder of a bundled model")
    if options.length < SHORTEST or options.tokens < options.length:
        parser.error(f"--length {options.length} has to be at least {SHORTEST}, and --tokens at least --length")
    kept = options.out / "settings.json"
    if kept.exists() and (before := json.loads(kept.read_text())) != (now := _settings(options)):
        other = ", ".join(f"{name}: {before[name]} then, {now[name]} now" for name in now if now[name] != before[name])
        parser.error(f"{options.out} holds runs of other settings ({other}): use another --out, or the same settings")


def main(arguments: list[str] | None = None) -> None:
    told = "; ".join(f"{name}: {HELP[name]}" for name in ARMS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default=str(ASSETS), help="folder every run starts from (default: qwen3-tiny)")
    parser.add_argument("--attention", type=_listed, default=ARMS, help=f"comma-separated (default: all). {told}")
    parser.add_argument("--window", type=int, default=64, help="keys per query (default: 64)")
    parser.add_argument("--seeds", type=_listed, default=("0", "1", "2"), help="comma-separated (default: 0,1,2)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step (default: 4096)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the longest rows (default: 1024)")
    parser.add_argument("--documents", type=int, default=24, help="held-out questions per task (default: 24)")
    parser.add_argument("--rate", type=float, default=5e-4, help="highest learning rate (default: 5e-4)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    _check(parser, options)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "settings.json").write_text(json.dumps(_settings(options), indent=1) + "\n")
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=(options.model,)) as pool:
        held = held_out(options, pool)
        for seed in map(int, options.seeds):
            for name in options.attention:
                run = Run(name, None if name == "full" else options.window, seed)
                file = options.out / f"{run.name}.json"
                if not file.exists():
                    found = train(options, run, held, pool)
                    file.with_suffix(".tmp").write_text(json.dumps(found) + "\n")
                    file.with_suffix(".tmp").replace(file)
    print(write_report(options.out, _settings(options)))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
