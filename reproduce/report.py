"""results.json to report.html, report.md, CSV, PNG and PDF, and the ledger of claims; it computes nothing.

What a report says is decided here, once, as sections of blocks; page.py gives them their two forms.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.figures import check, draw, interactive, slots
from reproduce.page import (
    MISSING,
    Alarm,
    ArmName,
    Arms,
    Bullets,
    Code,
    Command,
    Grid,
    Heading,
    Headline,
    Inline,
    Interval,
    Link,
    Paragraph,
    Piece,
    Plot,
    Quote,
    Section,
    Verdict,
    as_html,
    as_markdown,
)
from reproduce.results import VERDICTS, Measure, Protocol, Results, Run

LEFT_OUT = "An arm's diverged and failed runs stay in this list and count against it."
NO_TRAINING = "No training runs are behind this; the numbers come from the shapes of models, or from small functions."
SCALES = {
    "nano": "A miniature GPT trained for minutes on two CPU cores. It can show how the arms compare at that size, and "
    "that the machinery measures; it cannot show what happens at the paper's size and number of tokens.",
    "micro": "A small GPT trained for hours on one machine. It can show how the arms compare at that size; the paper's "
    "size and number of tokens are tens of times larger, and what holds there may differ.",
    "small": "The paper's setting with GPT-2 125M. It says nothing about larger models.",
    "medium": "The paper's setting with GPT-2 355M.",
    "large": "The paper's setting with GPT-2 770M.",
}


def write_report(results: Results, folder: Path) -> list[Path]:
    """Writes report.html, report.md, curves.csv, a CSV per table and every figure's PNG and PDF; their paths.

    Raises: FigureError: before anything is written, if a figure cannot be drawn.
    """
    for figure in results.figures:
        check(figure)
    folder.mkdir(parents=True, exist_ok=True)
    places = slots([arm.name for arm in results.arms])
    opening, sections = _opening(results), _sections(results, places)
    top = f"{results.claim} · {results.scale} · {results.date}"
    page = as_html(results.title, top, opening, sections, [interactive(each, places) for each in results.figures])
    paths = [folder / "report.html", folder / "report.md"]
    paths[0].write_text(page, encoding="utf-8")
    paths[1].write_text(as_markdown(results.title, opening, sections), encoding="utf-8")
    if results.curves:
        paths.append(_write_csv(folder / "curves.csv", _curve_rows(results)))
    for number, table in enumerate(results.tables, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")[:40]
        paths.append(_write_csv(folder / f"table-{number}-{slug}.csv", [table.columns, *table.rows]))
    for figure in results.figures:
        paths += draw(figure, places, folder)
    return paths


def write_ledger(rows: Sequence[Results], folder: Path) -> Path:
    """Writes README.md with every claim's verdict, linked to <claim>-<scale>/report.md in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counter(each.verdict for each in rows)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    path = folder / "README.md"
    path.write_text(
        f"# Claims, re-run\n\n{len(rows)} claims: {summary}. Each links to its report, which says what was run, what "
        "its scale can show, and how to run it again. A verdict holds for its scale only.\n\n"
        f"{ledger_table(rows)}",
        encoding="utf-8",
    )
    return path


def ledger_table(rows: Sequence[Results], beside: str = "") -> str:
    """The ledger as a Markdown table. beside: the folder of the reports, with a slash, as the reader's file sees it."""
    grid = Grid(
        columns=["claim", "the paper's words", "scale", "verdict", "measured", "date", "hardware"],
        rows=[_ledger_row(each, beside) for each in rows],
    )
    return grid.markdown() + "\n"


def _ledger_row(results: Results, beside: str) -> list[Inline]:
    measure = _key_measure(results)
    found = f"{measure.label}: {_number_and_interval(measure)}" if measure else MISSING
    return [
        Link(results.claim, f"{beside}{results.claim}-{results.scale}/report.md"),
        f"{results.source.sentence} ({results.source.paper})",
        results.scale,
        Verdict(results.verdict),
        found,
        results.date[:10],
        str(results.environment.get("device", MISSING)),
    ]


def _opening(results: Results) -> list[Piece]:
    source = results.source
    quote = [Quote(source.sentence, _paper(results), source.setting)] if source.sentence else []  # runs have none
    return [_headline(results), *quote]


def _headline(results: Results) -> Headline:
    measure = _key_measure(results)
    note = results.scale_note or (SCALES.get(results.scale, "") if results.runs else NO_TRAINING)
    number, interval, beside, picture = "", "", "No number was measured.", None
    if measure is not None and measure.estimate is None:
        beside = f"{measure.label} could not be measured: {measure.note}"
    elif measure is not None:
        number, interval = _with_unit(_digits(measure.estimate, measure), measure.unit), _interval_words(measure)
        beside = measure.label + (f", {measure.n} seeds" if measure.n else "")
        words = {"no_effect": "no effect", "claimed": "claimed"}
        marks = {"no_effect": measure.no_effect, "claimed": measure.claimed}
        picture = Interval(
            measure,
            {k: f"{words[k]} {_with_unit(_digits(v), measure.unit)}" for k, v in marks.items() if v is not None},
        )
    return Headline(results.verdict, results.sentence, number, interval, beside, picture, results.scale, note)


