"""Compares runs: python scripts/compare.py RUN RUN ... [--different-data] [out=compare], each RUN a run directory.

A pattern names what it matches, 'runs/sweep*/*' all runs of a sweep; files and folders that are no run are
skipped, and said to be. How the configurations differ comes first, then curves and final losses, as text here and as a
report in out. Runs with different validation data are refused, for their losses do not compare; --different-data shows
them all the same. Nothing in a run directory is changed or run. Exit status: 0, or 2 for bad input.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from rich import box
from rich.console import Console
from rich.table import Table as Shown
from rich.text import Text

import configs
from configs import answer, flat
from files.errors import shown
from files.paths import expanded
from launch.listing import paths_of
from launch.run_files import CONFIG, Evaluation, is_run, read_evaluations
from launch.statuses import EXIT_STATUS
from report import numbers
from report.files import write_report
from report.numbers import NATS
from report.results import (
    Arm,
    Axis,
    Figure,
    Measure,
    ProtocolResult,
    Results,
    Run,
    Series,
    Source,
    Table,
    diagnostic_name,
    finite,
    read,
    write,
)
from reproduce.exhibits import ALTERNATIVES, AXES, LOSS, STEPS
from reproduce.records import Record, RecordsError, check_same_data
from reproduce.records import read as read_record

VERDICT, CLAIM = "compared", "compare"
ABSENT = "–"
SLICE = ("eval_sequences", "model.block_size")  # if they differ, different parts of the validation data are read
LEFT_OUT = ("run_dir", "resume", "logging")  # do not change the run
MOST_NAMED = 5  # of the paths that are skipped
RESULTS = "results.json"
LAST_DAY = 253402300799.0  # the largest timestamp of a date; a file's time may be any number


def main(arguments: list[str]) -> int:
    """Compares the runs; returns the exit status."""
    status = answer(arguments or ["--help"], __doc__, _main)
    return status if arguments else EXIT_STATUS["bad input"]


def _main(arguments: list[str]) -> int:
    given = [argument for argument in arguments if argument != "--different-data"]
    if odd := [argument for argument in given if argument.startswith("--")]:
        raise RecordsError(f"{odd[0]} is no option; there is --different-data, out= and --help")
    outs = [argument.removeprefix("out=") for argument in given if argument.startswith("out=")]
    out = expanded(outs[-1] if outs else CLAIM, "out")
    folders, skipped = run_directories([argument for argument in given if not argument.startswith("out=")])
    check_out(out)
    results = compare(folders, allow_different_data="--different-data" in arguments)
    results.notes += skipped
    results.command = shlex.join(["python", "scripts/compare.py", *arguments])
    for table in results.tables:
        show(table)
    for note in results.notes:
        print(f"note: {note}")
    out.mkdir(parents=True, exist_ok=True)
    write(results, out / RESULTS)
    write_report(results, out)
    print(f"report  {out / 'report.html'}")
    return 0


def run_directories(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Returns the run directories that the arguments name, each once, and a note on what was skipped.

    Raises: RecordsError: if an argument names none.
    """
    found: dict[Path, Path] = {}
    others: dict[str, None] = {}
    for argument in arguments:
        for path in paths_of(argument):
            if is_run(path):
                found.setdefault(path.resolve(), path)
            else:
                others[str(path)] = None
    if not others:
        return list(found.values()), []
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    named = ", ".join(list(others)[:MOST_NAMED])
    if len(found) < 2:
        raise RecordsError(
            f"comparing takes two or more run directories, got {len(found)}; no {CONFIG} and so no run: {named}{more}"
        )
    return list(found.values()), [f"Skipped, as no run: {named}{more}."]


def check_out(out: Path) -> None:
    """Checks that the report can be written to the folder. Raises: ValueError: if it holds something else."""
    if out.exists() and not out.is_dir():
        raise RecordsError(f"out={out} is no folder")
    if is_run(out):
        raise RecordsError(f"out={out} is a run directory; choose another folder for the report")
    if (out / RESULTS).exists() and read(out / RESULTS).claim != CLAIM:
        raise RecordsError(f"out={out} holds the results of a claim; choose another folder for the report")


