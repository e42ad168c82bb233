"""The tables of a report: what they are, and those of a claim's parts, its checks, its arms and its runs."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from report import numbers
from report.intervals import picture
from report.numbers import MISSING
from report.results import Check, Measure, ProtocolResult, Results, Run, Table, diagnostic_name
from report.sources import address

LEFT_OUT = "An arm's diverged and failed runs stay in this list and count against it."
NUMBER = re.compile(rf"{MISSING}|{numbers.NOT_MEASURED}|[-+<>≥≤]?\s?\d[\d,.]*(e[-+]?\d+)?\s?\S{{0,4}}")
LONG_TEXT = 30  # characters; longer cells wrap
FEW_COLUMNS = 3  # that many fit beside each other on a phone
MARKS = ("no effect ┆", "claimed ┃")  # how a picture of an interval shows them
OUTCOMES = {True: ("pass", "passed"), False: ("fail", "alarm"), None: ("not known", "unknown")}  # text and kind of cell


class Cell(NamedTuple):
    """The content of a table's cell. kind: "text", or a macro of the templates; about: its further arguments."""

    text: str
    kind: str = "text"
    about: Any = None


@dataclass(frozen=True)
class Grid:
    """A table. Long ones are folded away. Columns without content are left out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    is_long: bool = False

    def kept(self, empty: Sequence[str] = ()) -> list[int]:
        """The columns that have content. empty: kinds of cells that the format cannot show."""
        shown = [[cell.text not in ("", MISSING) and cell.kind not in empty for cell in row] for row in self.rows]
        return [i for i in range(len(self.columns)) if any(row[i] for row in shown)]

    def layout(self, column: int) -> str:
        """How a browser sets a column: numbers to the right, sentences in a block, all else on one line."""
        cells = [row[column] for row in self.rows]
        texts = [cell.text for cell in cells if cell.kind in ("text", "alarm", "link")]
        if len(texts) == len(cells) and all(NUMBER.fullmatch(text) for text in texts):
            return "number"
        return "prose" if max(map(len, texts), default=0) > LONG_TEXT else ""

    @property
    def stacks(self) -> bool:
        """Whether a phone sets the cells of a row below each other."""
        return not self.is_long and len(self.kept()) > FEW_COLUMNS


def parts(measures: Sequence[Measure]) -> list[Grid]:
    """The parts of the claim, each beside what is claimed, with a verdict of its own."""
    bounds = _bounds_columns(measures)
    columns = ["part of the claim", "claimed", "measured", bounds, ", ".join(MARKS), "verdict", "note"]
    rows = [
        [
            Cell(each.label),
            Cell(numbers.claimed(each)),
            Cell(numbers.measured(each)),
            Cell(numbers.bounds(each) or MISSING),
            _picture(each),
            Cell(each.verdict or MISSING, "verdict" if each.verdict else "text"),
            Cell(each.note or MISSING),
        ]
        for each in measures
    ]
    return [Grid(columns, rows)] if rows else []


def checks(found: Sequence[Check]) -> Grid:
    """The regime checks, as they are given."""
    rows = [
        [
            Cell(each.id),
            Cell(each.label),
            Cell(each.threshold),
            Cell(each.value),
            Cell(*OUTCOMES[each.passed]),
            Cell(each.note or MISSING),
        ]
        for each in found
    ]
    return Grid(["id", "what is checked", "passes if", "found", "result", "note"], rows)


def measures(protocol: ProtocolResult) -> Grid:
    """A protocol's numbers."""
    columns = ["measure", "estimate", _bounds_columns(protocol.measures), ", ".join(MARKS), "verdict", "claimed"]
    return Grid([*columns, "no effect", "seeds", "sd", "note"], [_measure_row(each) for each in protocol.measures])


def published(results: Results, slots: Mapping[str, int]) -> list[Grid]:
    """What others measured, with where it stands. slots: of arms in the palette."""
    labels = {arm.name: arm.label for arm in results.arms}
    rows = [
        [
            Cell(each.label),
            Cell(labels.get(each.arm, each.arm), "arm", slots.get(each.arm)),
            Cell(each.setting),
            Cell(each.quantity),
            Cell(numbers.published(each.value, each.low, each.high, each.unit)),
            Cell(each.source, "link", address(each.source)),
            Cell(each.tag),
        ]
        for each in results.published
    ]
    return [Grid(["who", "arm", "setting", "quantity", "value", "source", "how it is known"], rows)] if rows else []


def of_table(table: Table) -> Grid:
    """A table of the results."""
    return Grid(table.columns, [list(map(Cell, row)) for row in table.rows], table.note)


