"""Measures a bundled model as the harness does: `python scripts/measure_tiny.py DIR`. Float32, full attention."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from sa_eval.tasks import TASKS, Document, document


def counter(tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


@torch.inference_mode()
def points(model, tokenizer, task: str, made: Document) -> float:
    """What the document earns: 1 or 0, or for several answers the share that was given."""
    kind = TASKS[task].output
    prompt = torch.tensor([tokenizer.encode(made.prompt, add_special_tokens=False)])
    if kind == "generate":
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=TASKS[task].max_new_tokens,
            do_sample=False,
        )
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        return sum(answer in text for answer in made.answers) / len(made.answers)
    chance = _chances(model, prompt, [tokenizer.encode(choice, add_special_tokens=False) for choice in made.choices])
    if kind == "cloze":
        return float(chance[0][1])
    best = max(range(len(chance)), key=lambda number: chance[number][0])
    return float(best == made.gold)


def _chances(model, prompt: torch.Tensor, choices: list[list[int]]) -> list[tuple[float, bool]]:
    """(log-likelihood, whether it is the greedy continuation) of each choice; one pass serves all of one token."""
    if all(len(choice) == 1 for choice in choices):
        last = model(prompt, use_cache=False, logits_to_keep=1).logits[0, -1].log_softmax(-1)
        return [(last[choice[0]].item(), int(last.argmax()) == choice[0]) for choice in choices]
    found = []
    for choice in choices:
        ids = torch.tensor(choice)
        logits = model(torch.cat([prompt, ids[None, :-1]], 1), use_cache=False, logits_to_keep=len(ids)).logits[0]
        chance = logits.log_softmax(-1).gather(1, ids[:, None]).sum().item()
        found.append((chance, bool((logits.argmax(-1) == ids).all())))
    return found


def measure(
    folder: str, lengths: list[int], documents: int, tasks: list[str], seed: int
) -> dict[str, dict[int, float]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    count, found = counter(tokenizer), {}
    bar = tqdm(total=len(tasks) * len(lengths) * documents, mininterval=5)
    for task in tasks:
        found[task] = {}
        for length in lengths:
            total = 0.0
            for index in range(documents):
                total += points(model, tokenizer, task, document(task, count, length, seed, index))
                bar.update()
            found[task][length] = total / documents
        tqdm.write(f"{task:20s} " + "  ".join(f"{length}: {mean:.3f}" for length, mean in found[task].items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.folder, options.lengths, options.documents, options.tasks, options.seed)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
