"""Compares runs: python scripts/compare.py RUN RUN ... [--different-data] [out=compare], each RUN a run directory.

How their configurations differ comes first, then curves and final losses, as text here and as a report in out. Runs
with different validation data are refused, for their losses do not compare; --different-data shows them all the same.
Exit status: 0, or 2 for bad input.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table as Shown

from configs import flat
from reproduce import measures, report
from reproduce.exhibits import AXES, LOSS, STEPS
from reproduce.findings import NATS
from reproduce.measures import MeasuresError, Record
from reproduce.results import Arm, Axis, Figure, Measure, Protocol, Results, Run, Series, Source, Table, write

VERDICT = "compared"
ABSENT = "–"
SLICE = ("eval_sequences", "model.block_size")  # with other ones, other parts of the same validation data are read
PLACE = ("run_dir", "resume", "logging")  # says nothing about the run


def main(arguments: list[str]) -> int:
    """Compares; the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    given = [argument for argument in arguments if argument != "--different-data"]
    folders = [Path(argument) for argument in given if not argument.startswith("out=")]
    out = Path(next((argument.removeprefix("out=") for argument in given if argument.startswith("out=")), "compare"))
    try:
        results = compare(folders, allow_different_data="--different-data" in arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results.command = shlex.join(["python", "scripts/compare.py", *arguments])
    for table in results.tables:
        show(table)
    for note in results.notes:
        print(f"note: {note}")
    out.mkdir(parents=True, exist_ok=True)
    write(results, out / "results.json")
    report.write_report(results, out)
    print(f"report  {out / 'report.html'}")
    return 0


def compare(folders: Sequence[Path], *, allow_different_data: bool = False) -> Results:
    """The results for the report; the best final loss comes first in the table of runs.

    Raises: MeasuresError: if there are fewer than two runs, one is none, or their validation data differ.
    """
    if len({folder.resolve() for folder in folders}) < 2:
        raise MeasuresError(f"comparing takes two or more different run directories, got {len(folders)}")
    names = unique_names(folders)
    records = {name: measures.read(folder) for name, folder in zip(names, folders, strict=True)}
    notes = []
    try:
        measures.check_same_data(records)
    except MeasuresError as error:
        if not allow_different_data:
            raise MeasuresError(f"{error}; --different-data compares them all the same") from None
        notes.append(f"{error}.")
    configs = {name: read_config(folder) for name, folder in zip(names, folders, strict=True)}
    differing = differences(configs)
    if differing.keys() & set(SLICE):
        notes.append("The runs measured val/loss on different parts of the validation data: see the differences.")
    return assemble(records, configs, differing, notes)


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The directories' names, with as much of the path before them as tells them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise MeasuresError("the same run directory was given twice")


def read_config(folder: Path) -> dict[str, Any]:
    """A run's configuration by dotted key, without where it lies."""
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    return {key: value for key, value in flat(config).items() if key.partition(".")[0] not in PLACE}


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The keys in which configurations differ, with every run's value."""
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    values = {key: [str(config.get(key, ABSENT)) for config in configs.values()] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def assemble(
    records: Mapping[str, Record],
    configs: Mapping[str, Mapping[str, Any]],
    differing: Mapping[str, list[str]],
    notes: list[str],
) -> Results:
    """The records as results of the schema that reports are made of."""
    names = list(records)
    best = min(
        (name for name in names if records[name].loss is not None), key=lambda n: records[n].loss or 0, default=""
    )
    keys = ", ".join(differing) or "nothing"
    sentence = f"{len(names)} runs, which differ in {keys}" + (
        f"; the lowest final val/loss is {best}'s" if best else ""
    )
    last = max(records.values(), key=lambda record: record.ended)
    rows = [Measure(f"loss_{n}", f"final val/loss of {name}", NATS, records[name].loss) for n, name in enumerate(names)]
    rows.sort(key=lambda row: (row.estimate is None, row.estimate or 0.0))
    own = {name: [f"{key}={values[n]}" for key, values in differing.items()] for n, name in enumerate(names)}
    return Results(
        claim="compare",
        title="Runs compared",
        scale="",
        date=datetime.fromtimestamp(last.ended, UTC).date().isoformat(),
        command="",
        source=Source("", "", "", ""),
        contrary=[],
        rule="",
        verdict=VERDICT,
        sentence=sentence,
        protocols=[Protocol("runs", "", VERDICT, "One run each, so nothing is known of the noise.", None, rows)],
        arms=[Arm(name, name, "other", {"differences": own[name]}) for name in names],
        runs=[_run(name, records[name], configs[name], own[name]) for name in names],
        curves={name: record.curve for name, record in records.items()},
        figures=[curves_figure(records)],
        tables=[_differences_table(names, differing), _runs_table(records)],
        environment={key: value for key, value in last.environment.items() if key != "data"},
        data=last.data,
        notes=notes,
    )


def curves_figure(records: Mapping[str, Record]) -> Figure:
    """val/loss of every run."""
    series, columns = [], []
    for name, record in records.items():
        curve = record.curve
        rows = [n for n in range(len(curve["step"])) if all(curve[key][n] is not None for key in AXES)]
        points = {key: [float(curve[key][n] or 0) for n in rows] for key in AXES}
        series.append(Series(name, list(points["step"]), [curve["val/loss"][n] for n in rows], arm=name))
        columns.append(points)
    labels = {"tokens": "tokens", "flops": "FLOPs, curvature passes included", "seconds": "seconds in training steps"}
    alternatives = {label: [column[key] for column in columns] for key, label in labels.items()}
    return Figure("curves", "Validation loss", "lines", Axis(STEPS), Axis(LOSS), series, alternatives)


def show(table: Table) -> None:
    """Prints it."""
    shown = Shown(*table.columns, title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in table.rows:
        shown.add_row(*row)
    console = Console(file=sys.stdout, highlight=False)
    console.width = console.width if console.is_terminal else 1000  # a file has no edge to wrap at
    console.print(shown)


def _run(name: str, record: Record, config: Mapping[str, Any], own: list[str]) -> Run:
    return Run(
        name=name,
        arm=name,
        protocol="",
        purpose="",
        seed=int(config.get("seed", 0)),
        steps=int(config.get("max_steps", record.step)),
        overrides=own,
        config_hash="",
        **record.facts,
    )


def _differences_table(names: Sequence[str], differing: Mapping[str, list[str]]) -> Table:
    rows = [[key, *values] for key, values in differing.items()]
    note = "" if rows else "The configurations are the same."
    return Table("How the configurations differ", ["key", *names], rows, note)


def _runs_table(records: Mapping[str, Record]) -> Table:
    ordered = sorted(records.items(), key=lambda pair: (pair[1].loss is None, pair[1].loss or 0.0))
    rows = []
    for name, record in ordered:
        numbers = (record.loss, record.seconds, record.flops, record.state_bytes, record.clipped_share, record.win_rate)
        cells = ["" if number is None else f"{number:.5g}" for number in numbers]
        rows.append([name, record.status, f"{record.step:,}", *cells])
    columns = ["run", "status", "steps", "val/loss", "seconds", "FLOPs", "state bytes", "clipped steps", "win rate"]
    return Table("How they ended", columns, rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
