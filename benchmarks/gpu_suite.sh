#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes on an H100-class one: tests first, then timings, into $OUT.
# Needs torch, triton, transformers, accelerate, safetensors and pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?set OUT to the folder for the results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
status=0
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.txt"
timeout 240 python -m pytest tests/test_gpu.py tests/test_patch_triton.py tests/test_caches.py -q -p no:cacheprovider \
  --durations=10 2>&1 | tee "$out/tests.txt" | tail -40 || status=1
shape="--device cuda --dtype bfloat16 --heads 32 --kv-heads 8 --head-dim 128"
timeout 100 python benchmarks/attention.py $shape --lengths 8192 32768 131072 --windows 512 --arms swa sa sa-bucket \
  sa-dyadic moba --kernels triton --rounds 3 --out "$out/attention.json" 2>&1 | tee "$out/attention.txt" || status=1
timeout 60 python benchmarks/attention.py $shape --lengths 2048 8192 --windows 128 512 --kernels triton torch \
  --rounds 3 --out "$out/attention-short.json" 2>&1 | tee "$out/attention-short.txt" || status=1
# The paper's own comparison: d=1024 in 16 heads, w=256, FlexAttention full against sa.
timeout 100 python benchmarks/attention.py --device cuda --dtype bfloat16 --heads 16 --kv-heads 16 --head-dim 64 --flex \
  --lengths 2048 8192 32768 --windows 256 --arms sa sa-bucket --kernels triton --rounds 3 --out "$out/paper.json" 2>&1 \
  | tee "$out/paper.txt" || status=1
exit $status
