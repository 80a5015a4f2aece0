#!/usr/bin/env bash
# The patcher's tests on the newest torch and transformers, as an install without constraints.txt takes them.
#   scripts/test_newest.sh [venv folder]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-newest}
python3 -m venv "$venv"
"$venv/bin/pip" install -q --upgrade torch transformers pytest hypothesis scipy
"$venv/bin/pip" list 2>/dev/null | grep -E '^(torch|transformers) '
PYTHONPATH=. "$venv/bin/python" -m pytest tests/patch/*.py tests/patch/variants tests/patch/kernels \
  tests/patch/integration/test_{model,architectures,refusals,one_answer,batches,caches,generation,shapes,execution,compiled,traced}.py \
  -p no:cacheprovider --ignore tests/patch/variants/test_declared.py \
  -W ignore::FutureWarning "${@:2}"  # past_key_values, which older versions know only by that name
