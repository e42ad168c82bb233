"""A page that shows runs while they go on: a figure of their losses and a table, which it asks for again and again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # plotly 6 has no types

from report.figures import PALETTE
from report.interactive import interactive
from report.numbers import NATS
from report.pages import TEMPLATES, palette_style, shown
from report.results import Axis, Figure, Series

Points = Sequence[Mapping[str, float]]  # of a curve: rows with "step", ALTERNATIVES and the loss
LOSSES = ("val/loss", "train/loss")
ALTERNATIVES = {"tokens": "tokens", "seconds": "seconds of training", "flops": "FLOPs"}  # what else the x axis may show


def live_page(title: str, data: Mapping[str, Any]) -> str:
    """The page, which needs no network but its own server. data: what it shows at first, as runs.json has it later."""
    return shown(
        "live.html.jinja",
        title=title,
        style=palette_style() + _read("page.css"),
        data={**data, "palette": PALETTE, "figures": [data["figure"]]},
        plotly=get_plotlyjs(),
        scripts=[_read("page.js"), _read("live.js")],
    )


def losses_figure(curves: Mapping[str, Mapping[str, Points]], places: Mapping[str, int]) -> dict[str, Any]:
    """The figure, as page.js draws it. curves: by run and loss. places: of the runs in the palette."""
    series, columns = [], []
    for name, by_loss in curves.items():
        for loss in LOSSES:
            if points := by_loss[loss]:
                x, y = [point["step"] for point in points], [point[loss] for point in points]
                series.append(Series(name, x, list(y), arm=name, dashed=loss != LOSSES[0]))
                columns.append({key: [point[key] for point in points] for key in ALTERNATIVES})
    alternatives = {label: [column[key] for column in columns] for key, label in ALTERNATIVES.items()}
    figure = Figure("losses", "", "lines", Axis("optimizer steps"), Axis(f"loss ({NATS})"), series, alternatives)
    return interactive(figure, places)


def _read(name: str) -> str:
    return (Path(TEMPLATES) / name).read_text("utf-8")
