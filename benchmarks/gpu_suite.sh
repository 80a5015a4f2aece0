#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes on an H100-class one: tests first, then timings, into $OUT.
# Needs torch, triton, transformers, accelerate, safetensors, pytest, pydantic, pyyaml, jinja2 and tqdm; with pytest-xdist
# the tests compile side by side.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?set OUT to the folder for the results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
status=0
# A step's limit in seconds, and its command. The limits add up to 545 seconds.
step() {
  local limit=$1
  shift
  { echo; echo "\$ $*"; timeout "$limit" "$@" 2>&1; } | tr '\r' '\n' | grep -v "it/s\|cell/s\|tile/s" | tee -a "$out/suite.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "failed or out of time: $*" | tee -a "$out/suite.txt"; status=1; }
}
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv | tee "$out/suite.txt"
# Triton compiles for 5 to 15 seconds per program: all arms side by side, and beside the tests.
shape="--device cuda --dtype bfloat16 --heads 32 --kv-heads 8 --head-dim 128"
arms="swa sa sa-bucket sa-dyadic moba routed+tiles routed+tiles32"
for arm in $arms; do
  timeout 120 python benchmarks/attention.py $shape --rounds 1 --lengths 8192 --windows 128 512 --arms "$arm" \
    --kernels triton > /dev/null 2>&1 &
done
workers=$(python -c "import xdist" 2>/dev/null && echo "-n 8 -p no:benchmark")
step 160 python -m pytest tests/patch/kernels/test_gpu.py -q -p no:cacheprovider -W default $workers
wait
step 85 python benchmarks/attention.py $shape --rounds 3 --lengths 8192 32768 131072 --windows 512 \
  --arms $arms --kernels triton flash --out "$out/attention.json"
step 60 python benchmarks/attention.py $shape --rounds 3 --lengths 2048 8192 --windows 128 512 \
  --arms swa sa sa-bucket moba routed+tiles --kernels triton flash --out "$out/short.json"
# The paper's own comparison: d=1024 in 16 heads, w=256, FlexAttention full against sa.
step 50 python benchmarks/attention.py --device cuda --dtype bfloat16 --heads 16 --kv-heads 16 --head-dim 64 \
  --flex --lengths 2048 8192 32768 --windows 256 --arms sa sa-bucket --kernels triton flex --rounds 3 \
  --out "$out/paper.json"
packages=$(mktemp -d) && mkdir "$packages/sa_eval" && ln -s "$PWD"/eval/* "$PWD/configs" "$packages/sa_eval"
PYTHONPATH=$packages:$PYTHONPATH step 60 python -m sa_eval tune --device cuda --dtype bfloat16 --head-dim 128 --heads 32 \
  --kv-heads 8 --seconds 40 --out "$out/rules.json"
step 5 python benchmarks/gpu_report.py "$out/attention.json" "$out/short.json" "$out/paper.json"
# The shape of Qwen3-8B end to end, with random weights. Stopped early, it keeps the lengths that are finished.
PYTHONPATH=$packages:$PYTHONPATH step 125 timeout -s INT 120 python -m sa_eval speed \
  --shape configs/shapes/qwen3-8b.json --device cuda --dtype bfloat16 --lengths 32768,65536,131072 --window 512 \
  --modes swa,sa,sa-bucket,moba --kernel triton --new-tokens 0 --repeats 1 --out "$packages/qwen3-8b"
cp "$packages/qwen3-8b/speed.json" "$out/speed.json"
rm -f "$out/short.png"  # at most 8 files
exit $status
