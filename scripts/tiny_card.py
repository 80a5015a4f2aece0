# ruff: noqa: E501  (lines of the card)
"""Writes a bundled model's card from its config, its training run, what the training script holds, and its measurement.

`python scripts/tiny_card.py eval/assets/qwen3-tiny --run TRAINING_DIR --measured measured.json --processor "EPYC, one core"`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import train_tiny
from tiny_model import BALANCE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sa_eval.tasks import TASKS, document

_CARD = """---
license: apache-2.0
tags: [synthetic, long-context, test-fixture]
---
# {name}

A {kind} of {millions:.1f} million parameters ({layers} layers, width {width}, {heads} query heads and {few} key/value heads
of {head_width}, tied embeddings, {positions:,} positions, RoPE base {rope:,.0f}{sparse}), trained in this repository on
the offline suite (`eval/tasks`) and on nothing else. It ships so that `sa-eval` compares attention variants on a model
that really does what it asks, with no download.

**It is not for anything else.** It has seen about 2,300 words in a few dozen sentence patterns, it cannot chat or
reason, it knows no facts, and text outside the suite falls apart into bytes. Figures obtained with it say how a variant
treats these tasks on a tiny model, not what it does to a large one. In particular most of its layers are needed for
matching, so it has less redundancy than a large model.

## What it reaches
Full attention, float32 weights from the stored bfloat16 ones, greedy generation or log-likelihood as the harness does
it, {documents} documents of the `eval` split per cell. Share of the expected answers found:

{table}

{missed}

## Held out
Every fifth (key, value) pair, by a stable hash (`eval/tasks/split.py`), is never shown in training: not asked, not
stated, not as a distractor. Evaluation documents consist of such pairs only: numbers under keys, places of people,
links of chains (which of the words further down have the value is not held apart), and for the aggregation tasks the pair of the first and the second most frequent word or topic.
Their seeds differ as well. The words themselves, the sentence patterns and the tasks are the same ones.

## How it was trained
`{command}` makes it anew ({phases}). The released weights are those of one run, from its first step to its last.

| | |
|---|---|
| steps, wall clock | {steps:,} steps, {minutes:.0f} minutes on {processor} |
| rows | {lengths} tokens, {tokens} a step{levels} |
| row | a scene with up to 32 questions about it; loss on the answers only; a share of rows{copying} copies random words instead, without which retrieval is not learned{short} |
| sampling | tasks by how often they are still wrong, lengths mixed |
| optimizer | AdamW (0.9, 0.97), weight decay 0.02 on matrices, rate {rate} after {warm_up} steps{anew}, falling linearly to a fiftieth over the last {decay:,} steps, gradients clipped at 1 |
| arithmetic | float32; stored as bfloat16 |

Running accuracy on fresh training rows (teacher-forced, whole answers; a task that was not asked yet is at 0{lag}):

