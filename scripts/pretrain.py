"""Train small language models from scratch with full, sliding-window, stochastic, gated or block attention.

  python scripts/pretrain.py --out runs/pretrain --text peps.txt rfcs.txt
  python scripts/pretrain.py --out runs/gated --text book.txt --attention swa,gated --window 64,128 --seeds 0,1,2
  python scripts/pretrain.py --out runs/pretrain --text peps.txt rfcs.txt --report      # what there is so far

On several devices, every run is trained by all of them, one run after the other:

  accelerate launch --num_processes 8 scripts/pretrain.py --out DIR --text ...
  torchrun --nproc_per_node 8 scripts/pretrain.py --out DIR --text ...

The same command resumes what was stopped, at the last checkpoint of the run it was in. Runs are ordered seed by seed:
after the first seed of every attention there is something to compare. One folder per run has the model, its log and
what it reached; report.md has tables and curves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import torch

sys.path.insert(0, str(Path(__file__).parent))
from pretraining.measuring import measure
from pretraining.settings import ATTENTION, HELP, Settings, check, read_config
from pretraining.texts import prepare
from pretraining.training import train

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
    kinds = get_type_hints(Settings)
    for item in fields(Settings):
        flag, default = "--" + item.name.replace("_", "-"), item.default
        told = f"{WORDS.get(item.name, item.name.replace('_', ' '))} (default: {_shown(default)})"
        if item.name == "text":
            parser.add_argument(flag, nargs="+", help=WORDS["text"], default=argparse.SUPPRESS)
        elif isinstance(default, tuple):
            kind = int if kinds[item.name] == tuple[int, ...] else str
            parser.add_argument(flag, type=_listed(kind), help=told, default=argparse.SUPPRESS, metavar="A,B")
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


def _listed(kind: type):
    def parsed(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(","))

    return parsed


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main(arguments: list[str] | None = None) -> None:
    settings, out, options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    first = int(os.environ.get("RANK", "0")) == 0
    if options.report:
        from pretraining.report import write_report

        print(f"report: {write_report(settings, out)}")
        return
    _keep(settings, out, first)
    runs = list(settings.runs())
    for number, run in enumerate(runs, 1):
        if first:
            print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        train(settings, run, out)
        if first:
            measure(settings, run, out)
    if first:
        from pretraining.report import write_report

        print(f"report: {write_report(settings, out)}")


def _keep(settings: Settings, out: Path, first: bool) -> None:
    """Prepare the data once; refuse a folder whose data and models are of other settings."""
    if first:
        out.mkdir(parents=True, exist_ok=True)
    kept, now = out / "settings.json", json.loads(json.dumps(settings.as_dict()))
    free = ("attention", "window", "seeds", "save_every", "rows")  # more runs of the same comparison may be added
    if kept.exists():
        before = json.loads(kept.read_text())
        other = [name for name in now if name not in free and now[name] != before.get(name)]
        if other:
            told = ", ".join(f"{name}: {before.get(name)} then, {now[name]} now" for name in other)
            raise SystemExit(f"{out} holds runs of other settings ({told}): use another --out, or the same settings")
    elif first:
        kept.write_text(json.dumps(now, indent=2) + "\n")
    if first:
        prepare(settings, out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
