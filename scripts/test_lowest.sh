#!/usr/bin/env bash
# The patcher's tests on the lowest torch and transformers that pyproject.toml admits.
#   scripts/test_lowest.sh [venv folder]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-lowest}
python3 -m venv "$venv"
mapfile -t lowest < <(sed -n 's/^dependencies = \[\(.*\)\]$/\1/p' pyproject.toml | grep -o '[a-z]*>=[0-9.]*' | sed 's/>=/==/')
# The interpreter of Triton 3.6, which torch 2.11 brings, needs numpy before 2.4, and is warned by 2.3.
"$venv/bin/pip" install -q "${lowest[@]}" pytest hypothesis scipy "numpy<2.4"
echo "${lowest[@]}"
# Only what needs no extra package: the ecosystem's own pins may not admit versions this low.
PYTHONPATH=. "$venv/bin/python" -m pytest tests/patch/*.py tests/patch/variants tests/patch/kernels \
  tests/patch/integration/test_{model,architectures,refusals,one_answer,batches,caches,generation,shapes,execution,compiled,traced}.py \
  -p no:cacheprovider -W "ignore:Conversion of an array with ndim:DeprecationWarning" --ignore tests/patch/variants/test_declared.py "${@:2}"
