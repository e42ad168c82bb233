import gc
import os

# Workers of pytest-xdist share the cores: with a thread each, neither they nor what they start slow each other tenfold.
# Before NumPy is imported, by torch too: its BLAS reads the number once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import signal
from pathlib import Path

import pytest
import torch

# Under nohup a hang-up is ignored, by what is tested too, which would keep tests from sending one.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Every run collects garbage before it begins, and in the process of all tests goes through the million objects that
# torch.compile has made: 0.7 s. Frozen, they are gone through once.
gc.freeze()

# A GPT and a data set small enough to train in a fraction of a second.
TINY = [
    "data=synthetic",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "model.dropout=0.1",
    "max_steps=12",
    "global_batch=8",
    "micro_batch=4",
    "eval_sequences=6",
    "eval_every=5",
    "save_every=3",
    "log_every=2",
    "sample_tokens=8",
    "schedule.warmup_steps=2",
    "precision=fp32",
    "device=cpu",
]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's data sets are prepared, each once."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def tiny(data_root: Path) -> list[str]:
    """The overrides of a tiny run."""
    return [*TINY, f"data.root={data_root}"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process leave no picture of their loss, which takes a fifth of the time of a tiny one."""
    monkeypatch.setattr("assembly.ending.draw", lambda run: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests marked gpu to machines that have one."""
    if not torch.cuda.is_available():
        away = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in away]
