"""The ledger: a table of all claims with their verdicts, for the folder of the reports, and a short one for README."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from files.writing import write_between
from report import numbers
from report.content import SCALES, not_passed, parts, verdict_at_scale
from report.grids import Cell, Grid
from report.numbers import MISSING
from report.pages import shown
from report.results import VERDICTS, Measure, Results, Table

COLUMNS = ["claim", "what it says, in substance", "verdict", "its parts", "why out of regime", "date", "hardware"]
BEGIN, END = "<!-- claims: written by scripts/reproduce.py claim=all -->\n", "<!-- end of claims -->\n"
OUT = "out of regime"


class Line(NamedTuple):
    """A row of the short table: a claim's title, verdict and parts, and why it is out of regime, if it is."""

    results: Results
    parts: str
    why_out: str
    number: int  # of the link to the report
    report: str


class ScaleLines(NamedTuple):
    """The rows of a scale."""

    scale: str
    summary: str
    lines: list[Line]


def write_ledger(rows: Sequence[Results], folder: Path, tables: Sequence[Table] = ()) -> Path:
    """Writes README.md with every claim's verdict, linked to <claim>-<scale>/report.md in the same folder.

    tables: shown below, such as a comparison of all claims with what others measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    path.write_text(
        f"# Claims, re-run\n\n{' '.join(map(_summary, _by_scale(rows)))} Each links to its report, which says what was "
        "run, what its scale can show, and how to run it again. A verdict holds for its scale only.\n\n"
        f"{ledger_table(rows, tables)}",
        encoding="utf-8",
    )
    return path


def write_short_table(rows: Sequence[Results], path: Path, beside: str) -> None:
    """Replaces what stands between BEGIN and END in the file at path, if it has them, by short_table()."""
    write_between(path, BEGIN, END, short_table(rows, beside))


def ledger_table(rows: Sequence[Results], tables: Sequence[Table] = ()) -> str:
    """The ledger in Markdown, for a file in the folder of the reports: its table, trends over scales, other tables."""
    return shown(
        "ledger.md.jinja", table=Grid(COLUMNS, [_row(each) for each in rows]), trends=trends(rows), tables=tables
    )


def short_table(rows: Sequence[Results], beside: str) -> str:
    """Per scale how many claims have which verdict, and a line for each claim: how many of its parts are reproduced.

    beside: the folder of the reports, with a slash, as the reader's file sees it.
    """
    found, numbered = [], 0
    for own in _by_scale(rows):
        lines = []
        for each in own:
            numbered += 1
            lines.append(Line(each, _counted(each), _failing(each), numbered, f"{beside}{_report(each)}"))
        found.append(ScaleLines(own[0].scale, _summary(own), lines))
    return shown("short_ledger.md.jinja", scales=found)


def trends(rows: Sequence[Results]) -> list[str]:
    """For every claim with results at several scales: its verdicts and its parts' numbers, from the smallest scale."""
    claims: dict[str, list[Results]] = {}
    for own in _by_scale(rows):
        for each in own:
            claims.setdefault(each.claim, []).append(each)
    return [f"{found[-1].title}: {_trend(found)}." for found in claims.values() if len(found) > 1]


def _trend(found: Sequence[Results]) -> str:
    verdicts = ", ".join(map(verdict_at_scale, found))
    values: dict[tuple[str, str], list[str]] = {}
    for results in found:
        for part in parts(results):
            number = f"{_measured(part)} at {results.scale}"
            values.setdefault((part.name, part.label), []).append(number)
    return "; ".join([verdicts, *(f"{label} {', '.join(known)}" for (_, label), known in values.items())])


def _by_scale(rows: Sequence[Results]) -> list[list[Results]]:
    """The results of every scale, from the smallest scale to the largest, those without a place in that order last."""
    order = [*SCALES, *sorted({each.scale for each in rows} - SCALES.keys())]
    return [own for scale in order if (own := [each for each in rows if each.scale == scale])]


def _summary(own: Sequence[Results]) -> str:
    """How many of the results of a scale have which verdict."""
    counts = Counter(each.verdict for each in own)
    told = ", ".join(f"{numbers.count(counts[verdict])} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{numbers.count(len(own))} claim{'s' if len(own) > 1 else ''} at {own[0].scale}: {told}."


def _report(results: Results) -> str:
    return f"{results.claim}-{results.scale}/report.md"


def _counted(results: Results) -> str:
    """How many parts of the claim are reproduced."""
    judged = parts(results)
    reproduced = [each for each in judged if each.verdict == "reproduced"]
    return f"{numbers.count(len(reproduced))} of {numbers.count(len(judged))}" if judged else MISSING


def _failing(results: Results) -> str:
    """The checks that fail, by their ids; empty for any other verdict than out of regime."""
    failing = (each.id for each in not_passed(results.checks) if each.passed is False)
    return ", ".join(failing) if results.verdict == OUT else ""


def _why_out(results: Results) -> str:
    """Which checks do not pass; empty for any other verdict."""
    if results.verdict != OUT:
        return ""
    states = {False: "fails", None: "not known"}
    told = []
    for state, words in states.items():
        if own := [each for each in not_passed(results.checks) if each.passed is state]:
            told.append(f"{words}: {', '.join(f'{each.id} ({each.label})' for each in own)}")
    return "; ".join(told)


def _measured(part: Measure) -> str:
    interval = numbers.interval(part)
    return numbers.measured(part) + (f" ({interval})" if interval else "")


def _in_full(part: Measure) -> str:
    """A part with its number, interval, claim and verdict."""
    claim = "" if part.claimed is None else f", claimed {numbers.claimed(part)}"
    return f"{part.label}: {_measured(part)}{claim}: {part.verdict}"


def _row(results: Results) -> list[Cell]:
    lines = [_in_full(part) for part in parts(results)]
    return [
        Cell(results.claim, "link", _report(results)),
        Cell(f"{results.source.statement} ({results.source.paper})"),
        Cell(verdict_at_scale(results), "verdict"),
        Cell("; ".join(lines) or MISSING, "lines", lines or [MISSING]),
        Cell(_why_out(results)),
        Cell(results.date[:10]),
        Cell(str(results.environment.get("device", MISSING))),
    ]
