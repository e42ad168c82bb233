"""Lists runs and how they stand: python scripts/runs.py [FOLDER ...] [key=value ...] [sort=KEY] [--serve] [prune=...].

FOLDER          a folder with run directories, a run directory, or a pattern; without any, runs
key=value       only runs with that setting, as on train.py's command line: optim=soap, optim.lr=1e-3,2e-3; also state=
                running, hung (no progress for timeout_seconds), finished, diverged, stopped, or unfinished (killed)
sort=KEY        by name, state, step, train/loss, val/loss, changed or a setting; -KEY begins with the largest
--serve         a page that follows the runs until Ctrl-C, for a browser on this machine; host=, port=8000
prune=runs      shows which of the runs would be deleted, with the logs beside them; --delete deletes them
prune=checkpoints   as prune=runs, but only the checkpoints, of runs that have finished or diverged
Runs in SLURM's queue (launch=slurm) stand below the table, each with its job. Without --delete nothing is changed.
Exit status: 0, or 2 for bad input.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import GROUPS, ConfigError, answer
from configs.matching import check_key, matches, wanted
from files.errors import printable, shown
from files.lock import InUseError
from launch.listing import STATES, ListedRun, RunList, by, keys_of
from launch.progress import COLOURS
from launch.pruning import KINDS, RUNS, candidates, delete
from launch.run_rows import NARROW, Chosen, columns_of, differing, row_of
from launch.slurm_runs import queued

FOLDER = "runs"
FLAGS = ("--serve", "--delete")
MIB, GIB = 1 << 20, 1 << 30
WIDE = 1000  # lines of a file need not be wrapped
MOST_PORT = 65535


@dataclass
class Asked:
    """What the command line asks for."""

    places: list[str] = field(default_factory=list)
    filters: dict[str, list[str]] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    sort: str = ""
    prune: str = ""
    host: str = "127.0.0.1"
    port: str = "8000"


def main(arguments: list[str]) -> int:
    """Does what the arguments ask for; returns the exit status."""
    return answer(arguments, __doc__, _main)


def _main(arguments: list[str]) -> int:
    asked = parse(arguments)
    chosen, places = chosen_by(asked), ", ".join(asked.places or [FOLDER])
    if "--serve" in asked.flags:
        from scripts.serving import LiveRuns, serve  # plotly takes a second

        live = LiveRuns(chosen, columns_of(asked.filters, asked.sort), row_of)
        return serve(live, asked.host, int(asked.port), f"runs in {places}")
    if not (found := chosen.refresh()):
        print(f"no runs{' like that' * bool(asked.filters)} in {places}")
    elif asked.prune:
        return prune(found, asked)
    else:
        show(found, asked)
    for note in chosen.notes:
        print(f"note: {note}")
    try:
        for run_dir, job in queued(chosen.places).items():
            print(f"{printable(str(run_dir))}: {job}")
    except ConfigError as error:
        print(f"note: which runs are queued is not known: {error}")
    return 0


def chosen_by(asked: Asked) -> Chosen:
    """The runs that are asked for. Raises: ConfigError: if a folder is not there."""
    runs = RunList(asked.places or [FOLDER], may_be_missing=not asked.places)
    return Chosen(runs, lambda found: select(found, asked))


def parse(arguments: Sequence[str]) -> Asked:
    """The command line. Raises: ConfigError: for anything that is no part of it."""
    asked, filters = Asked(flags=frozenset(each for each in arguments if each.startswith("--"))), []
    if odd := sorted(asked.flags - set(FLAGS)):
        raise ConfigError(f"{shown(odd[0])} is no option; there are {', '.join(FLAGS)} and --help")
    texts = [each.name for each in fields(Asked) if each.type is str]
    for each in (argument for argument in arguments if argument not in FLAGS):
        key, equals, value = each.partition("=")
        if equals and key in texts:
            setattr(asked, key, value)
        elif equals and not Path(each).exists():
            filters.append(each)
        else:
            asked.places.append(each)
    asked.filters = wanted(filters)
    _check(asked)
    return asked


def _check(asked: Asked) -> None:
    if asked.prune and asked.prune not in KINDS:
        raise ConfigError(f"prune={shown(asked.prune)} must be {' or '.join(KINDS)}")
    if "--delete" in asked.flags and not asked.prune:
        raise ConfigError(f"--delete deletes what prune= names: prune={' or prune='.join(KINDS)}")
    if asked.prune and not (asked.filters or asked.places):
        raise ConfigError(
            f"prune={asked.prune} needs to know of which runs: a filter such as state=diverged, or a folder"
        )
    if odd := [each for each in asked.filters.get("state", []) if each not in STATES]:
        raise ConfigError(f"state={shown(odd[0])} must be one of {', '.join(STATES)}")
    if not (asked.port.isdecimal() and 1 <= int(asked.port) <= MOST_PORT):
        raise ConfigError(f"port={shown(asked.port)} must be a whole number from 1 to {MOST_PORT}")


def select(found: Sequence[ListedRun], asked: Asked) -> list[ListedRun]:
    """The runs that the filters mean, in the order that is asked for. Raises: ConfigError: for an unknown key."""
    if found:
        sort_keys = [asked.sort.removeprefix("-")] * bool(asked.sort)
        for key in [*sort_keys, *(key for key in asked.filters if key not in GROUPS)]:
            check_key(key, keys_of(found))
    meant = [run for run in found if matches(run.config, run.facts, asked.filters)]
    return by(meant, asked.sort) if asked.sort else meant


def show(found: Sequence[ListedRun], asked: Asked) -> None:
    """Prints the table."""
    console = Console(file=sys.stdout, highlight=False)
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else WIDE
    console.width = width
    columns = columns_of(asked.filters, asked.sort, is_narrow=width < NARROW)
    if width >= NARROW:
        columns += [key for key in differing(found) if key not in columns]
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        is_text = column in ("run", "state")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=column == "state")
    for run in found:
        cells = row_of(run, columns)
        table.add_row(
            *(Text(cell, style=COLOURS.get(cell, "") if name == "state" else "") for name, cell in cells.items())
        )
    console.print(table)


def prune(found: Sequence[ListedRun], asked: Asked) -> int:
    """Shows what of the runs would be deleted, or deletes it."""
    is_real, total = "--delete" in asked.flags, 0
    beside = RunList(sorted({str(run.path.parent) for run in found})).refresh()  # which may need one of them
    in_queue = {run_dir.resolve() for run_dir in queued([run.path for run in found])}
    for each in list(candidates(found, beside, asked.prune, in_queue)):
        name, stays = printable(str(each.run.path)), each.stays
        if is_real and not stays:
            try:
                delete(each)
            except InUseError as owner:
                stays = f"{owner} uses it"
        total += 0 if stays else each.n_bytes
        what = "stays" if stays else "deleted" if is_real else "to delete"
        print(f"{what:>9}  {size(each.n_bytes):>9}  {name}  {stays}".rstrip())
    print(f"{size(total)} {'deleted' if is_real else 'in all; --delete deletes them'}")
    if asked.prune == RUNS and not is_real:
        folders = ", ".join(sorted({printable(str(run.path.parent)) for run in found}))
        print(f"note: runs that begin from one of these are looked for in {folders} alone")
    return 0


def size(n_bytes: int) -> str:
    """A number of bytes, in MiB or GiB."""
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB else f"{n_bytes / MIB:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
