"""TensorBoard as a sink."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from trainer.metrics import Row, Sink

FOLDER = "tensorboard"


class TensorBoard(Sink):
    """Event files in the folder tensorboard of the run directory, a scalar for every metric.

    When a run continues, TensorBoard is told to drop the steps after the checkpoint, as they are done again.

    Raises: ValueError: if the package tensorboard is not installed.
    """

    def __init__(self, *, run_dir: Path, settings: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("logging=tensorboard needs the package tensorboard: pip install tensorboard") from None
        self._open, self._folder = SummaryWriter, run_dir / FOLDER
        self._settings = settings
        self._writer: SummaryWriter | None = None

    @override
    def write(self, row: Row) -> None:
        step = int(row["step"])
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=step)
            table = "\n".join(f"    {key}: {value}" for key, value in self._settings.items())
            self._writer.add_text("configuration", table, step)
        for key, value in row.items():
            if key != "step" and value is not None:
                self._writer.add_scalar(key, value, step)

    @override
    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
