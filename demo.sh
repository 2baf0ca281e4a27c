#!/usr/bin/env bash
# From a fresh clone to a tuned kernel: installs into .venv (or $VENV), then tunes a matrix product on this CPU.
set -euo pipefail
cd "$(dirname "$0")"
venv="${VENV:-.venv}"
[ -d "$venv" ] || python3 -m venv "$venv"
# torch first and exactly: an open range fetches gigabytes of CUDA libraries where there is no GPU
"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt torch
"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
store="$(mktemp -d)/store.sqlite"
"$venv/bin/costmodel" rank matmul --problem odd --top 3
"$venv/bin/costmodel" tune matmul --problem odd --budget 32 --store "$store"
