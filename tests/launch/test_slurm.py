"""launch/slurm.sbatch with stand-ins for SLURM's commands."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
VARIABLES = {
    "SLURM_JOB_NAME": "a-run",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "64",
}


def test_srun_gets_the_cpus_that_the_job_has(tmp_path: Path) -> None:
    for name, text in (
        ("scontrol", "echo n1"),
        ("srun", 'printf "%s\\n" "$@" > srun.arguments; echo $OMP_NUM_THREADS'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        **VARIABLES,
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", SCRIPT, "data.prompt=a b"], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    assert "--cpus-per-task=64" in arguments[: arguments.index("torchrun")]
    assert arguments[-1] == "data.prompt=a b"
    assert done.stdout.splitlines()[0] == "16"  # threads of a rank
