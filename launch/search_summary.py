"""What is left of a search: a table of the best runs, a CSV of all, and a picture."""

import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from files.writing import write_bytes, write_text
from launch.progress import COLOURS
from launch.search_trials import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

MOST = 10  # trials in the table
ENOUGH = 10  # finished trials from which importances are estimated
TABLE, PICTURE = "trials.csv", "search.png"


def summarize(study: optuna.Study, rows: Sequence[Row], objective: str, folder: Path) -> None:
    """Prints the table, importances and how many trials there are in each state; writes the CSV and the picture."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = console.width if console.is_terminal else 1000  # lines of a file need not be wrapped
    found = importances(study)
    counted = ", ".join(f"{n} {state}" for state, n in Counter(row.state for row in rows).items())
    if rows:
        console.print(table(rows[:MOST], objective))
    print(f"{len(rows)} trials: {counted}" if rows else "no trials")
    for row in [row for row in rows if row.state == "refused"][:MOST]:
        print(f"refused: trial {row.trial}: {row.reason}")
    n_finished = sum(row.state == "finished" for row in rows)
    if found:
        print("importance  " + ", ".join(f"{key} {share:.0%}" for key, share in found.items()))
    else:
        print(f"importance  of the parameters is estimated from {ENOUGH} finished trials on; there are {n_finished}")
    try:
        write_text(folder / TABLE, as_csv(rows, objective))
        write_bytes(folder / PICTURE, picture(rows, found, objective))
        print(f"summary     {folder / TABLE}\npicture     {folder / PICTURE}")
    except OSError as error:  # a full disk: the table is printed, and the same command tries again
        print(f"warning: {folder} cannot be written: {error.strerror}", file=sys.stderr)


def importances(study: optuna.Study) -> dict[str, float]:
    """Returns each parameter's share in how the objective varies over its best finished runs, the largest first.

    PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv:2304.10255). Empty with fewer than ENOUGH finished trials.
    """
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return optuna.importance.get_param_importances(study) if len(complete) >= ENOUGH else {}


def table(rows: Sequence[Row], objective: str) -> "Table":
    """Returns the table that is printed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    keys = _keys(rows)
    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("trial", justify="right", no_wrap=True)
    made.add_column(objective, justify="right", no_wrap=True)
    for key in keys:
        made.add_column(key, overflow="fold")
    made.add_column("state", no_wrap=True)
    made.add_column("run directory", overflow="fold")
    for row in rows:
        made.add_row(
            str(row.trial),
            "" if row.value is None else f"{row.value:.4f}",
            *(Text(_rounded(row.parameters.get(key))) for key in keys),
            Text(_state(row), style=COLOURS.get(row.state, "yellow")),
            Text(row.run_dir),
        )
    return made


def as_csv(rows: Sequence[Row], objective: str) -> str:
    """Returns a line for each trial, with all digits of numbers."""
    content, keys = StringIO(newline=""), _keys(rows)
    writer = csv.writer(content)
    writer.writerow(["trial", *keys, "state", objective, "step", "run_dir"])
    for row in rows:
        given = [row.parameters.get(key) for key in keys]
        writer.writerow([row.trial, *given, row.state, row.value, row.step, row.run_dir])
    return content.getvalue()


def picture(rows: Sequence[Row], shares: Mapping[str, float], objective: str) -> bytes:
    """Returns a PNG: the objective of each trial and the best so far, and the importance of each parameter."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11 if shares else 7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if shares else 1, squeeze=False, width_ratios=[3, 2][: 2 if shares else 1])[0]
    _draw_trials(axes[0], rows, objective)
    if shares:
        names = list(shares)[::-1]
        axes[1].barh(names, [shares[name] for name in names], height=0.6, color="tab:blue")
        axes[1].set(xlabel="importance (share, PED-ANOVA)", xlim=(0, 1), ylim=(-1, max(2, len(names))))
        axes[1].grid(axis="x", alpha=0.3)
    content = BytesIO()
    figure.savefig(content, dpi=120, format="png")
    return content.getvalue()


def _draw_trials(axes: "Axes", rows: Sequence[Row], objective: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for state, style in (("finished", "o"), ("pruned", "x")):
        if points := [(row.trial, row.value) for row in rows if row.state == state]:
            colour = "tab:blue" if state == "finished" else "tab:gray"
            axes.plot(*zip(*points, strict=True), style, color=colour, label=state, alpha=0.7)
    finished = sorted((row.trial, row.value) for row in rows if row.state == "finished" and row.value is not None)
    if finished:
        best = [min(value for _, value in finished[: n + 1]) for n in range(len(finished))]
        known = [*(trial for trial, _ in finished), max(row.trial for row in rows)]
        axes.step(known, [*best, best[-1]], where="post", color="tab:orange", label=f"best ({best[-1]:.4f})")
    axes.set(xlabel="trial", ylabel=objective)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def _keys(rows: Sequence[Row]) -> list[str]:
    return sorted({key for row in rows for key in row.parameters})


def _state(row: Row) -> str:
    return f"{row.state} at step {row.step}" if row.state == "pruned" else row.state


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