def _key_measure(results: Results) -> Measure | None:
    """The number beside the verdict: of the last protocol that found it, and there one that the rule judges so."""
    agreeing = [each for each in results.protocols if each.verdict == results.verdict] or results.protocols
    measures = [measure for protocol in reversed(agreeing) for measure in protocol.measures]
    judged = [each for each in measures if each.verdict == results.verdict]
    return next(iter([*judged, *(each for each in measures if each.verdict), *measures]), None)


def _paper(results: Results) -> Link:
    return Link(results.source.paper, results.source.url)


def _sections(results: Results, places: Mapping[str, int]) -> list[Section]:
    """Everything below the headline, without what is empty."""
    found = [
        Section("What was found", _protocols(results.protocols)),
        Section("Difference between the protocols", _words(results.difference)),
        Section("Figures", _figures(results, places)),
        Section("Tables", [piece for each in results.tables for piece in _table(each.title, each)]),
        Section("Arms", _arms(results, places)),
        Section("Runs", _runs(results, places)),
        Section("Evidence against the claim", _bullets(results.contrary)),
        Section("What of the claim could not be checked", _bullets(results.source.unverified)),
        Section("The rule, fixed before the runs", _words(results.rule)),
        Section("What was run", _provenance(results)),
        Section("Notes", _bullets(results.notes)),
        Section("How to run it again", _rerun(results)),
    ]
    return [section for section in found if section.blocks]


def _words(text: str) -> list[Piece]:
    return [Paragraph([part]) for part in re.split(r"\n\s*\n", text.strip()) if part]


def _bullets(items: Sequence[str]) -> list[Piece]:
    return [Bullets(items)] if items else []


def _protocols(protocols: Sequence[Protocol]) -> list[Piece]:
    pieces: list[Piece] = []
    for each in protocols:
        pieces += [Heading(each.name.capitalize(), each.verdict), Paragraph([each.sentence])]
        if each.more_seeds:
            pieces.append(Paragraph([f"To decide it would take {each.more_seeds} more seeds per arm."]))
        pieces.append(Paragraph([each.description], quiet=True))
        if each.measures:
            pieces.append(_measures(each.measures))
    return pieces


def _measures(measures: Sequence[Measure]) -> Grid:
    columns = [
        "measure",
        "estimate",
        ", ".join(dict.fromkeys(each.bounds for each in measures)),
        "no effect ┆ claimed ┃",
        "verdict",
        "claimed",
        "no effect",
    ]
    return Grid([*columns, "seeds", "sd", "p", "note"], [_measure_row(each) for each in measures])


def _measure_row(measure: Measure) -> list[Inline]:
    is_short = len(measure.unit) < 4  # longer units stand once, behind the label
    unit = measure.unit if is_short else ""
    return [
        measure.label if is_short else f"{measure.label} ({measure.unit})",
        "not measured" if measure.estimate is None else _with_unit(_digits(measure.estimate, measure), unit),
        _bounds(measure) or MISSING,
        Interval(measure, {}),
        Verdict(measure.verdict) if measure.verdict else MISSING,
        _with_unit(_digits(measure.claimed), unit),
        _with_unit(_digits(measure.no_effect), unit),
        _digits(measure.n),
        _digits(measure.sd, significant=2),
        _p_value(measure.p_value),
        measure.note or MISSING,
    ]


def _figures(results: Results, places: Mapping[str, int]) -> list[Piece]:
    if not results.figures:
        return []
    labels = {arm.name: arm.label for arm in results.arms}
    shown = {each.arm for figure in results.figures for each in figure.series}
    chips = Arms({name: ArmName(labels[name], places[name]) for name in places if name in shown})
    return [*([chips] if chips.names else []), *(Plot(each) for each in results.figures)]


def _table(title: str, table: Any) -> list[Piece]:
    return [Heading(title), Grid(table.columns, table.rows, table.note)]


def _arms(results: Results, places: Mapping[str, int]) -> list[Piece]:
    rows: list[list[Inline]] = []
    for arm in results.arms:
        for protocol, overrides in arm.overrides.items() or [(MISSING, list[str]())]:
            name = ArmName(arm.label, places[arm.name])
            rows.append([name, arm.role, protocol, Code(" ".join(overrides)), arm.tuning or MISSING])
    return [Grid(["arm", "role", "protocol", "run with", "tuning"], rows)] if rows else []


