"""Draws the loss curve of a run."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from files.writing import write_bytes
from trainer.metrics import Row


def plot_loss(rows: Sequence[Row], path: Path, title: str) -> None:
    """Writes a PNG of train/loss and val/loss (nats per token) over tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unit, scale = _unit(max((row["tokens"] for row in rows), default=0))
    styles: dict[str, dict[str, Any]] = {
        "train/loss": {"linewidth": 1.0, "alpha": 0.7},
        "val/loss": {"marker": "o", "markersize": 4},
    }
    for key, style in styles.items():
        points = [(row["tokens"] / scale, row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{key} ({points[-1][1]:.3f})", **style)
    axes.set(xlabel=f"tokens{unit}", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    picture = BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_bytes(path, picture.getvalue())


def _unit(tokens: float) -> tuple[str, float]:
    for unit, scale in ((" (billions)", 1e9), (" (millions)", 1e6), (" (thousands)", 1e3)):
        if tokens >= scale:
            return unit, scale
    return "", 1.0
