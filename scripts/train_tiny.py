"""Trains the models that ship in eval/assets: `python scripts/train_tiny.py --arch qwen3 --out DIR`.

The same command resumes a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from tiny_data import Maker, Recipe, make_batch, start
from tiny_model import grown, new_dense, score, upcycled
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from sa_eval.tasks import TASKS

LENGTHS = (96, 160, 256, 512, 1024, 2176)
TOKENS = (6144, 6144, 6144, 6144, 6144, 6528)  # a step
MOE_LEVELS = (1, 3, 5)  # the sparse model continues at a few of the lengths: each is compiled for minutes
PATIENCE = (700, 300, 300, 300, 300)  # steps at a length at most
DEFAULTS = {
    "qwen3": dict(rate=1.5e-3, decay_at=2500, decay_steps=1300),
    "qwen3_moe": dict(rate=1e-3, decay_at=150, decay_steps=350),
}
GROW_AT = 1800
WARM_UP = 60


@dataclass
class Progress:
    """Where training stands: all that a resumed run needs besides weights, optimizer and generator states."""

    step: int = 0
    level: int = 0
    level_since: int = 0
    grown_since: int | None = None
    decay_since: int | None = None
    seconds: float = 0.0
    accuracy: dict[str, float] = field(default_factory=dict)  # "task@length" -> running mean

    def mean(self, task: str, length: int) -> float | None:
        return self.accuracy.get(f"{task}@{length}")

    def note(self, task: str, length: int, right: bool) -> None:
        key = f"{task}@{length}"
        self.accuracy[key] = self.accuracy.get(key, 0.0) + 0.02 * (right - self.accuracy.get(key, 0.0))

    def weights(self, length: int) -> tuple[tuple[str, float], ...]:
        """More of what is still wrong."""
        found = []
        for task in TASKS:
            found.append((task, 1.12 - (self.mean(task, length) or 0.0)))
        return tuple(found)

    def ready(self) -> bool:
        """Whether every task is right nearly always at the longest length so far."""
        means = [self.mean(task, LENGTHS[self.level]) for task in TASKS]
        known = [mean for mean in means if mean is not None]
        return bool(known) and min(known) > 0.8 and sum(known) / len(known) > 0.93


def recipe(progress: Progress, step: int, options: argparse.Namespace) -> Recipe:
    rng = random.Random(f"{options.seed}|{step}")
    longest = (
        0.6 if progress.grown_since is None else 0.2
    )  # first mostly the newest length, then more of the shorter ones
    lower = range(progress.level + 1) if options.arch == "qwen3" else MOE_LEVELS
    level = progress.level if rng.random() < longest else rng.choice(lower)
    copy_share = (0.5, 0.3, 0.15, 0.1, 0.05, 0.05)[level]
    length = LENGTHS[level]
    return Recipe(options.seed, step, length, TOKENS[level] // length, copy_share, progress.weights(length))


def rate(progress: Progress, options: argparse.Namespace) -> float:
    if progress.decay_since is not None:
        left = 1 - (progress.step - progress.decay_since) / options.decay_steps
        return options.rate * max(0.02, left)
    return options.rate * min(1.0, (progress.step - (progress.grown_since or 0) + 1) / WARM_UP)


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.tokenizer != "new" and not (out / "tokenizer.json").exists():
        PreTrainedTokenizerFast.from_pretrained(options.tokenizer).save_pretrained(out)
    maker = Maker(options.out)
    model, progress = _beginning(options, maker)
    optimizer = _optimizer(model, options)
    if (out / "checkpoint.pt").exists():
        saved = torch.load(out / "checkpoint.pt", weights_only=False)
        progress = Progress(**saved["progress"])
        if options.arch == "qwen3" and progress.grown_since is not None:
            model = grown(model)
            optimizer = _optimizer(model, options)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
    maker.tokenizer.save_pretrained(out)
    (out / "options.json").write_text(json.dumps(vars(options), indent=1) + "\n")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start, initargs=(options.out,)) as pool:
        if options.arch == "qwen3" and progress.grown_since is None:
            _loop(model, optimizer, progress, pool, out, options, options.grow_at)
            model = grown(model)
            optimizer = _optimizer(model, options)
            progress.grown_since = progress.step
            _save(model, optimizer, progress, out)
        _loop(model, optimizer, progress, pool, out, options, options.steps)
    model.bfloat16().save_pretrained(out)


def _optimizer(model, options: argparse.Namespace) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.97), fused=True)


def _beginning(options: argparse.Namespace, maker: Maker):
    """A dense model starts from nothing and short rows, the sparse one from the dense one and rows of every length."""
    if options.arch == "qwen3":
        return new_dense(len(maker.tokenizer), maker.end), Progress()
    dense = Qwen3ForCausalLM.from_pretrained(options.dense, dtype=torch.float32)
    return upcycled(dense), Progress(level=len(LENGTHS) - 1, grown_since=0)


def _loop(model, optimizer, progress, pool, out, options, last: int) -> None:
    ahead = [pool.submit(make_batch, recipe(progress, progress.step + k, options)) for k in range(3)]
    bar = tqdm(total=last, initial=progress.step, smoothing=0.05, mininterval=10)
    began, before = time.time(), progress.seconds
    losses = []
    while progress.step < last:
        batch = ahead.pop(0).result()
        ahead.append(pool.submit(make_batch, recipe(progress, progress.step + 3, options)))
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, options)
        loss, right = score(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        length = batch.ids.shape[1]
        for task, correct in zip(batch.tasks, right, strict=True):
            progress.note(task, length, correct)
        progress.step += 1
        progress.seconds = before + time.time() - began
        _advance(progress, out, options)
        bar.update()
        if progress.step % 25 == 0:
            _log(progress, sum(losses) / len(losses), out, bar)
            losses.clear()
        finished = progress.decay_since is not None and progress.step - progress.decay_since >= options.decay_steps
        if progress.step % 100 == 0 or finished:
            _save(model, optimizer, progress, out)
        if finished:
            break


def _advance(progress: Progress, out: Path, options: argparse.Namespace) -> None:
    """On to longer rows when this length is learned or has had its share; on to the falling rate when told so."""
    stay = progress.step - progress.level_since
    if progress.level + 1 < len(LENGTHS) and ((stay > 60 and progress.ready()) or stay > PATIENCE[progress.level]):
        progress.level += 1
        progress.level_since = progress.step
        for task in TASKS:  # a longer length starts from what the shorter one reached
            known = progress.mean(task, LENGTHS[progress.level - 1])
            if known is not None:
                progress.accuracy.setdefault(f"{task}@{LENGTHS[progress.level]}", known * 0.8)
    if progress.decay_since is None and (progress.step >= options.decay_at or (out / "FINISH").exists()):
        progress.decay_since = progress.step


def _log(progress: Progress, loss: float, out: Path, bar: tqdm) -> None:
    length = LENGTHS[progress.level]
    now = {task: round(progress.mean(task, length) or 0.0, 2) for task in TASKS}
    line = {"step": progress.step, "seconds": round(progress.seconds), "length": length, "loss": round(loss, 4), **now}
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    bar.set_postfix_str(f"length {length} loss {loss:.3f}", refresh=False)


def _save(model, optimizer, progress, out: Path) -> None:
    """One file, replaced at once, so that a killed run leaves the last whole checkpoint."""
    state = dict(
        model=model.state_dict(), optimizer=optimizer.state_dict(), rng=torch.get_rng_state(), progress=asdict(progress)
    )
    torch.save(state, out / "checkpoint.tmp")
    os.replace(out / "checkpoint.tmp", out / "checkpoint.pt")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=tuple(DEFAULTS), default="qwen3")
    parser.add_argument("--out", required=True)
    parser.add_argument("--dense", default="eval/assets/qwen3-tiny", help="what qwen3_moe starts from")
    parser.add_argument("--tokenizer", default="eval/assets/qwen3-tiny", help='folder, or "new" to build it again')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000, help="at most so many")
    parser.add_argument("--grow-at", type=int, default=GROW_AT, help="step at which qwen3 gets more heads")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--decay-at", type=int, help="step at which the rate begins to fall")
    parser.add_argument("--decay-steps", type=int)
    options = parser.parse_args()
    for name, value in DEFAULTS[options.arch].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    train(arguments())
