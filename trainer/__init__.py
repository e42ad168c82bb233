"""What a run needs besides model, data and optimizer: schedule, strategy, run directory, checkpoints, metrics.

Plug-ins that configs name by import path are exported here. Importing this package is cheap: torch comes with the
modules that use it.
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
