"""Train small language models from scratch with full, sliding-window, stochastic, gated or block attention.

  python scripts/pretrain.py --out runs/pretrain --text peps.txt rfcs.txt
  python scripts/pretrain.py --out runs/gated --text book.txt --attention swa,gated --window 64,128 --seeds 0,1,2
  python scripts/pretrain.py --out runs/pretrain --text peps.txt rfcs.txt --report      # what there is so far

On several devices, every run is trained by all of them, one run after the other:

  accelerate launch --num_processes 8 scripts/pretrain.py --out DIR --text ...
  torchrun --nproc_per_node 8 scripts/pretrain.py --out DIR --text ...

The same command resumes what was stopped, at the last checkpoint of the run it was in. Several processes may share one
--out: each takes a run that no other is at. Runs are ordered seed by seed: after the first seed of every attention
there is something to compare. One folder per run has the model, its log and what it reached; report.md has tables and
curves of all that is finished in --out (with --report, of the attentions, windows and seeds that are asked for).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parent))
from pretraining.measuring import measure
from pretraining.report import write_report
from pretraining.settings import ATTENTION, HELP, Settings, check, read_config
from pretraining.texts import prepare, text_hash
from pretraining.training import train, write_whole

KEPT = "settings.json"

WORDS = {
    "text": "text files; documents are told apart by --document-start, one in 20 is held out",
    "document_start": "regular expression of the line a document begins with",
    "attention": "comma-separated: " + "; ".join(f"{name}: {HELP[name]}" for name in ATTENTION),
    "window": "keys per query, comma-separated; all attentions have the same number of pairs at a window",
    "seeds": "comma-separated; a seed is other weights and other random keys, the data's order is always the same",
    "length": "tokens per row",
    "tokens": "to train a run on",
    "batch_tokens": "of one step, over all processes",
    "rows": "rows a process takes at once",
    "synthetic": "share of rows that are scenes of the offline suite with questions",
    "resample": "step: sa, gated and random-keys draw anew in every step; never: always those of the seed",
    "vocab": "tokens of the tokenizer that is learned from the text",
    "optimizer": "muon: Muon for the layers' matrices, AdamW for the rest; adamw: AdamW for all",
    "rate": "learning rate, reached after the warm-up and falling by a cosine to a tenth",
    "warmup": "share of the steps",
    "precision": "bf16 (autocast) or fp32, which a CPU without AMX trains 1.3 to 1.5 times as fast with",
    "documents": "held-out documents, a page each",
    "questions": "held-out questions per synthetic task",
    "save_every": "steps between checkpoints",
}


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path, argparse.Namespace]:
    """Defaults, then the config file, then flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--config", help="YAML file of settings (configs/pretrain has some); flags go before it")
    parser.add_argument("--report", action="store_true", help="only write report.md of what has been measured")
    parser.add_argument("--threads", type=int, help="CPU threads")
    for item in fields(Settings):
        flag, default = "--" + item.name.replace("_", "-"), item.default
        told = f"{WORDS.get(item.name, item.name.replace('_', ' '))} (default: {_shown(default)})"
        if item.name == "text":
            parser.add_argument(flag, nargs="+", help=WORDS["text"], default=argparse.SUPPRESS)
        elif isinstance(default, tuple):
            parser.add_argument(flag, type=_listed, help=told, default=argparse.SUPPRESS, metavar="A,B")
        else:
            parser.add_argument(flag, type=type(default), help=told.replace("%", "%%"), default=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = {item.name for item in fields(Settings)}
    given = {name: value for name, value in vars(options).items() if name in names}
    try:
        from_file = read_config(options.config) if options.config else {}
        return check({**from_file, **given}), options.out, options
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main(arguments: list[str] | None = None) -> None:
    settings, out, options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    first = int(os.environ.get("RANK", "0")) == 0
    if options.report:
        _same_comparison(settings, out)
        print(f"report: {write_report(out, settings)}")
        return
    if processes == 1 and torch.cuda.device_count() > 1:
        raise SystemExit(
            f"one process sees {torch.cuda.device_count()} GPUs and trains on one: use torchrun --nproc_per_node "
            f"{torch.cuda.device_count()} {sys.argv[0]} ..., or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    if first:
        _prepare_once(settings, out)
    if processes > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        torch.distributed.barrier()
    runs, elsewhere = list(settings.runs()), []
    for number, run in enumerate(runs, 1):
        with _claimed(out / run.name, first) as mine:
            if not mine:
                elsewhere.append(run.name)
                continue
            if first:
                print(f"[{number}/{len(runs)}] {run.name}", flush=True)
            train(settings, run, out)
            if first:
                measure(settings, run, out)
    if elsewhere:
        print(f"left to another process, which is at it: {', '.join(elsewhere)}")
    if first and len(elsewhere) < len(runs):
        print(f"report: {write_report(out)}")


@contextlib.contextmanager
def _claimed(folder: Path, first: bool) -> Iterator[bool]:
    """Whether this process may train the run: False where another one, with the same --out, is at it."""
    if not first:
        yield True
        return
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if torch.distributed.is_initialized():
            raise SystemExit(f"another process trains {folder}: wait for it, or use another --out") from None
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _prepare_once(settings: Settings, out: Path) -> None:
    """The data, then settings.json, which says that they are whole."""
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):  # a second process waits for the data
        if (out / KEPT).exists():
            _same_comparison(settings, out)
            return
        try:
            prepare(settings, out)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        kept = {**settings.as_dict(), "text_sha256": text_hash(settings)}
        write_whole(out / KEPT, json.dumps(kept, indent=2) + "\n")


def _same_comparison(settings: Settings, out: Path) -> None:
    """Refuse a folder whose data and models are of other settings or texts."""
    if not (out / KEPT).exists():
        raise SystemExit(f"nothing has been trained in {out} yet: run without --report first")
    before = json.loads((out / KEPT).read_text())
    now = json.loads(json.dumps({**settings.as_dict(), "text_sha256": text_hash(settings)}))
    free = ("attention", "window", "seeds", "save_every", "rows", "text")  # more runs of one comparison may be added
    other = [name for name in now if name not in free and now[name] != before.get(name)]
    if other:
        told = ", ".join(f"{name}: {before.get(name)} then, {now[name]} now" for name in other)
        raise SystemExit(f"{out} holds runs of other settings ({told}): use another --out, or the same settings")


if __name__ == "__main__":
    main()
