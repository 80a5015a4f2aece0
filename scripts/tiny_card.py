# ruff: noqa: E501  (lines of the card)
"""Writes a bundled model's card from its config, its training log and its measurement.

`python scripts/tiny_card.py eval/assets/qwen3-tiny --run TRAINING_DIR --measured measured.json`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from sa_eval.tasks import TASKS

_CARD = """---
license: apache-2.0
tags: [synthetic, long-context, test-fixture]
---
# {name}

A {kind} of {millions:.1f} million parameters ({layers} layers, width {width}, {heads} query heads and {few} key/value heads
of {head_width}, tied embeddings, {positions:,} positions, RoPE base {rope:,.0f}{sparse}), trained in this repository on
the offline suite (`eval/tasks`) and on nothing else. It ships so that `sa-eval` compares attention variants on a model
that really retrieves and counts, with no download.

**It is not for anything else.** It has seen about 2,300 words in a few dozen sentence patterns, it cannot chat or
reason, it knows no facts, and text outside the suite falls apart into bytes. Figures obtained with it say how a variant
treats these tasks on a tiny model, not what it does to a large one. In particular most of its layers are needed for
matching, so it has less redundancy than a large model.

## What it reaches
Full attention, float32 weights from the stored bfloat16 ones, greedy generation or log-likelihood as the harness does
it, {documents} documents of the `eval` split per cell. Share of the expected answers found:

{table}

`variable_tracking` has no target: following two or three hops is at the edge of what this size learns.

## Held out
Every fifth (key, value) pair, by a stable hash (`eval/tasks/split.py`), is never shown in training: not asked, not
stated, not as a distractor. Evaluation documents consist of such pairs only: numbers under keys, places of people,
values of variables, and for the aggregation tasks the pair of the first and the second most frequent word or topic.
Their seeds differ as well. The words themselves, the sentence patterns and the tasks are the same ones.

## How it was trained
`{command}` makes it anew ({phases}).

| | |
|---|---|
| steps, wall clock | {steps:,} steps, {minutes:.0f} minutes on one of two shared CPU cores ({processor}) |
| rows | {lengths} tokens, {tokens} tokens a step; on to the next length when all tasks are learned or after {patience} steps |
| row | a scene with up to 32 questions about it; loss on the answers only; {copying} |
| sampling | tasks by how often they are still wrong, lengths mixed |
| optimizer | AdamW (0.9, 0.97), weight decay 0.02 on matrices, rate {rate} after 100 steps, falling linearly to a fiftieth over the last {decay} steps, gradients clipped at 1 |
| arithmetic | bfloat16 products, float32 master weights; stored as bfloat16 |

Running accuracy on fresh training rows (teacher-forced, whole answers):

{log}
{more}"""


def card(folder: Path, run: Path, measured: Path, settings: dict) -> str:
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = json.loads(measured.read_text())
    moe = config.model_type == "qwen3_moe"
    sparse = f", {config.num_experts} experts a layer, {config.num_experts_per_tok} of them active" if moe else ""
    lines = list({(line := json.loads(text))["step"]: line for text in (run / "log.jsonl").open()}.values())
    return _CARD.format(
        name=folder.name,
        kind="Qwen3-MoE" if moe else "Qwen3",
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        few=config.num_key_value_heads,
        head_width=config.head_dim,
        positions=config.max_position_embeddings,
        rope=config.rope_parameters["rope_theta"],
        sparse=sparse,
        table=_measured(found),
        steps=lines[-1]["step"],
        minutes=lines[-1]["seconds"] / 60,
        log=_log(lines),
        **settings,
    )


def _measured(found: dict) -> str:
    lengths = list(next(iter(found.values())))
    rows = ["| task | " + " | ".join(lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    rows += [f"| {task} | " + " | ".join(f"{100 * found[task][n]:.1f} %" for n in lengths) + " |" for task in found]
    return "\n".join(rows)


def _log(lines: list[dict], rows: int = 12) -> str:
    picked = [lines[round(number * (len(lines) - 1) / (rows - 1))] for number in range(rows)]
    names = ["step", "seconds", "length", "loss", *TASKS]
    table = ["| " + " | ".join(name.replace("needle_", "") for name in names) + " |", "|---" * len(names) + "|"]
    table += ["| " + " | ".join(str(line[name]) for name in names) + " |" for line in picked]
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True, help="JSON with the remaining fields of the card")
    options = parser.parse_args()
    settings = json.loads(options.settings.read_text())
    (options.folder / "README.md").write_text(card(options.folder, options.run, options.measured, settings))


if __name__ == "__main__":
    main()
