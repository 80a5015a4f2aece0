#!/usr/bin/env bash
# Training on a GPU, in under 9 minutes: both passes of attention, then small models trained from scratch, into $OUT.
# Needs what gpu_suite.sh needs, and numpy, scipy, matplotlib and tokenizers. TEXT: text files to train on.
# Not run on a GPU yet.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?set OUT to the folder for the results}
packages=$(mktemp -d) && mkdir "$packages/sa_eval" && ln -s "$PWD"/eval/* "$PWD/configs" "$packages/sa_eval"
export PYTHONPATH=$packages:$PWD${PYTHONPATH:+:$PYTHONPATH}
timeout 150 python benchmarks/training.py --device cuda --dtype bfloat16 --heads 32 --kv-heads 8 --head-dim 128 \
  --lengths 8192 32768 --windows 512 --kernels torch triton --rounds 3 --out "$out/training.json"
# Seed by seed; what is finished when the time is over is reported.
timeout -s INT 330 python scripts/pretrain.py --config configs/pretrain/small.yaml --text ${TEXT:?set TEXT} \
  --tokens 8000000 --batch-tokens 32768 --rows 32 --out "$packages/pretrain"
timeout 40 python scripts/pretrain.py --config configs/pretrain/small.yaml --text $TEXT \
  --tokens 8000000 --batch-tokens 32768 --rows 32 --out "$packages/pretrain" --report
cp "$packages"/pretrain/report.md "$packages"/pretrain/report.json "$packages"/pretrain/*.png "$out"
