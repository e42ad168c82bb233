"""The content of a report and its order, the same for HTML and Markdown; pages.py renders it."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from report import numbers
from report.intervals import picture
from report.numbers import MISSING
from report.results import Measure, ProtocolResult, Results, Run, Table, diagnostic_name

LEFT_OUT = "An arm's diverged and failed runs stay in this list and count against it."
NO_TRAINING = "No training runs are behind this; the numbers come from the shapes of models, or from small functions."
CONTINUES = "The same command continues what was interrupted and skips runs that are finished."
SCALES = {
    "nano": "A miniature GPT trained for minutes on two CPU cores. It can show how the arms compare at that size, and "
    "that the machinery measures; it cannot show what happens at the paper's size and number of tokens.",
    "micro": "A small GPT trained for hours on one machine. It can show how the arms compare at that size; the paper's "
    "size and number of tokens are tens of times larger, and what holds there may differ.",
    "small": "The paper's setting with GPT-2 125M. It says nothing about larger models.",
    "medium": "The paper's setting with GPT-2 355M.",
    "large": "The paper's setting with GPT-2 770M.",
}
NUMBER = re.compile(rf"{MISSING}|not measured|[-+<]?\d[\d,.]*(e[-+]?\d+)?\s?\S{{0,4}}")
LONG_TEXT = 30  # characters; longer cells wrap


class Cell(NamedTuple):
    """The content of a table's cell. kind: "text", or a macro of the templates; about: its further arguments."""

    text: str
    kind: str = "text"
    about: Any = None


@dataclass(frozen=True)
class Grid:
    """A table. Long ones are folded away in Markdown and scroll in HTML. Columns without content are left out."""

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
        texts = [cell.text for cell in cells if cell.kind in ("text", "alarm")]
        if len(texts) == len(cells) and all(NUMBER.fullmatch(text) for text in texts):
            return "number"
        return "prose" if max(map(len, texts), default=0) > LONG_TEXT else ""


class Section(NamedTuple):
    """A part of the report. shape: the macro of the templates that shows its content."""

    title: str
    shape: str
    content: Any

    @property
    def anchor(self) -> str:
        """Its address within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


class Headline(NamedTuple):
    """The one number behind the verdict, what it is, and what the scale can show."""

    number: str
    interval: str
    beside: str
    measure: Measure | None
    scale_note: str


def sections(results: Results, slots: Mapping[str, int]) -> list[Section]:
    """Everything below the headline, without what is empty. slots: of arms in the palette."""
    found = [
        Section("What was found", "protocols", results.protocols),
        Section("Difference between the protocols", "paragraphs", _paragraphs(results.difference)),
        Section("Figures", "figures", results.figures),
        Section("Tables", "tables", results.tables),
        Section("Arms", "grids", _arms(results, slots)),
        Section("Runs", "grids", _runs(results, slots)),
        Section("Evidence against the claim", "bullets", results.contrary),
        Section("What of the claim could not be checked", "bullets", results.source.unverified),
        Section("The rule, fixed before the runs", "paragraphs", _paragraphs(results.rule)),
        Section("What was run", "grids", _provenance(results)),
        Section("Notes", "bullets", results.notes),
        Section("How to run it again", "command", results.command),
    ]
    return [section for section in found if section.content]


def headline(results: Results) -> Headline:
    """What stands at the top, beside the verdict."""
    measure = key_measure(results)
    note = results.scale_note or (SCALES.get(results.scale, "") if results.runs else NO_TRAINING)
    if measure is None:
        return Headline("", "", "No number was measured.", None, note)
    if measure.estimate is None:
        return Headline("", "", numbers.in_words(measure), None, note)
    spelled = numbers.with_unit(numbers.estimate(measure), measure.unit)
    beside = measure.label + (f", {measure.n} seeds" if measure.n else "")
    return Headline(spelled, numbers.interval(measure), beside, measure, note)


def key_measure(results: Results) -> Measure | None:
    """The number beside the verdict: of the last protocol that found it, and there one that the rule judges so."""
    agreeing = [each for each in results.protocols if each.verdict == results.verdict] or results.protocols
    measures = [measure for protocol in reversed(agreeing) for measure in protocol.measures]
    judged = [each for each in measures if each.verdict == results.verdict]
    return next(iter([*judged, *(each for each in measures if each.verdict), *measures]), None)


def arms_shown(results: Results, slots: Mapping[str, int]) -> list[tuple[str, Cell]]:
    """The arms that are in a figure, by name."""
    shown = {each.arm for figure in results.figures for each in figure.series}
    return [(arm.name, Cell(arm.label, "arm", slots[arm.name])) for arm in results.arms if arm.name in shown]


def measures_grid(protocol: ProtocolResult) -> Grid:
    """A protocol's numbers."""
    bounds = ", ".join(dict.fromkeys(each.bounds for each in protocol.measures))
    columns = ["measure", "estimate", bounds, "no effect ┆ claimed ┃", "verdict", "claimed", "no effect"]
    return Grid([*columns, "seeds", "sd", "p", "note"], [_measure_row(each) for each in protocol.measures])


