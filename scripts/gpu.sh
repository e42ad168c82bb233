#!/usr/bin/env bash
# What only a CUDA device can show, in three parts of at most ten minutes: bash scripts/gpu.sh [1|2|3|all] [FOLDER]
#   1  its tests; tokens/s, MFU and memory of training steps, beside nanoGPT's model if PEER=<nanoGPT checkout>
#   2  steps of optimizers
#   3  profiles of runs, checkpoints; with several devices also ranks
# Processes start and torch compiles for most of that time; a second call finds what was compiled.
# Figures go to FOLDER (benchmarks); python scripts/bench.py page FOLDER then writes docs/benchmarks.md.
# DRY=1 prints the commands alone, each after the seconds that it may take. One that fails or takes longer does not stop
# the others; the status says so.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:-all} out=${2:-benchmarks} status=0
if [[ ! $part =~ ^(1|2|3|all)$ ]]; then
    echo "error: the part is 1, 2, 3 or all, not $part" >&2
    exit 2
fi

run() { # seconds at most, command
    if [[ -n ${DRY:-} ]]; then
        printf '%q ' "$@"
        echo
        return
    fi
    echo "== ${*:2}"
    timeout "$@" || {
        echo "failed with status $?: ${*:2}" >&2
        status=1
    }
}

train() { # seconds at most, model, sequences of 1,024 tokens
    run "$1" python scripts/bench.py train --model "$2" --batch "$3" --compile --steps 5 --rounds 12 --warmup 1 \
        ${PEER:+--peer "$PEER"} --json "$out/train-$2-$3.json"
}

optim() { # seconds at most, optimizers, each beside torch's AdamW; apart, as compiling one can take a minute
    run "$1" python scripts/bench.py optim --steps 10 --rounds 7 --optim "${@:2}" --json "$out/optim-$2.json"
}

profile() { # optimizer
    run 120 python train.py model=gpt2_small model.vocab_size=50257 data=synthetic data.root="$out/data" \
        micro_batch=12 global_batch=12 max_steps=16 eval_every=16 eval_sequences=12 save_every=1000 sample_tokens=0 \
        schedule.warmup_steps=0 profile=true run_dir="$out/profile-$1" optim="$1"
}

if [[ -z ${DRY:-} ]]; then
    if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "error: torch finds no CUDA device here, so there is nothing to measure: see scripts/doctor.py" >&2
        exit 2
    fi
    mkdir -p "$out"
fi
if [[ $part =~ ^(1|all)$ ]]; then
    run 40 python scripts/doctor.py
    run 110 python -m pytest -q -m gpu -n 6 -p no:cacheprovider
    train 100 gpt2_small 12
    train 100 gpt2_small 64
    train 110 gpt2_medium 16
    train 140 gpt2_large 8
fi
if [[ $part =~ ^(2|all)$ ]]; then
    optim 90 adamw_ours lion sophiag
    optim 90 muon
    optim 80 soap
    optim 120 shampoo shampoo:roles.matrix.eigensolver=qr
    optim 70 galore
    optim 150 adafactor came
fi
if [[ $part =~ ^(3|all)$ ]]; then
    profile adamw
    profile soap
    run 120 python scripts/bench.py checkpoint --json "$out/checkpoint.json"
    devices=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
    if ((devices > 1)); then
        run 200 python scripts/bench.py optim --optim soap shampoo --parallel 1 "$devices" --json "$out/parallel.json"
    fi
fi
exit $status