def compare(folders: Sequence[Path], *, allow_different_data: bool = False) -> Results:
    """Returns the results for the report; the run with the best final loss comes first in the table.

    Raises: ValueError: if there are fewer than two runs, one is damaged, or their validation data differ.
    """
    if len({folder.resolve() for folder in folders}) < 2:
        raise RecordsError(f"comparing takes two or more different run directories, got {len(folders)}")
    names = unique_names(folders)
    records = {name: read_record(folder) for name, folder in zip(names, folders, strict=True)}
    notes = []
    try:
        check_same_data({name: record.data for name, record in records.items()})
    except RecordsError as error:
        if not allow_different_data:
            raise RecordsError(f"{error}; --different-data compares them all the same") from None
        notes.append(f"{error}.")
    settings = {name: read_config(folder) for name, folder in zip(names, folders, strict=True)}
    differing = differences(settings)
    if differing.keys() & set(SLICE):
        notes.append("The runs measured val/loss on different parts of the validation data: see the differences.")
    found = finite(assemble(records, settings, differing, notes))
    evaluated = {name: read_evaluations(folder) for name, folder in zip(names, folders, strict=True)}
    if any(evaluated.values()):
        found.tables.append(_evaluations_table(evaluated))
    return found


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The names of the directories, with as much of their paths as makes them different."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise RecordsError("the same run directory was given twice")


def read_config(folder: Path) -> dict[str, Any]:
    """A run's configuration by dotted key, without its directory."""
    found = flat(configs.read_config(folder / CONFIG))
    return {key: value for key, value in found.items() if key.partition(".")[0] not in LEFT_OUT}


def differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The table of the keys in which configurations differ, with every run's value."""
    keys = dict.fromkeys(key for config in settings.values() for key in config)
    values = {key: [config.get(key, ABSENT) for config in settings.values()] for key in keys}
    return {key: list(map(shown, found)) for key, found in values.items() if len(set(map(str, found))) > 1}


def assemble(
    records: Mapping[str, Record],
    settings: Mapping[str, Mapping[str, Any]],
    differing: Mapping[str, list[str]],
    notes: list[str],
) -> Results:
    """The records in the schema of report/results.py."""
    names = list(records)
    own = {name: _own(n, differing) for n, name in enumerate(names)}
    labels = {name: label(name, own[name]) for name in names}
    best = min((n for n in names if records[n].loss is not None), key=lambda n: records[n].loss or 0, default="")
    keys = ", ".join(differing) or "nothing"
    ending = f"; the lowest final val/loss is {labels[best]}'s" if best else ""
    sentence = f"{len(names)} runs, which differ in {keys}{ending}"
    curves = curves_figure(records, labels)
    last = max(records.values(), key=lambda record: record.ended)
    words = {name: f"final val/loss of {labels[name]}" for name in names}
    rows = [Measure(f"loss_{n}", words[name], NATS, records[name].loss) for n, name in enumerate(names)]
    rows.sort(key=lambda row: (row.estimate is None, row.estimate or 0.0))
    return Results(
        claim="compare",
        title="Runs compared",
        scale="",
        date=datetime.fromtimestamp(min(max(last.ended, 0.0), LAST_DAY), UTC).date().isoformat(),
        command="",
        source=Source("", "", "", ""),
        contrary=[],
        rule="",
        verdict=VERDICT,
        sentence=sentence,
        protocols=[ProtocolResult("runs", "", VERDICT, "One run each, so nothing is known of the noise.", None, rows)],
        arms=[Arm(name, labels[name], "other", {"differences": own[name]}) for name in names],
        runs=[_run(name, records[name], settings[name], own[name]) for name in names],
        curves={name: record.curve for name, record in records.items()},
        key_figure=curves.name,
        figures=[curves],
        tables=[_differences_table(names, differing), _runs_table(records, own)],
        environment={key: value for key, value in last.environment.items() if key != "data"},
        data=last.data,
        notes=notes,
    )


def label(name: str, differing: Sequence[str]) -> str:
    """A run's name with the settings in which it differs from the others, which the folder's name may not tell."""
    more = f" and {numbers.count(len(differing) - 3)} more" if len(differing) > 3 else ""
    return f"{name} ({', '.join(differing[:3])}{more})" if differing else name


