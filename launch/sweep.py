"""`python train.py -m`: every combination of the values given, then a summary, best first, as a table and as CSV."""

import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from files.reading import number
from files.writing import write_text
from launch.jobs import Job, Outcome, run_jobs
from launch.processes import log_path
from launch.progress import COLOURS

FOLDER = Path("runs")  # where the runs lie, too, unless run_dir says otherwise
RESULTS = ("val/loss", "train/loss", "step", "tokens", "seconds", "tokens_per_second")


def sweep(script: str, combinations: Sequence[Sequence[str]], *, at_once: int, ranks: int) -> int:
    """Runs the script once for each combination of overrides; the exit status: 0, or that of the first that failed.

    Prints the summary and where its CSV lies: in a place that follows from the combinations, so that the same command
    replaces it. Raises: see run_jobs.
    """
    places = differing(combinations)
    keys = [combinations[0][place].partition("=")[0] for place in places]
    outcomes = run_jobs(named(combinations, places), at_once=at_once, ranks=ranks, script=Path(script))
    given = [[each[place].partition("=")[2] for place in places] for each in combinations]
    rows = [(given[index], outcomes[index]) for index in best_first(outcomes)]
    path = FOLDER / f"sweep-{hashlib.sha256(json.dumps(combinations).encode()).hexdigest()[:8]}.csv"
    console = Console(file=sys.stdout, highlight=False)
    console.width = console.width if console.is_terminal else 1000  # a file has no edge to wrap at
    console.print(summary(keys, rows))
    for outcome in outcomes:
        if outcome.status != "finished":
            print(f"{outcome.status}: {outcome.job.name}: {outcome.message} (log {log_path(outcome.run_dir)})")
    try:
        write_csv(path, keys, rows)
        print(f"summary  {path}")
    except OSError as error:  # a full disk: the table above has all that matters, and the same command tries again
        print(f"warning: the summary {path} cannot be written: {error.strerror}", file=sys.stderr)
    return next((outcome.exit_status for outcome in outcomes if outcome.status != "finished"), 0)


def differing(combinations: Sequence[Sequence[str]]) -> list[int]:
    """The places of the overrides whose values differ between the combinations."""
    return [place for place, each in enumerate(zip(*combinations, strict=True)) if len(set(each)) > 1]


def named(combinations: Sequence[Sequence[str]], places: Sequence[int]) -> list[Job]:
    """The jobs, named after what tells them apart."""
    names = [" ".join(each[place] for place in places) or " ".join(each) or "defaults" for each in combinations]
    return [Job(name, tuple(each)) for name, each in zip(names, combinations, strict=True)]


def best_first(outcomes: Sequence[Outcome]) -> list[int]:
    """The indices by val/loss, finished ones before all others, which keep their order."""

    def rank(index: int) -> tuple[bool, float]:
        outcome = outcomes[index]
        loss = number((outcome.result or {}).get("val/loss")) if outcome.status == "finished" else None
        return loss is None, loss or 0.0

    return sorted(range(len(outcomes)), key=rank)


def summary(keys: Sequence[str], rows: Sequence[tuple[Sequence[str], Outcome]]) -> Table:
    """The table for people."""
    table = Table(box=box.SIMPLE_HEAD)
    for key in keys:
        table.add_column(key, overflow="fold")
    table.add_column("val/loss", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("run directory", overflow="fold")
    for given, outcome in rows:
        loss = number((outcome.result or {}).get("val/loss"))
        table.add_row(
            *map(Text, given),
            "" if loss is None else f"{loss:.4f}",
            Text(outcome.status, style=COLOURS[outcome.status]),
            Text(str(outcome.run_dir)),
        )
    return table


def write_csv(path: Path, keys: Sequence[str], rows: Sequence[tuple[Sequence[str], Outcome]]) -> None:
    """Replaces the file at path by one line for each job, numbers in full."""
    content = StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow([*keys, "status", *RESULTS, "run_dir", "message"])
    for given, outcome in rows:
        found = [(outcome.result or {}).get(key) for key in RESULTS]
        writer.writerow([*given, outcome.status, *found, outcome.run_dir, outcome.message])
    write_text(path, content.getvalue())
