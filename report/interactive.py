"""A figure drawn for the page, by plotly."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from report.figures import (
    FEW,
    MARKERS,
    arrow,
    categories_of,
    complete,
    is_grouped,
    is_labelled,
    limits_of,
    places_of,
    reach,
)
from report.numbers import digits
from report.results import Figure, Series


def interactive(figure: Figure, places: Mapping[str, int]) -> dict[str, Any]:
    """The figure as JSON for page.js: plotly's traces and layout, and every trace's x for every label of the x axis.

    A trace's meta.slot is its colour's place in PALETTE: page.js colours it, as the theme has it. Texts are escaped,
    for plotly reads them as HTML.
    """
    traces: list[dict[str, Any]] = []
    choices: dict[str, list[Any]] = {label: [] for label in (figure.x.label, *figure.alternatives)}
    listed: set[tuple[str | None, str]] = set()
    for number, (series, slot) in enumerate(zip(figure.series, places_of(figure, places), strict=True)):
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
        if limits := limits_of(figure, series):
            traces.append(_limit_trace(series, slot, limits))
            for label, xs in columns.items():
                choices[label].append([xs[i] for i, _, _ in limits])
    return {
        "name": figure.name,
        "kind": figure.kind,
        "data": traces,
        "layout": _layout(figure),
        "x": [{"label": label, "values": values} for label, values in choices.items()],
    }


def _trace(figure: Figure, series: Series, slot: int, first: bool) -> dict[str, Any]:
    between = series.low is not None and series.high is not None
    shown = "%{yaxis.title.text}: %{y:.5~g}" + (" [%{customdata[0]:.5~g}, %{customdata[1]:.5~g}]" if between else "")
    are_small = max((abs(x) for x in series.x if not isinstance(x, str)), default=0.0) < 1  # as learning rates are
    x = "%{x}" if categories_of(figure) is not None else "%{x:.4~g}" if are_small else "%{x:.5~s}"
    trace: dict[str, Any] = {
        "type": "bar" if figure.kind == "bars" else "scatter",
        "name": html.escape(series.name),
        "y": series.y,
        "meta": {"slot": slot, "arm": series.arm, "part": "bars" if figure.kind == "bars" else "line"},
        "legendgroup": series.arm or series.name,
        "showlegend": first and not is_labelled(figure),
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{xaxis.title.text}}: {x}<br>{shown}<extra></extra>",
    }
    if between:
        trace["customdata"] = list(zip(series.low or [], series.high or [], strict=True))
    if series.labels is not None:
        trace["text"] = list(map(html.escape, series.labels))
        trace["hovertemplate"] = f"%{{text}}<br>{trace['hovertemplate']}"
    if figure.kind != "bars":
        dots = figure.kind == "points" or len(series.x) <= FEW
        trace["mode"] = {"points": "markers", "lines": "lines+markers" if dots else "lines"}[figure.kind]
        symbol = MARKERS[slot % len(MARKERS)][0] + ("-open" if series.hollow else "")
        trace["marker"] = {"symbol": symbol, "size": 9 if figure.kind == "points" else 6}
        if series.hollow:
            trace["marker"]["line"] = {"width": 2}
        trace["line"] = {"width": 2, "dash": "dash" if series.dashed else "solid"}
        trace["connectgaps"] = False
    if between and figure.kind != "lines":
        below, above = reach(series)
        trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.3}
    return trace


def _limit_trace(series: Series, slot: int, limits: Sequence[tuple[int, float, bool]]) -> dict[str, Any]:
    """Arrows from the bounds towards where the numbers lie."""
    lengths = [arrow(bound) for _, bound, _ in limits]
    signs = [1 if is_above else -1 for _, _, is_above in limits]
    told = [
        (f"{html.escape(series.labels[i])}<br>" if series.labels else "")
        + f"{'>' if is_above else '<'} {digits(bound)}"
        for i, bound, is_above in limits
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(series.name),
        "y": [bound + sign * length for (_, bound, _), sign, length in zip(limits, signs, lengths, strict=True)],
        "marker": {"symbol": "arrow", "size": 12, "angle": [0 if sign > 0 else 180 for sign in signs]},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [0.0 if sign > 0 else length for sign, length in zip(signs, lengths, strict=True)],
            "arrayminus": [length if sign > 0 else 0.0 for sign, length in zip(signs, lengths, strict=True)],
            "thickness": 2,
            "width": 0,
        },
        "customdata": told,
        "hovertemplate": "<b>%{fullData.name}</b><br>%{customdata}, outside what was run<extra></extra>",
        "showlegend": False,
        "legendgroup": series.arm or series.name,
        "meta": {"slot": slot, "arm": series.arm, "part": "limit"},
    }


def _band(figure: Figure, series: Series, slot: int) -> dict[str, Any] | None:
    """The interval around a line: one closed shape, in the line's legend group."""
    if figure.kind != "lines" or series.low is None or series.high is None:
        return None
    kept = complete(series)
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
    kept = complete(series)
    return [xs[i] for i in kept] + [xs[i] for i in reversed(kept)]


def _layout(figure: Figure) -> dict[str, Any]:
    categories = categories_of(figure)
    x: dict[str, Any] = {"title": {"text": html.escape(figure.x.label)}, "type": "log" if figure.x.log else "linear"}
    if categories is not None:
        x |= {"type": "category", "categoryorder": "array", "categoryarray": [html.escape(each) for each in categories]}
    y: dict[str, Any] = {"title": {"text": html.escape(figure.y.label)}, "type": "log" if figure.y.log else "linear"}
    layout: dict[str, Any] = {"xaxis": x, "yaxis": y, "barmode": "group" if is_grouped(figure) else "overlay"}
    if figure.hline is not None:
        layout["shapes"] = [_hline(figure, figure.hline)]
    return layout


def _hline(figure: Figure, level: float) -> dict[str, Any]:
    """A level to compare with. Its words stand inside the picture: above a low line, below a high one."""
    values = [each for series in figure.series for each in (*series.y, *(series.low or []), *(series.high or []))]
    known = [each for each in values if each is not None] or [level]
    is_low = level < (min(known) + max(known)) / 2
    place = {"textposition": "start", "yanchor": "bottom"} if is_low else {"textposition": "end", "yanchor": "top"}
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": level,
        "y1": level,
        "line": {"width": 1.2, "dash": "dash"},
        "label": {"text": html.escape(figure.hline_label), **place},
    }
