"""All files of a report: page, Markdown, CSV and pictures."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from report.figures import FigureError, check, slots
from report.numbers import exact
from report.pages import as_html, as_markdown
from report.paper import draw
from report.results import Results


def write_report(results: Results, folder: Path) -> list[Path]:
    """Writes report.html, report.md, curves.csv, a CSV per table and every figure's PNG and PDF; their paths.

    Raises: FigureError: before anything is written, if a figure cannot be drawn, or key_figure names none.
    """
    for figure in results.figures:
        check(figure)
    if results.key_figure and results.key_figure not in (names := [figure.name for figure in results.figures]):
        raise FigureError(f"key_figure={results.key_figure!r} must be one of the figures: {', '.join(names) or 'none'}")
    folder.mkdir(parents=True, exist_ok=True)
    places = slots([arm.name for arm in results.arms])
    paths = [folder / "report.html", folder / "report.md"]
    paths[0].write_text(as_html(results, places), encoding="utf-8")
    paths[1].write_text(as_markdown(results, places), encoding="utf-8")
    if results.curves:
        paths.append(_write_csv(folder / "curves.csv", _curve_rows(results)))
    for number, table in enumerate(results.tables, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")[:40]
        paths.append(_write_csv(folder / f"table-{number}-{slug}.csv", [table.columns, *table.rows]))
    for figure in results.figures:
        paths += draw(figure, places, folder)
    return paths


def _curve_rows(results: Results) -> Iterable[list[str]]:
    """Every point of every curve: run, arm, seed, then what was recorded."""
    runs = {run.name: run for run in results.runs}
    keys = list(dict.fromkeys(key for curve in results.curves.values() for key in curve))
    yield ["run", "arm", "seed", *keys]
    for name, curve in results.curves.items():
        arm, seed = (runs[name].arm, str(runs[name].seed)) if name in runs else ("", "")
        for row in range(max(map(len, curve.values()), default=0)):
            points = (curve[key][row] if key in curve and row < len(curve[key]) else None for key in keys)
            yield [name, arm, seed, *map(exact, points)]


def _write_csv(path: Path, rows: Iterable[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path
