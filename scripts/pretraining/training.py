"""One run: transformers' Trainer on a patched model, resumed where a checkpoint is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from .arms import Resample, SameDraw, new_model, patched, redrawn
from .optimizers import make_optimizer
from .settings import Run, Settings
from .texts import load_rows, load_tokenizer

DONE = "trained.json"


class InOrder(Trainer):
    """Every run sees the rows in the order in which they lie; the optimizer is the settings'."""

    optimizer_name: str

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            name, rate, decay = self.optimizer_name, self.args.learning_rate, self.args.weight_decay
            self.optimizer = make_optimizer(name, model or self.model, rate, decay)
        return self.optimizer


def train(settings: Settings, run: Run, out: Path) -> None:
    """Train a run to its end and write its model and log; nothing is done where they are."""
    folder = out / run.name
    if (folder / DONE).exists():
        return
    tokenizer = load_tokenizer(out)
    model = new_model(settings, run.seed, tokenizer.eos_token_id, len(tokenizer))
    patch = patched(model, run, settings.resample)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share, rest = divmod(settings.batch_tokens, settings.rows * settings.length * processes)
    if rest:
        raise ValueError(
            f"a step of {settings.batch_tokens} tokens can't be shared by {processes} processes: change rows"
        )
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.rows,
        gradient_accumulation_steps=share,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        save_steps=settings.save_every,
        save_total_limit=1,
        logging_steps=max(1, settings.steps // 50),
        report_to="none",
        seed=run.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    callbacks: list[Any] = [SameDraw(model)]
    variant = redrawn(patch)
    if settings.resample == "step" and variant is not None:
        callbacks.append(Resample(model, variant))
    trainer = InOrder(model, arguments, train_dataset=load_rows(out), callbacks=callbacks)
    trainer.optimizer_name = settings.optimizer
    began = time.time()
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))
    if trainer.is_world_process_zero():
        model.eval()
        model.save_pretrained(folder)
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        facts = {"run": run.__dict__, "steps": settings.steps, "seconds": round(time.time() - began), "log": log}
        write_whole(folder / DONE, json.dumps(facts) + "\n")


def _last_checkpoint(folder: Path) -> str | None:
    """The newest that was written to its end: Trainer writes its state last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    return None


def write_whole(file: Path, text: str) -> None:
    """All of it or, where the process is stopped meanwhile, nothing."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
