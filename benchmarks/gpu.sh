#!/usr/bin/env bash
# Everything that waits for a GPU, in under nine minutes: the gpu tests, the ops, a first collection, training. From the
# root of a checkout, with torch and triton alone; what it finds goes to $OUT (default: gpu-results), a table comes last.
# Training reads token shards, made beforehand where source can be parsed:
#     costmodel train --data datasets/cpu-cpp --write-shards runs/shards
set -u
OUT=${OUT:-gpu-results}
SHARDS=${SHARDS:-runs/shards}
mkdir -p "$OUT"
export PYTHONPATH=${PYTHONPATH:-.}
costmodel() { python -c 'from costmodel.cli import main; main()' "$@"; }

stage() { # name, seconds, command...: its output goes to a file, and a failure does not stop the rest
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  printf '%-12s exit %-3s %4d s   %s\n' "$name" "$code" $((SECONDS - began)) "$(tail -n 1 "$OUT/$name.log" | cut -c1-90)" |
    tee -a "$OUT/stages.txt"
}

: >"$OUT/stages.txt"
nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1
export -f costmodel
stage tests 150 python -m pytest -q -m gpu tests
stage ops 150 python benchmarks/ops.py --quick --out "$OUT/ops.csv"  # the whole grid compiles for longer
stage collect 110 bash -c 'costmodel collect triton --budget 90s --passes 1 --store "$0/triton.sqlite"' "$OUT"
stage cuda 50 bash -c 'costmodel collect cuda --budget 30s --passes 1 --store "$0/cuda.sqlite"' "$OUT"
stage train 70 bash -c 'costmodel train --shards "$0" --steps 200 --out "$1/model" --json' "$SHARDS" "$OUT"
echo
cat "$OUT/stages.txt"
