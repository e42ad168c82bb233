"""train.py whose rank 1 is killed at step 8 of the launcher's first attempt; for torchrun --max-restarts."""

import os
import sys

import faults

from configs import compose
from train import run_and_exit

if __name__ == "__main__":
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if is_first and os.environ["RANK"] == "1":
        faults.from_step(8, faults.die)
    run_and_exit(compose(sys.argv[1:]))
