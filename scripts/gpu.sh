#!/usr/bin/env bash
# Everything that needs a CUDA device: its tests, then the benchmarks. Figures go to the folder $1 (default: benchmarks).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks}
mkdir -p "$out"
python scripts/doctor.py
python -m pytest -m gpu
python scripts/bench.py train --model gpt2_small gpt2_medium --batch 12 --compile --json "$out/train.json"
python scripts/bench.py optim --optim adamw_ours sophiag soap adafactor --json "$out/optim.json"
python scripts/bench.py checkpoint --json "$out/checkpoint.json"
devices=$(python -c 'import torch; print(torch.cuda.device_count())')
if ((devices > 1)); then
    python scripts/bench.py optim --optim soap shampoo --parallel 1 "$devices" --json "$out/parallel.json"
fi
