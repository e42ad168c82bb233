"""What a run needs besides model, data and optimizer: schedule, strategy, run directory, checkpoints, metrics.

Plug-ins that configs name by import path are exported here.
"""

from trainer.metrics import Wandb
from trainer.parallel import Single
from trainer.schedule import WSD, Constant, Cosine, Linear

__all__ = ["WSD", "Constant", "Cosine", "Linear", "Single", "Wandb"]
