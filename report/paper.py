"""A figure drawn for paper: PNG and PDF."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from report.figures import (
    FEW,
    MARKERS,
    PALETTE,
    arrow,
    categories_of,
    is_grouped,
    is_labelled,
    limits_of,
    places_of,
    reach,
)
from report.numbers import compact
from report.results import Axis, Figure, Series

PAPER: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 7.0,
    "pdf.fonttype": 42,  # text that stays text
}


def draw(figure: Figure, places: Mapping[str, int], folder: Path) -> list[Path]:
    """Writes <name>.png and <name>.pdf, of a column's width, the same bytes for the same figure; their paths."""
    with mpl.rc_context(PAPER):
        sheet = Sheet(figsize=(3.5, 2.6), layout="constrained")
        FigureCanvasAgg(sheet)
        axes = sheet.add_subplot()
        handles = _draw_series(axes, figure, places_of(figure, places))
        for side, axis in (("x", figure.x), ("y", figure.y)):
            _finish_axis(axes, side, axis, categories=side == "x" and categories_of(figure) is not None)
        if figure.hline is not None:
            handles[_plain(figure.hline_label)] = axes.axhline(figure.hline, color="0.45", lw=0.8, ls=(0, (4, 3)))
        handles.pop("", None)
        if is_labelled(figure):
            handles = {name: handle for name, handle in handles.items() if name == _plain(figure.hline_label)}
        if len(handles) > 1 or figure.hline_label:
            sheet.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=_columns(list(handles)))
        paths = [folder / f"{figure.name}.png", folder / f"{figure.name}.pdf"]
        sheet.savefig(paths[0], dpi=220, metadata={"Software": None})
        sheet.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def _draw_series(axes: Axes, figure: Figure, places: Sequence[int]) -> dict[str, Any]:
    """Draws; what the legend shows, by text."""
    handles: dict[str, Any] = {}
    categories = categories_of(figure)
    for number, (series, slot) in enumerate(zip(figure.series, places, strict=True)):
        xs: list[float] = [categories.index(str(x)) if categories is not None else float(x) for x in series.x]
        style: dict[str, Any] = {"color": PALETTE["light"][slot % len(PALETTE["light"])]}
        if figure.kind == "bars":
            handle: Any = _draw_bars(axes, figure, series, xs, number, style)
        elif figure.kind == "points":
            handle = _draw_points(axes, figure, series, xs, slot, style)
        else:
            marker = MARKERS[slot % len(MARKERS)][1] if len(xs) <= FEW else ""
            (handle,) = axes.plot(xs, _numbers(series.y), marker=marker, ls="--" if series.dashed else "-", **style)
            if series.low is not None and series.high is not None:
                axes.fill_between(xs, _numbers(series.low), _numbers(series.high), alpha=0.18, lw=0, **style)
        handles.setdefault(_plain(series.name), handle)
    if categories is not None:
        axes.set_xticks(range(len(categories)), [_plain(each) for each in categories])
        if sum(map(len, categories)) > 40:
            axes.tick_params("x", rotation=30)
    return handles


def _draw_points(axes: Axes, figure: Figure, series: Series, xs: list[float], slot: int, style: dict[str, Any]) -> Any:
    for i, bound, is_above in limits_of(figure, series):
        axes.errorbar([xs[i]], [bound], yerr=arrow(bound), uplims=not is_above, lolims=is_above, fmt="_", **style)
    fill = {"mfc": "none"} if series.hollow else {}
    marker: dict[str, Any] = {"fmt": MARKERS[slot % len(MARKERS)][1], "capsize": 2, "elinewidth": 0.8, **fill}
    return axes.errorbar(xs, _numbers(series.y), yerr=_errors(series), **marker, **style)


def _draw_bars(axes: Axes, figure: Figure, series: Series, xs: list[float], number: int, style: dict[str, Any]) -> Any:
    share = len(figure.series) if is_grouped(figure) else 1
    width = 0.6 if share == 1 else 0.8 / share
    shift = width * (number - (share - 1) / 2) if share > 1 else 0.0
    errors: dict[str, Any] = {"yerr": _errors(series), "error_kw": {"lw": 0.8, "capsize": 2}}
    return axes.bar([x + shift for x in xs], _numbers(series.y), width, **errors, **style)


def _errors(series: Series) -> tuple[list[float], list[float]] | None:
    return None if series.low is None or series.high is None else reach(series)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _finish_axis(axes: Axes, side: str, axis: Axis, categories: bool) -> None:
    """Label, scale and ticks. A log axis that spans little has plain numbers, as a loss needs."""
    axes.set(**{f"{side}label": _plain(axis.label)})
    if categories:
        axes.grid(False, axis="x")
        return
    limits, own = (axes.get_xlim, axes.xaxis) if side == "x" else (axes.get_ylim, axes.yaxis)
    if axis.log:
        axes.set(**{f"{side}scale": "log"})
        low, high = limits()
        if high / low > 1000:
            return
        own.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 6 else MaxNLocator(5, steps=[1, 2, 5, 10]))
        own.set_minor_locator(NullLocator())
    own.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def _columns(names: list[str]) -> int:
    """How many of the legend's entries fit beside each other in a column's width."""
    longest = max(map(len, names))
    return max(1, min(len(names), 58 // (longest + 7)))


def _plain(text: str) -> str:
    r"""Text that matplotlib shows as it is: no formulas between dollar signs, no names it leaves out of a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
