"""The losses of a run over its steps, read as the run goes on, thinned to what a screen can show."""

from pathlib import Path
from typing import Any

from files.reading import number
from launch.new_rows import NewRows

LOSSES = ("val/loss", "train/loss")
COLUMNS = ("step", "tokens", "seconds", "flops")
MOST_POINTS = 400  # of a curve


class LossCurves:
    """The curves of a run. points: by loss, rows with COLUMNS and that loss, by rising step."""

    def __init__(self, run_dir: Path) -> None:
        self._rows = NewRows(run_dir, only_last=False)
        self._seen = dict.fromkeys(LOSSES, 0)
        self._stride = dict.fromkeys(LOSSES, 1)  # of so many rows one is kept, and the newest
        self.points: dict[str, list[dict[str, float]]] = {loss: [] for loss in LOSSES}

    def update(self) -> None:
        """Reads all that the run has added."""
        while rows := self._rows.read():
            for row in rows:
                for loss in LOSSES:
                    self._take(row, loss)

    def _take(self, row: dict[str, Any], loss: str) -> None:
        """Adds a point if the row has one; a step that comes again (the run was killed) replaces what followed it."""
        values = {key: number(row.get(key)) for key in (*COLUMNS, loss)}
        known = {key: value for key, value in values.items() if value is not None}
        points = self.points[loss]
        while points and "step" in known and known["step"] <= points[-1]["step"] and loss in row:
            points.pop()
        if len(known) < len(values):
            return
        if (self._seen[loss] - 1) % self._stride[loss]:
            points[-1:] = []  # the newest until now
        points.append(known)
        self._seen[loss] += 1
        if len(points) > MOST_POINTS:
            del points[1::2]
            self._stride[loss] *= 2
