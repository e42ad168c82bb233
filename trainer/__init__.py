"""What a run needs beside model, data and optimizer.

parallel.py        strategies: device, precision, communication between ranks
ranks.py           which rank this process is, and agreeing with the others
heartbeat.py       ends a run that hangs, and names the rank; heartbeat_file.py shows others that it does not
schedule.py        learning-rate schedules
divergence.py      notices that a run diverges
run_directory.py   who may write a run directory, and its files
checkpoint.py      writes, verifies and reads checkpoints; manifest.py, tensor_files.py: their files
metrics.py         rows of metrics and metrics.jsonl; console.py, wandb.py, tensorboard.py: other sinks
plot.py            the picture of the loss curve
environment.py     device, precision, and what env.json records; allocator.py: settings of the C allocator
clock.py           the seconds spent in training steps
garbage.py         when Python collects garbage
profiling.py       a trace of ten steps, and the time that each of their phases takes

Classes that configs name by import path are exported here. Importing this package is cheap: it imports torch only
with the modules that use it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.parallel import DDP, FSDP2, Single
    from trainer.schedule import WSD, Constant, Cosine, Linear
    from trainer.tensorboard import TensorBoard
    from trainer.wandb import Wandb

__all__ = ["DDP", "FSDP2", "WSD", "Constant", "Cosine", "Linear", "Single", "TensorBoard", "Wandb"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("parallel", "schedule", "tensorboard", "wandb"):
            if hasattr(found := import_module(f"trainer.{module}"), name):
                return getattr(found, name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
