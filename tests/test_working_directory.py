"""Commands find the project beside themselves, wherever they are called and whatever lies there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # processes that import torch
ROOT = Path(__file__).parents[1]
NAMES = ("data", "model", "optim", "configs", "trainer", "files", "reproduce", "train", "scripts", "nanodescent")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder whose files have the names of our packages; whoever imports one ends."""
    folder = tmp_path / "x"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text("raise SystemExit(f'imported {__file__}')\n")
    return folder


def call(arguments: list[str], cwd: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["train.py"],
        [*TORCHRUN, "train.py", "parallel=ddp", "micro_batch=2"],
        ["train.py", "-m", "optim=adamw,lion"],  # which starts processes of its own
    ],
    ids=["alone", "torchrun", "sweep"],
)
def test_train_py_trains_in_a_folder_with_files_of_our_packages_names(
    elsewhere: Path, tiny: list[str], command: list[str]
) -> None:
    arguments = [str(ROOT / each) if each == "train.py" else each for each in command]
    run_dir = [] if "-m" in arguments[1:2] else ["run_dir=run"]
    call([*arguments, *tiny, "max_steps=3", *run_dir], elsewhere)
    assert len(list(elsewhere.glob("run*/**/result.json"))) == (1 if run_dir else 2)


SCRIPTS = {
    "bench.py": ["memory", "--model", "nano"],
    "compare.py": ["--help"],
    "doctor.py": ["--help"],
    "evaluate.py": ["--help"],
    "prepare_data.py": ["data=synthetic", "data.root=prepared"],
    "reproduce.py": ["claim=adafactor_memory", "scale=nano", "--dry-run"],
    "runs.py": ["prune=checkpoints", "."],
    "sample.py": ["--help"],
    "send_metrics.py": ["--help"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_work_in_a_folder_with_files_of_our_packages_names(elsewhere: Path, script: str) -> None:
    call([str(ROOT / "scripts" / script), *SCRIPTS[script]], elsewhere)