def _own(place: int, differing: Mapping[str, Sequence[str]]) -> list[str]:
    """The values of a run for the keys in which runs differ."""
    return [f"{key}={values[place]}" for key, values in differing.items() if values[place] != ABSENT]


def curves_figure(records: Mapping[str, Record], labels: Mapping[str, str]) -> Figure:
    """The figure of val/loss of every run."""
    series, columns = [], []
    for name, record in records.items():
        curve = record.curve
        rows = [n for n in range(len(curve["step"])) if all(curve[key][n] is not None for key in AXES)]
        points = {key: [float(curve[key][n] or 0) for n in rows] for key in AXES}
        series.append(Series(labels[name], list(points["step"]), [curve["val/loss"][n] for n in rows], arm=name))
        columns.append(points)
    alternatives = {label: [column[key] for column in columns] for key, label in ALTERNATIVES.items()}
    return Figure("curves", "Validation loss", "lines", Axis(STEPS), Axis(LOSS), series, alternatives)


def show(table: Table) -> None:
    """Prints the table."""
    found = Shown(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns:
        found.add_column(Text(column))
    for row in table.rows:
        found.add_row(*map(Text, row))
    console = Console(file=sys.stdout, highlight=False)
    console.width = console.width if console.is_terminal else 1000  # lines of a file need not be wrapped
    console.print(found)


def _run(name: str, record: Record, config: Mapping[str, Any], own: list[str]) -> Run:
    return Run(
        name=name,
        arm=name,
        protocol="",
        purpose="",
        seed=_count(config.get("seed"), 0),
        steps=_count(config.get("max_steps"), record.step),
        overrides=own,
        config_hash="",
        **record.facts,
    )


def _count(value: Any, otherwise: int) -> int:
    """The value of a setting in a config.yaml if it is a count, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _differences_table(names: Sequence[str], differing: Mapping[str, list[str]]) -> Table:
    rows = [[key, *values] for key, values in differing.items()]
    note = "" if rows else "The configurations are the same."
    return Table("How the configurations differ", ["key", *names], rows, note)


def _runs_table(records: Mapping[str, Record], own: Mapping[str, Sequence[str]]) -> Table:
    ordered = sorted(records.items(), key=lambda pair: (pair[1].loss is None, pair[1].loss or 0.0))
    shown = list(dict.fromkeys(key for record in records.values() for key in record.diagnostics))
    rows = []
    for name, record in ordered:
        cells = [
            numbers.loss(record.loss),
            numbers.loss(record.bits_per_byte),
            numbers.seconds(record.seconds),
            numbers.flops(record.flops),
            numbers.digits(record.state_bytes),
            numbers.percent(record.clipped_share),
            *(numbers.digits(record.diagnostics.get(key)) for key in shown),
        ]
        rows.append([name, record.status, numbers.count(record.step), *cells, " ".join(own[name])])
    columns = ["run", "status", "steps", "val/loss", "bits per byte", "seconds", "FLOPs"]
    columns += ["state bytes", "clipped steps"]
    return Table("How they ended", [*columns, *map(diagnostic_name, shown), "what differs"], rows)


def _evaluations_table(evaluated: Mapping[str, Sequence[Evaluation]]) -> Table:
    """What scripts/evaluate.py found, those of the same data and settings together."""
    found = [(name, each) for name, evaluations in evaluated.items() for each in evaluations]
    shown_numbers = list(dict.fromkeys(number for _, each in found for number in each.numbers))
    rows = []
    for name, each in sorted(
        found, key=lambda pair: (pair[1].what, pair[1].on, sorted(map(str, pair[1].settings.items())))
    ):
        how = ", ".join(f"{key} {shown(value)[:12]}" for key, value in each.settings.items() if value is not None)
        cells = [numbers.of_evaluation(each.numbers.get(key)) for key in shown_numbers]
        rows.append([each.what, each.on, how, name, numbers.count(each.step), *cells])
    columns = ["evaluation", "on", "settings", "run", "step"]
    return Table("Evaluations", [*columns, *(key.replace("_", " ") for key in shown_numbers)], rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
