"""`python train.py -m`: every combination of the values given, then a summary, best first, as tables and as CSV.

train.py imports this for every run, so what only a sweep needs is imported by its functions.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files.reading import number
from files.writing import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from configs import RunConfig
    from launch.job import Job, Outcome

FOLDER = Path("runs")  # of the summary, and of the runs unless run_dir is given
RESULTS = ("val/loss", "train/loss", "step", "tokens", "seconds", "tokens_per_second")


def sweep(
    script: str,
    combinations: Sequence[Sequence[str]],
    *,
    launch: Mapping[str, Any],
    search: Mapping[str, Any] | None = None,
    provide: "Callable[[RunConfig], object] | None" = None,
) -> int:
    """Runs the script once for each combination of overrides; returns 0, or the exit status of the first that failed.

    Prints the summary, by arm too if seeds differ, and the paths of its CSV files, which depend on the combinations
    alone, so that the same command replaces them. launch: the class of the launcher and its arguments. search: that
    of a search, which varies the one combination instead. provide: as of run_jobs.

    Raises: as run_jobs.
    """
    from configs import plug_in
    from launch.arms import arms_of
    from launch.jobs import run_jobs

    if search is not None:
        return int(plug_in(search).run(script, combinations[0], launch=launch, provide=provide))
    positions = differing(combinations)
    keys = [combinations[0][position].partition("=")[0].lstrip("+") for position in positions]
    outcomes = run_jobs(named(combinations, positions), plug_in(launch), script=Path(script), provide=provide)
    given = [[each[position].partition("=")[2] for position in positions] for each in combinations]
    rows = [(given[index], outcomes[index]) for index in best_first(outcomes)]
    arms = arms_of(keys, rows)
    _show([summary(keys, rows), *([arms.table()] if arms.each else [])])
    for line in (*arms.missing(), *_remarks(outcomes)):
        print(line)
    path = FOLDER / f"sweep-{hashlib.sha256(json.dumps(sorted(combinations)).encode()).hexdigest()[:8]}.csv"
    try:
        write_csv(path, keys, rows)
        print(f"summary  {path}")
        if arms.each:
            write_text(by_arm := path.with_name(f"{path.stem}-arms.csv"), arms.csv())
            print(f"by arm   {by_arm}")
    except OSError as error:  # a full disk: the table is printed, and the same command tries again
        print(f"warning: the summary {path} cannot be written: {error.strerror}", file=sys.stderr)
    return next((outcome.exit_status for outcome in outcomes if outcome.status != "finished"), 0)


def _show(tables: "Sequence[Table]") -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = console.width if console.is_terminal else 1000  # lines of a file need not be wrapped
    for table in tables:
        console.print(table)


def _remarks(outcomes: "Sequence[Outcome]") -> Iterator[str]:
    """Yields a line for each run that did not finish, and the command that tries again."""
    from launch.job import as_typed
    from launch.processes import log_path

    for outcome in outcomes:
        if outcome.status != "finished":
            message = outcome.message or ""
            log = f"log {log_path(outcome.run_dir)}"
            yield f"{outcome.status}: {outcome.job.name}: {message}" + ("" if log in message else f" ({log})")
    if any(outcome.status in ("failed", "stopped") for outcome in outcomes):
        yield f"the same command tries these again: {as_typed()}"


def differing(combinations: Sequence[Sequence[str]]) -> list[int]:
    """Returns the positions of the overrides whose values differ between the combinations."""
    return [position for position, each in enumerate(zip(*combinations, strict=True)) if len(set(each)) > 1]


def named(combinations: Sequence[Sequence[str]], positions: Sequence[int]) -> "list[Job]":
    """Returns the jobs, named after the overrides that differ."""
    from launch.job import Job

    names = [
        " ".join(each[position] for position in positions) or " ".join(each) or "defaults" for each in combinations
    ]
    return [Job(name, tuple(each)) for name, each in zip(names, combinations, strict=True)]


def best_first(outcomes: "Sequence[Outcome]") -> list[int]:
    """Returns the indices of the outcomes by val/loss; runs that did not finish come last, in their order."""

    def rank(index: int) -> tuple[bool, float]:
        outcome = outcomes[index]
        loss = number((outcome.result or {}).get("val/loss")) if outcome.status == "finished" else None
        return loss is None, loss or 0.0

    return sorted(range(len(outcomes)), key=rank)


def summary(keys: Sequence[str], rows: "Sequence[tuple[Sequence[str], Outcome]]") -> "Table":
    """Returns the table that is printed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from launch.progress import COLOURS

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


def write_csv(path: Path, keys: Sequence[str], rows: "Sequence[tuple[Sequence[str], Outcome]]") -> None:
    """Writes one line for each job to path, with all digits of numbers."""
    content = StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow([*keys, "status", *RESULTS, "run_dir", "message"])
    for given, outcome in rows:
        found = [(outcome.result or {}).get(key) for key in RESULTS]
        writer.writerow([*given, outcome.status, *found, outcome.run_dir, outcome.message])
    write_text(path, content.getvalue())
