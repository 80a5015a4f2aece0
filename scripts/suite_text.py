"""Writes text of the offline suite's training split, with questions and answers: what bundled models are calibrated on.

python scripts/suite_text.py suite.txt
sa-eval calibrate --model qwen3-tiny --text suite.txt --window 128 --lengths 1024,2048 --swaps 6 --out plan
sa-eval --plan plan --modes swa,routed --block-size 4,8 --window 128 --lengths 2048 --num-samples 20 --seeds 0
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tiny_data import Maker

from sa_eval.tasks import TASKS
from sa_eval.tasks.base import Request

ASSETS = Path(__file__).parents[1] / "eval" / "assets" / "qwen3-tiny"
SCENES, LENGTHS, QUESTIONS = 10, (500, 900, 1500), 16  # of every task; tokens of one; questions about one


def text() -> str:
    count, source, scenes = Maker(str(ASSETS)).count, random.Random(0), []
    for number in range(SCENES):
        for name in TASKS:
            asked = Request(random.Random(f"{number}{name}"), count, source.choice(LENGTHS), "train")
            scene = TASKS[name].scene(asked)
            questions = list(scene.questions)
            source.shuffle(questions)
            scenes.append(scene.context + "".join(f"{one.tail}{one.target}." for one in questions[:QUESTIONS]))
    return "\n".join(scenes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.parse_args().out.write_text(text(), encoding="utf-8")