def table_grid(table: Table) -> Grid:
    """A table of the results."""
    return Grid(table.columns, [list(map(Cell, row)) for row in table.rows], table.note)


def _measure_row(measure: Measure) -> list[Cell]:
    is_short = len(measure.unit) < 4  # longer units stand once, behind the label
    unit = measure.unit if is_short else ""
    known = measure.estimate is not None
    return [
        Cell(measure.label if is_short else f"{measure.label} ({measure.unit})"),
        Cell(numbers.with_unit(numbers.estimate(measure), unit) if known else "not measured"),
        Cell(numbers.bounds(measure) or MISSING),
        Cell("interval" if picture(measure) else MISSING, "interval", measure),
        Cell(measure.verdict, "verdict") if measure.verdict else Cell(MISSING),
        Cell(numbers.with_unit(numbers.digits(measure.claimed), unit)),
        Cell(numbers.with_unit(numbers.digits(measure.no_effect), unit)),
        Cell(numbers.digits(measure.n)),
        Cell(numbers.digits(measure.sd, significant=2)),
        Cell(measure.note or MISSING),
    ]


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part]


def _arms(results: Results, slots: Mapping[str, int]) -> list[Grid]:
    rows = []
    for arm in results.arms:
        for protocol, overrides in arm.overrides.items() or [(MISSING, list[str]())]:
            name, code = Cell(arm.label, "arm", slots[arm.name]), Cell(" ".join(overrides), "code")
            rows.append([name, Cell(arm.role), Cell(protocol), code, Cell(arm.tuning or MISSING)])
    return [Grid(["arm", "role", "protocol", "run with", "tuning"], rows)] if rows else []


def _runs(results: Results, slots: Mapping[str, int]) -> list[Grid]:
    if not results.runs:
        return []
    labels = {arm.name: arm.label for arm in results.arms}
    names = {run.arm: Cell(labels.get(run.arm, run.arm), "arm", slots.get(run.arm)) for run in results.runs}
    counts = Counter((run.arm, run.status) for run in results.runs)
    tally = [
        [
            names[arm],
            Cell(str(counts[arm, "finished"])),
            *(_trouble(counts[arm, status]) for status in ("diverged", "failed")),
        ]
        for arm in names
    ]
    columns = ["run", "arm", "protocol", "purpose", "seed", "steps", "status", "val/loss", "seconds", "FLOPs"]
    shown = list(dict.fromkeys(key for run in results.runs for key in run.diagnostics))
    columns += ["peak memory", "clipped", *map(diagnostic_name, shown), "commit", "configuration", "overrides"]
    return [
        Grid(["arm", "finished", "diverged", "failed"], tally, note=LEFT_OUT),
        Grid(columns, [_run_row(run, names[run.arm], shown) for run in results.runs], is_long=True),
    ]


def _trouble(count: int) -> Cell:
    return Cell(str(count), "alarm" if count else "text")


def _run_row(run: Run, arm: Cell, shown: Sequence[str]) -> list[Cell]:
    return [
        Cell(run.name, "code"),
        arm,
        Cell(run.protocol),
        Cell(run.purpose),
        Cell(str(run.seed)),
        Cell(f"{run.steps:,}"),
        Cell(run.status, "text" if run.status == "finished" else "alarm"),
        Cell(numbers.loss(run.loss)),
        Cell(numbers.seconds(run.seconds)),
        Cell(numbers.flops(run.flops)),
        Cell(numbers.n_bytes(run.peak_bytes)),
        Cell(numbers.percent(run.clipped_share)),
        *(Cell(numbers.fraction(run.diagnostics.get(key))) for key in shown),
        Cell((run.commit or "")[:10], "code"),
        Cell(run.config_hash[:12], "code"),
        Cell(" ".join(run.overrides), "code"),
    ]


def _provenance(results: Results) -> list[Grid]:
    facts = dict(_flat(results.environment))
    facts |= {f"data, {split}": checksum for split, checksum in results.data.items()}
    if commits := sorted({run.commit for run in results.runs if run.commit}):
        facts["commits of the runs"] = ", ".join(commits)
    rows = [[Cell(key), Cell(value, "code")] for key, value in facts.items()]
    return [Grid(["what", "value"], rows)] if rows else []


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as dotted keys; other values as JSON writes them, words bare."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
