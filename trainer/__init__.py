"""What a run needs besides model, data and optimizer: schedule, strategy, run directory, checkpoints, metrics.

Plug-ins that configs name by import path are exported here.
"""

from trainer.metrics import Wandb
from trainer.parallel import DDP, FSDP2, Single
from trainer.schedule import WSD, Constant, Cosine, Linear

__all__ = ["DDP", "FSDP2", "WSD", "Constant", "Cosine", "Linear", "Single", "Wandb"]