def arms(results: Results, slots: Mapping[str, int]) -> list[Grid]:
    """How every arm was run and tuned. slots: of arms in the palette."""
    rows = []
    for arm in results.arms:
        for protocol, overrides in arm.overrides.items() or [(MISSING, list[str]())]:
            name, code = Cell(arm.label, "arm", slots[arm.name]), Cell(" ".join(overrides), "code")
            rows.append([name, Cell(arm.role), Cell(protocol), code, Cell(arm.tuning or MISSING)])
    return [Grid(["arm", "role", "protocol", "run with", "tuning"], rows)] if rows else []


def runs(results: Results, slots: Mapping[str, int]) -> list[Grid]:
    """How many runs of every arm ended how, and every run."""
    if not results.runs:
        return []
    labels = {arm.name: arm.label for arm in results.arms}
    names = {run.arm: Cell(labels.get(run.arm, run.arm), "arm", slots.get(run.arm)) for run in results.runs}
    counts = Counter((run.arm, run.status) for run in results.runs)
    tally = [
        [
            names[arm],
            Cell(numbers.count(counts[arm, "finished"])),
            *(_trouble(counts[arm, status]) for status in ("diverged", "failed")),
        ]
        for arm in names
    ]
    columns = ["run", "arm", "protocol", "purpose", "seed", "steps", "status", "val/loss"]
    columns += ["bits per byte", "seconds", "FLOPs"]
    shown = list(dict.fromkeys(key for run in results.runs for key in run.diagnostics))
    columns += ["peak memory", "clipped", *map(diagnostic_name, shown), "commit", "configuration", "overrides"]
    return [
        Grid(["arm", "finished", "diverged", "failed"], tally, note=LEFT_OUT),
        Grid(columns, [_run_row(run, names[run.arm], shown) for run in results.runs], is_long=True),
    ]


def provenance(results: Results) -> list[Grid]:
    """What the runs ran on, with which data and which commit."""
    facts = dict(_flat(results.environment))
    facts |= {f"data, {split}": checksum for split, checksum in results.data.items()}
    if commits := sorted({run.commit for run in results.runs if run.commit}):
        facts["commits of the runs"] = ", ".join(commits)
    rows = [[Cell(key), Cell(value, "code")] for key, value in facts.items()]
    return [Grid(["what", "value"], rows)] if rows else []


def _bounds_columns(found: Sequence[Measure]) -> str:
    return ", ".join(dict.fromkeys(each.bounds for each in found))


def _picture(measure: Measure) -> Cell:
    return Cell("interval" if picture(measure) else MISSING, "interval", measure)


def _measure_row(measure: Measure) -> list[Cell]:
    is_short = len(measure.unit) < 4  # longer units stand once, behind the label
    unit = measure.unit if is_short else ""
    return [
        Cell(measure.label if is_short else f"{measure.label} ({measure.unit})"),
        Cell(numbers.with_unit(numbers.estimate(measure), unit) if numbers.is_known(measure) else numbers.NOT_MEASURED),
        Cell(numbers.bounds(measure) or MISSING),
        _picture(measure),
        Cell(measure.verdict, "verdict") if measure.verdict else Cell(MISSING),
        Cell(numbers.with_unit(numbers.digits(measure.claimed), unit)),
        Cell(numbers.with_unit(numbers.digits(measure.no_effect), unit)),
        Cell(numbers.digits(measure.n)),
        Cell(numbers.digits(measure.sd, significant=2)),
        Cell(measure.note or MISSING),
    ]


def _trouble(count: int) -> Cell:
    return Cell(numbers.count(count), "alarm" if count else "text")


def _run_row(run: Run, arm: Cell, shown: Sequence[str]) -> list[Cell]:
    return [
        Cell(run.name, "code"),
        arm,
        Cell(run.protocol),
        Cell(run.purpose),
        Cell(str(run.seed)),
        Cell(numbers.count(run.steps)),
        Cell(run.status, "text" if run.status == "finished" else "alarm"),
        Cell(numbers.loss(run.loss)),
        Cell(numbers.loss(run.bits_per_byte)),
        Cell(numbers.seconds(run.seconds)),
        Cell(numbers.flops(run.flops)),
        Cell(numbers.n_bytes(run.peak_bytes)),
        Cell(numbers.percent(run.clipped_share)),
        *(Cell(numbers.fraction(run.diagnostics.get(key))) for key in shown),
        Cell((run.commit or "")[:10], "code"),
        Cell(run.config_hash[:12], "code"),
        Cell(" ".join(run.overrides), "code"),
    ]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as dotted keys; other values as JSON writes them, words bare."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