{log}
{experts}"""
_TARGET = 0.95


def card(folder: Path, run: Path, measured: dict, processor: str) -> str:
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    moe = config.model_type == "qwen3_moe"
    sparse = f", {config.num_experts} experts a layer, {config.num_experts_per_tok} of them active" if moe else ""
    lines, settings = _whole(run)
    levels = train_tiny.MOE_LEVELS if moe else range(len(train_tiny.LENGTHS))
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
        documents=measured["documents"],
        table=_table(measured["share"]),
        missed=_missed(measured["share"]),
        command=f"python scripts/train_tiny.py --arch {config.model_type} --out DIR",
        phases=_moe_phases() if moe else _dense_phases(settings),
        steps=lines[-1]["step"],
        minutes=lines[-1]["seconds"] / 60,
        processor=processor,
        lengths=", ".join(f"{train_tiny.LENGTHS[level]:,}" for level in levels),
        tokens=" to ".join(f"{number:,}" for number in sorted({train_tiny.TOKENS[level] for level in levels})),
        levels="" if moe else f"; {_levels()}",
        copying="" if moe else ", from a half at the shortest length to a twentieth at the longest,",
        short="; so do rows too short for a scene (two tasks at 96 tokens)" if not moe else "",
        anew=", from nothing again where the heads are doubled" if not moe else "",
        rate=settings["rate"],
        warm_up=train_tiny.WARM_UP,
        decay=settings["decay_steps"],
        lag="; begun at zero, so it lags where questions are few" if moe else "",
        log=_log(lines),
        experts=_experts(model, AutoTokenizer.from_pretrained(folder)) if moe else "",
    )


def _whole(run: Path) -> tuple[list[dict], dict]:
    """(lines of the log, options) of a run that ended as it was to end and was never begun again.

    Raises:
        ValueError: for another run.
    """
    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    options = json.loads((run / "options.json").read_text())
    steps, end = [line["step"] for line in lines], options["decay_at"] + options["decay_steps"]
    if steps != sorted(set(steps)) or steps[-1] != end:
        raise ValueError(f"{run} is not one run to step {end}: its log ends at {steps[-1]} and has {len(steps)} lines")
    return lines, options


def _dense_phases(settings: dict) -> str:
    grow, decay = settings["grow_at"], settings["decay_at"]
    return (
        f"4 query and 2 key/value heads to step {grow:,}; then twice as many heads, begun at zero output, and mostly "
        f"shorter rows; the rate falls from step {decay:,} on"
    )


def _moe_phases() -> str:
    return (
        "sparse upcycling, arXiv 2212.05055: every expert begins as a copy of the released dense model's MLP, the router "
        "at random"
    )


def _levels() -> str:
    first, *others = train_tiny.PATIENCE
    return f"on to the next length when all tasks are learned or after {others[0]} ({first} at the shortest) steps"


def _table(found: dict[str, dict[str, float]]) -> str:
    lengths = list(next(iter(found.values())))
    rows = ["| task | " + " | ".join(lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    rows += [f"| {task} | " + " | ".join(f"{100 * found[task][n]:.1f} %" for n in lengths) + " |" for task in found]
    return "\n".join(rows)


def _missed(found: dict[str, dict[str, float]]) -> str:
    """What is below the target, or that nothing is."""
    below = [
        f"`{task}` at {length}"
        for task, row in found.items()
        for length, share in row.items()
        if round(share, 3) < _TARGET
    ]
    return f"Below the target of {100 * _TARGET:.0f} %: {', '.join(below) if below else 'nothing'}."


def _log(lines: list[dict], rows: int = 12) -> str:
    picked = [lines[round(number * (len(lines) - 1) / (rows - 1))] for number in range(rows)]
    names = ["step", "seconds", "length", "loss", *TASKS]
    table = ["| " + " | ".join(name.replace("needle_", "") for name in names) + " |", "|---" * len(names) + "|"]
    table += ["| " + " | ".join(str(line[name]) for name in names) + " |" for line in picked]
    return "\n".join(table)


@torch.inference_mode()
def _experts(model, tokenizer) -> str:
    """Which share of tokens every expert gets."""
    number, total = model.config.num_experts, torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    for task in TASKS:
        prompt = document(task, lambda text: len(tokenizer.encode(text)), 1024, 0, 0).prompt
        routed = model(torch.tensor([tokenizer.encode(prompt)]), output_router_logits=True).router_logits
        for layer, logits in enumerate(routed):
            chosen = logits.topk(model.config.num_experts_per_tok, -1).indices.flatten()
            total[layer] += torch.bincount(chosen, minlength=number)
    share = total / total.sum(1, keepdim=True)
    head = [
        "",
        "## The experts",
        f"A load-balancing loss of weight {BALANCE} keeps them in use. Share of the routers' choices, two for "
        "every token, that each expert gets, on one document of 1,024 tokens of each task:",
        "",
        "| layer | " + " | ".join(f"expert {expert}" for expert in range(number)) + " |",
        "|---" * (number + 1) + "|",
    ]
    rows = [
        "| " + " | ".join([str(layer), *(f"{100 * part:.0f} %" for part in row)]) + " |"
        for layer, row in enumerate(share)
    ]
    return "\n".join([*head, *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder in which it was trained")
    parser.add_argument("--measured", type=Path, required=True, help="what scripts/measure_tiny.py --out wrote")
    parser.add_argument("--processor", required=True, help="what it was trained on")
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text())
    (options.folder / "README.md").write_text(card(options.folder, options.run, measured, options.processor))


if __name__ == "__main__":
    main()