def _runs(results: Results, places: Mapping[str, int]) -> list[Piece]:
    if not results.runs:
        return []
    labels = {arm.name: arm.label for arm in results.arms}
    names = {run.arm: ArmName(labels.get(run.arm, run.arm), places.get(run.arm)) for run in results.runs}
    counts = Counter((run.arm, run.status) for run in results.runs)
    tally = [
        [
            names[arm],
            str(counts[arm, "finished"]),
            *(_trouble(counts[arm, status]) for status in ("diverged", "failed")),
        ]
        for arm in names
    ]
    columns = ["run", "arm", "protocol", "purpose", "seed", "steps", "status", "val/loss", "seconds", "FLOPs"]
    columns += ["peak memory", "clipped", "win rate", "commit", "configuration", "overrides"]
    return [
        Grid(["arm", "finished", "diverged", "failed"], tally, note=LEFT_OUT),
        Grid(columns, [_run_row(run, names[run.arm]) for run in results.runs], is_long=True),
    ]


def _trouble(count: int) -> Inline:
    return Alarm(str(count)) if count else "0"


def _run_row(run: Run, arm: ArmName) -> list[Inline]:
    return [
        Code(run.name),
        arm,
        run.protocol,
        run.purpose,
        str(run.seed),
        f"{run.steps:,}",
        run.status if run.status == "finished" else Alarm(run.status),
        MISSING if run.loss is None else f"{run.loss:.4f}",
        MISSING if run.seconds is None else f"{run.seconds:,.1f}",
        MISSING if run.flops is None else f"{run.flops:.3g}",
        MISSING if run.peak_bytes is None else _bytes(run.peak_bytes),
        MISSING if run.clipped_share is None else f"{100 * run.clipped_share:.1f} %",
        MISSING if run.win_rate is None else f"{run.win_rate:.3f}",
        Code((run.commit or "")[:10]),
        Code(run.config_hash[:12]),
        Code(" ".join(run.overrides)),
    ]


def _provenance(results: Results) -> list[Piece]:
    facts = dict(_flat(results.environment))
    facts |= {f"data, {split}": checksum for split, checksum in results.data.items()}
    if commits := sorted({run.commit for run in results.runs if run.commit}):
        facts["commits of the runs"] = ", ".join(commits)
    return [Grid(["what", "value"], [[key, Code(value)] for key, value in facts.items()])] if facts else []


def _rerun(results: Results) -> list[Piece]:
    kept = "The same command continues what was interrupted and skips runs that are finished."
    return [Command(results.command), Paragraph([kept], quiet=True)] if results.command else []


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as dotted keys; other values as JSON writes them, words bare."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _curve_rows(results: Results) -> Iterable[list[str]]:
    """Every point of every curve: run, arm, seed, then what was recorded."""
    runs = {run.name: run for run in results.runs}
    keys = list(dict.fromkeys(key for curve in results.curves.values() for key in curve))
    yield ["run", "arm", "seed", *keys]
    for name, curve in results.curves.items():
        arm, seed = (runs[name].arm, str(runs[name].seed)) if name in runs else ("", "")
        for row in range(max(map(len, curve.values()), default=0)):
            points = (curve[key][row] if key in curve and row < len(curve[key]) else None for key in keys)
            yield [name, arm, seed, *map(_exact, points)]


def _write_csv(path: Path, rows: Iterable[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def _exact(value: float | None) -> str:
    """The shortest text that reads back as the same number; nothing for None."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def _number_and_interval(measure: Measure) -> str:
    if measure.estimate is None:
        return "not measured"
    interval = _interval_words(measure)
    return _with_unit(_digits(measure.estimate, measure), measure.unit) + (f" ({interval})" if interval else "")


def _interval_words(measure: Measure) -> str:
    if measure.low == measure.high:  # exact, or nothing is known
        return ""
    return f"{measure.bounds} {_bounds(measure)}"


def _bounds(measure: Measure) -> str:
    """The interval; one without a bound on a side is open there. Empty if nothing is known."""
    low, high = _digits(measure.low, measure), _digits(measure.high, measure)
    if measure.low is not None and measure.high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if measure.low is not None else f"at most {high}" if measure.high is not None else ""


def _digits(value: float | None, measure: Measure | None = None, significant: int = 4) -> str:
    """The value to the place that the measure's interval leaves certain: one or two digits of its half width."""
    if value is None:
        return MISSING
    known = [each for each in (measure.low, measure.estimate, measure.high) if each is not None] if measure else []
    if known and (width := (max(known) - min(known)) / (len(known) - 1 or 1)) > 0:
        size = math.log10(width)
        two = size - math.floor(size) < math.log10(3.5)  # 0.012 keeps its 2, 0.065 is 0.07
        return f"{value:,.{min(max(two - math.floor(size), 0), 8) if abs(value) < 1e4 else 0}f}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.{significant}g}"


def _with_unit(digits: str, unit: str) -> str:
    if digits == MISSING or not unit:
        return digits
    return f"{digits}×" if unit in ("x", "×") else f"{digits} {unit}"


def _p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _bytes(count: float) -> str:
    unit, scale = ("GiB", 2**30) if count >= 2**30 else ("MiB", 2**20)
    return f"{count / scale:,.2f} {unit}"
