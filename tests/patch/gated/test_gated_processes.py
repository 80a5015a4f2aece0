"""Gated models train with transformers' Trainer as it is, and over several processes as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from gated_models import gated, logits, text
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import sa_patch

SCRIPT = Path(__file__).parent / "run_gated_processes.py"


def test_two_processes_train_what_one_trains(tmp_path):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], said[0][1][-3000:]
    for output, _ in said:
        for kind, found in json.loads(output.splitlines()[-1]).items():
            assert found["worst"] < 1e-4 and found["steps"] == 3
            assert found["sharded"] == (kind == "fsdp") and found["type"] != "Qwen3ForCausalLM"


class Texts(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        ids = text(40, seed=index)
        return {"input_ids": ids, "labels": ids}


def trained(folder, steps, resume=False):
    model = gated()
    options = TrainingArguments(
        output_dir=folder,
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(model, options, train_dataset=Texts())
    if steps < options.max_steps:
        trainer.add_callback(_stop_at(steps))
    trainer.train(resume_from_checkpoint=resume)
    return model.eval()


def _stop_at(steps):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= steps

    return Stop()


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    whole = trained(tmp_path / "whole", 6)
    trained(tmp_path / "stopped", 3)
    resumed = trained(tmp_path / "stopped", 6, resume=True)
    assert int(resumed.model.gate_steps.count) == int(whole.model.gate_steps.count) == 12
    torch.testing.assert_close(logits(resumed, text(2, 40)), logits(whole, text(2, 40)), rtol=1e-5, atol=1e-5)
    again = sa_patch.from_pretrained(tmp_path / "whole" / "checkpoint-6")
    assert torch.equal(logits(again, text(2, 40)), logits(whole, text(2, 40)))
