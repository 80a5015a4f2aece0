"""What the GPU suite says about its figures: met, missed or not measured."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_report.py"


def row(times_full, ms, **more):
    return {"times_full": times_full, "ms": ms, "of_products": 0.3, **more}


def test_targets_stand_beside_figures_and_missing_ones_are_not_met(tmp_path):
    cells = [
        {
            "length": 32_768,
            "window": 512,
            "calls": {
                "full/cudnn": row(1.0, 20.0),
                "sa/masked": row(30.0, 0.1),
                "sa/torch": row(5.0, 4.0),
                "sa/triton": row(10.5, 1.9, host_us=31.0),
                "swa/flash": row(13.0, 1.5, host_us=12.0),
            },
        },
        {"length": 8192, "window": 256, "calls": {"full/flex": row(1.0, 7.0), "sa/triton": row(7.0, 1.0)}},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"environment": {}, "cells": cells}))
    command = [sys.executable, SCRIPT, tmp_path / "a.json", tmp_path / "absent.json"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {" ".join(line.split()) for line in text.splitlines()}
    assert "n=32,768 sa/triton, times full 10.50x target 10x met" in found
    assert "n=32,768 swa/flash, times full 13.00x target 14x MISSED" in found
    assert "n=32,768 moba, times full - target 6x" in found
    assert "n=32,768 sa/triton, of matrix products 0.30 target 0.25 met" in found
    assert "n=32,768 sa/triton, host 31.00 us target 30 us MISSED" in found
    assert "n=32,768 time of sa over swa 1.27x target 1.35x met" in found
    assert "n=8,192 flex full over sa/triton 7.00x target 6.6x met" in found
    assert "sa w=512 n=32,768: triton, 10.50 times full" in found
    assert "n=131,072 sa, times full - target 40x" in found
