"""A figure drawn twice: for the page (plotly), and for paper (PNG and PDF).

A colour and a marker belong to an arm, the same in every figure of a report.
"""

import html
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from report.results import Axis, Figure, Series

# For white and for dark pages, same order. Every colour has contrast 3 or more with its page, and every two remain
# apart (CIE Lab distance 18 or more) for people without red, green or blue cones.
PALETTE = {
    "light": ("#1a3fb8", "#c98400", "#00936a", "#a078c0", "#8f3414", "#5b86ff", "#4d3a44"),
    "dark": ("#4a78ff", "#e6b93c", "#3cdb8f", "#b97fd0", "#dd7645", "#b9c8fd", "#8d8484"),
}
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("x", "X"), ("triangle-down", "v"))
KINDS = ("lines", "bars", "points")
FEW = 12  # lines of so few points show them
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


class FigureError(ValueError):
    """A figure that cannot be drawn; one clear line."""


def slots(arms: Sequence[str]) -> dict[str, int]:
    """The place of each arm in the palette."""
    return {arm: place for place, arm in enumerate(arms)}


def check(figure: Figure) -> None:
    """Raises: FigureError: if its name is no file name, its kind unknown, or its lists differ in length."""
    where = f"figure {figure.name!r}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", figure.name):
        raise FigureError(f"{where} names its files: use letters, digits, '.', '_' and '-'")
    if figure.kind not in KINDS:
        raise FigureError(f"{where} has kind {figure.kind!r}, expected one of {', '.join(KINDS)}")
    for each in figure.series:
        for values in (each.y, each.low, each.high):
            if values is not None and len(values) != len(each.x):
                raise FigureError(f"{where}, series {each.name!r}: {len(each.x)} x but {len(values)} y, low or high")
    for label, columns in figure.alternatives.items():
        if [len(column) for column in columns] != [len(each.x) for each in figure.series]:
            raise FigureError(f"{where}: x axis {label!r} needs one value per point of every series")


def interactive(figure: Figure, places: Mapping[str, int]) -> dict[str, Any]:
    """The figure as JSON for page.js: plotly's traces and layout, and every trace's x for every label of the x axis.

    A trace's meta.slot is its colour's place in PALETTE: page.js colours it, as the theme has it. Texts are escaped,
    for plotly reads them as HTML.
    """
    traces: list[dict[str, Any]] = []
    choices: dict[str, list[Any]] = {label: [] for label in (figure.x.label, *figure.alternatives)}
    listed: set[tuple[str | None, str]] = set()
    for number, (series, slot) in enumerate(zip(figure.series, _places(figure, places), strict=True)):
        own = [html.escape(x) if isinstance(x, str) else x for x in series.x]
        columns = {figure.x.label: own} | {key: xs[number] for key, xs in figure.alternatives.items()}
        if band := _band(figure, series, slot):
            traces.append(band)
            for label, xs in columns.items():
                choices[label].append(_around(xs, series))
        traces.append(_trace(figure, series, slot, first=(series.arm, series.name) not in listed))
        listed.add((series.arm, series.name))
        for label, xs in columns.items():
            choices[label].append(xs)
    return {
        "name": figure.name,
        "kind": figure.kind,
        "data": traces,
        "layout": _layout(figure),
        "x": [{"label": label, "values": values} for label, values in choices.items()],
    }


