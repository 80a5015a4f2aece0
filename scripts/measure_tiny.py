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
def points(model, tokenizer, task: str, made: list[Document]) -> list[float]:
    """What each document earns: 1 or 0, or for several answers the share that was given. Prompts are left-padded."""
    rows = tokenizer([one.prompt for one in made], padding=True, padding_side="left", return_tensors="pt")
    prompt, mask = rows["input_ids"], rows["attention_mask"]
    if TASKS[task].output == "generate":
        limit = TASKS[task].max_new_tokens
        output = model.generate(prompt, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        texts = tokenizer.batch_decode(output[:, prompt.shape[1] :], skip_special_tokens=True)
        return [_found(text, one.answers) for text, one in zip(texts, made, strict=True)]
    last = model(prompt, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]
    return [_chosen(tokenizer, task, row, one) for row, one in zip(last, made, strict=True)]


def _found(text: str, answers: tuple[str, ...]) -> float:
    line = text.split("\n")[0].lower()  # where the harness ends an answer
    return sum(answer.lower() in line for answer in answers) / len(answers)


def _chosen(tokenizer, task: str, logits: torch.Tensor, made: Document) -> float:
    """Log-likelihood over the choices, each one token in the bundled vocabulary; for cloze, the greedy word."""
    pieces = [tokenizer.encode(choice, add_special_tokens=False) for choice in made.choices]
    if any(len(piece) != 1 for piece in pieces):
        raise ValueError("this script measures the bundled models: every choice has to be one token; use sa-eval")
    if TASKS[task].output == "cloze":
        return float(int(logits.argmax()) == pieces[0][0])
    return float(int(logits[[piece[0] for piece in pieces]].argmax()) == made.gold)


def measure(
    folder: str, lengths: list[int], documents: int, tasks: list[str], seed: int, batch: int
) -> dict[str, dict[int, float]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    count, found = counter(tokenizer), {}
    bar = tqdm(total=len(tasks) * len(lengths) * documents, mininterval=5)
    for task in tasks:
        found[task] = {}
        for length in lengths:
            total = 0.0
            for start in range(0, documents, batch):
                indices = range(start, min(documents, start + batch))
                made = [document(task, count, length, seed, index) for index in indices]
                total += sum(points(model, tokenizer, task, made))
                bar.update(len(made))
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
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.folder, options.lengths, options.documents, options.tasks, options.seed, options.batch)
    if options.out:
        options.out.write_text(json.dumps({"documents": options.documents, "share": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
