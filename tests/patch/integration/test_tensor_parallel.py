"""The law of tensor parallel: models split over processes give what the patched model gives in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import make_model

SCRIPT = Path(__file__).parent / "run_tensor_parallel.py"
PROCESSES = 2


def run(folder):
    """What every process printed."""
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder, str(rank), str(PROCESSES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()  # one that waits for another that failed
    for process, (_, complaints) in zip(started, ended, strict=True):
        assert process.returncode == 0, complaints
    return [json.loads(printed.splitlines()[-1]) for printed, _ in ended]


@pytest.mark.cell("Ecosystem", "tensor parallel (tp_plan='auto'), patched in every process")
def test_a_model_split_over_processes_gives_what_it_gives_in_one(tmp_path):
    for kind in ("qwen3", "qwen3_moe"):
        make_model(kind, vocab_size=98).save_pretrained(tmp_path / kind)  # the last layer is split too
    for printed in run(tmp_path):
        for kind, seen in printed.items():
            assert seen["held_rows"] == 32, "2 of 4 heads of 16"
            for case, found in seen["logits"].items():
                assert found["worst"] < 2e-5 and found["same_tokens_and_calls"], (kind, case, found)
            assert "holds 1 of 2 kv heads (tensor parallelism): use pool='head'" in seen["refusal"]
            assert seen["gradient"] < 1e-4 and seen["restored"], (kind, seen)