def draw(figure: Figure, places: Mapping[str, int], folder: Path) -> list[Path]:
    """Writes <name>.png and <name>.pdf, of a column's width, the same bytes for the same figure; their paths."""
    with mpl.rc_context(PAPER):
        sheet = Sheet(figsize=(3.5, 2.6), layout="constrained")
        FigureCanvasAgg(sheet)
        axes = sheet.add_subplot()
        handles = _draw_series(axes, figure, _places(figure, places))
        for side, axis in (("x", figure.x), ("y", figure.y)):
            _finish_axis(axes, side, axis, categories=side == "x" and _categories(figure) is not None)
        if figure.hline is not None:
            handles[_plain(figure.hline_label)] = axes.axhline(figure.hline, color="0.45", lw=0.8, ls=(0, (4, 3)))
        handles.pop("", None)
        if _is_labelled(figure):
            handles = {name: handle for name, handle in handles.items() if name == _plain(figure.hline_label)}
        if len(handles) > 1 or figure.hline_label:
            sheet.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=_columns(list(handles)))
        paths = [folder / f"{figure.name}.png", folder / f"{figure.name}.pdf"]
        sheet.savefig(paths[0], dpi=220, metadata={"Software": None})
        sheet.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def compact(value: float) -> str:
    """A number as a tick has it, with the prefixes of SI: 0.5, 5000, 20k, 1.5M, 3G, 2e+20."""
    if not 1e4 <= abs(value) < 1e18:
        return f"{value:.4g}"
    power = int(math.log10(abs(value)) + 1e-9) // 3
    return f"{value / 1000**power:.4g}{' kMGTP'[power]}"


def _places(figure: Figure, places: Mapping[str, int]) -> list[int]:
    """Every series' place: its arm's, or a free one where it has none."""
    known = dict(places)
    taken = {known[each.arm] for each in figure.series if each.arm in known}
    free = (place for place in itertools.count() if place not in taken)
    found = []
    for each in figure.series:
        key = each.arm if each.arm is not None else f"series {each.name}"
        if key not in known:
            known[key] = next(free)
        found.append(known[key])
    return found


def _trace(figure: Figure, series: Series, slot: int, first: bool) -> dict[str, Any]:
    between = series.low is not None and series.high is not None
    shown = "%{yaxis.title.text}: %{y:.5~g}" + (" [%{customdata[0]:.5~g}, %{customdata[1]:.5~g}]" if between else "")
    are_small = max((abs(x) for x in series.x if not isinstance(x, str)), default=0.0) < 1  # as learning rates are
    x = "%{x}" if _categories(figure) is not None else "%{x:.4~g}" if are_small else "%{x:.5~s}"
    trace: dict[str, Any] = {
        "type": "bar" if figure.kind == "bars" else "scatter",
        "name": html.escape(series.name),
        "y": series.y,
        "meta": {"slot": slot, "arm": series.arm, "part": "bars" if figure.kind == "bars" else "line"},
        "legendgroup": series.arm or series.name,
        "showlegend": first and not _is_labelled(figure),
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{xaxis.title.text}}: {x}<br>{shown}<extra></extra>",
    }
    if between:
        trace["customdata"] = list(zip(series.low or [], series.high or [], strict=True))
    if figure.kind != "bars":
        dots = figure.kind == "points" or len(series.x) <= FEW
        trace["mode"] = {"points": "markers", "lines": "lines+markers" if dots else "lines"}[figure.kind]
        trace["marker"] = {"symbol": MARKERS[slot % len(MARKERS)][0], "size": 8 if figure.kind == "points" else 6}
        trace["line"] = {"width": 2, "dash": "dash" if series.dashed else "solid"}
        trace["connectgaps"] = False
    if between and figure.kind != "lines":
        below, above = _reach(series)
        trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.3}
    return trace


def _band(figure: Figure, series: Series, slot: int) -> dict[str, Any] | None:
    """The interval around a line: one closed shape, in the line's legend group."""
    if figure.kind != "lines" or series.low is None or series.high is None:
        return None
    kept = _complete(series)
    return {
        "type": "scatter",
        "mode": "lines",
        "y": [series.high[i] for i in kept] + [series.low[i] for i in reversed(kept)],
        "fill": "toself",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": series.arm or series.name,
        "meta": {"slot": slot, "arm": series.arm, "part": "band"},
    }


