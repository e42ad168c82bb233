#!/usr/bin/env bash
# Everything that needs a CUDA device: its tests, then the benchmarks. Figures go to the folder $1 (default: benchmarks).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks}
mkdir -p "$out"
python scripts/doctor.py
python -m pytest -m gpu
python scripts/bench.py train --model gpt2_small gpt2_medium --batch 12 --compile --json "$out/train.json"