def _around(xs: Sequence[Any], series: Series) -> list[Any]:
    kept = _complete(series)
    return [xs[i] for i in kept] + [xs[i] for i in reversed(kept)]


def _complete(series: Series) -> list[int]:
    """Where the series has an interval."""
    pairs = zip(series.low or [], series.high or [], strict=True)
    return [i for i, pair in enumerate(pairs) if None not in pair]


def _reach(series: Series) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above their points; 0 where there is none."""
    bounds = zip(series.y, series.low or [], series.high or [], strict=True)
    reach = [
        (0.0, 0.0) if y is None or low is None or high is None else (max(y - low, 0.0), max(high - y, 0.0))
        for y, low, high in bounds
    ]
    return [below for below, _ in reach], [above for _, above in reach]


def _layout(figure: Figure) -> dict[str, Any]:
    categories = _categories(figure)
    x: dict[str, Any] = {"title": {"text": html.escape(figure.x.label)}, "type": "log" if figure.x.log else "linear"}
    if categories is not None:
        x |= {"type": "category", "categoryorder": "array", "categoryarray": [html.escape(each) for each in categories]}
    y = {"title": {"text": html.escape(figure.y.label)}, "type": "log" if figure.y.log else "linear"}
    layout: dict[str, Any] = {"xaxis": x, "yaxis": y, "barmode": "group" if _grouped(figure) else "overlay"}
    if figure.hline is not None:
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": figure.hline, "y1": figure.hline}
        label = {"text": html.escape(figure.hline_label), "textposition": "start", "yanchor": "bottom"}
        layout["shapes"] = [{**line, "line": {"width": 1.2, "dash": "dash"}, "label": label}]
    return layout


def _categories(figure: Figure) -> list[str] | None:
    """The x axis' words in the order they appear, or None if it has numbers."""
    words = [x for each in figure.series for x in each.x if isinstance(x, str)]
    return list(dict.fromkeys(words)) if words else None


def _grouped(figure: Figure) -> bool:
    """Whether bars of several series share an x, and so stand side by side."""
    counts = [x for each in figure.series for x in dict.fromkeys(map(str, each.x))]
    return len(counts) != len(set(counts))


def _is_labelled(figure: Figure) -> bool:
    """Whether the x axis says already what a legend would."""
    return figure.kind == "bars" and all(set(each.x) == {each.name} for each in figure.series)


def _draw_series(axes: Axes, figure: Figure, places: Sequence[int]) -> dict[str, Any]:
    """Draws; what the legend shows, by text."""
    handles: dict[str, Any] = {}
    categories = _categories(figure)
    for number, (series, slot) in enumerate(zip(figure.series, places, strict=True)):
        xs: list[float] = [categories.index(str(x)) if categories is not None else float(x) for x in series.x]
        style: dict[str, Any] = {"color": PALETTE["light"][slot % len(PALETTE["light"])]}
        if figure.kind == "bars":
            handle: Any = _draw_bars(axes, figure, series, xs, number, style)
        elif figure.kind == "points":
            marker = MARKERS[slot % len(MARKERS)][1]
            handle = axes.errorbar(
                xs, _numbers(series.y), yerr=_errors(series), fmt=marker, capsize=2, elinewidth=0.8, **style
            )
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


def _draw_bars(axes: Axes, figure: Figure, series: Series, xs: list[float], number: int, style: dict[str, Any]) -> Any:
    share = len(figure.series) if _grouped(figure) else 1
    width = 0.6 if share == 1 else 0.8 / share
    shift = width * (number - (share - 1) / 2) if share > 1 else 0.0
    errors: dict[str, Any] = {"yerr": _errors(series), "error_kw": {"lw": 0.8, "capsize": 2}}
    return axes.bar([x + shift for x in xs], _numbers(series.y), width, **errors, **style)


def _errors(series: Series) -> tuple[list[float], list[float]] | None:
    return None if series.low is None or series.high is None else _reach(series)


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
