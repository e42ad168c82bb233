"""The ledger: a table of all claims with their verdicts, for the folder of the reports, and a short one for README."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from files.writing import write_text
from report.content import Cell, Grid, key_measure
from report.numbers import MISSING, estimate_and_claimed, estimate_and_interval
from report.pages import shown
from report.results import VERDICTS, Results

COLUMNS = ["claim", "what it says, in substance", "scale", "verdict", "measured", "date", "hardware"]
BEGIN, END = "<!-- claims: written by scripts/reproduce.py claim=all -->\n", "<!-- end of claims -->\n"


def write_ledger(rows: Sequence[Results], folder: Path) -> Path:
    """Writes README.md with every claim's verdict, linked to <claim>-<scale>/report.md in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    path.write_text(
        f"# Claims, re-run\n\n{_summary(rows)} Each links to its report, which says what was run, what "
        "its scale can show, and how to run it again. A verdict holds for its scale only.\n\n"
        f"{ledger_table(rows)}",
        encoding="utf-8",
    )
    return path


def write_short_table(rows: Sequence[Results], path: Path, beside: str) -> None:
    """Replaces what stands between BEGIN and END in the file at path, if it has them, by short_table()."""
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        write_text(path, f"{before}{begin}{short_table(rows, beside)}{end}{after}")


def ledger_table(rows: Sequence[Results]) -> str:
    """The ledger as a Markdown table, for a file in the folder of the reports."""
    return shown("ledger.md.jinja", table=Grid(COLUMNS, [_row(each) for each in rows]))


def short_table(rows: Sequence[Results], beside: str) -> str:
    """How many claims have which verdict, and a line for each: its title, verdict, number and the number claimed.

    beside: the folder of the reports, with a slash, as the reader's file sees it.
    """
    lines = [(each, f"{beside}{_report(each)}", _measured(each)) for each in rows]
    scales = ", ".join(sorted({each.scale for each in rows}))
    return shown("short_ledger.md.jinja", summary=f"Scale {scales}: {_summary(rows)}", lines=lines)


def _summary(rows: Sequence[Results]) -> str:
    counts = Counter(each.verdict for each in rows)
    return f"{len(rows)} claims: {', '.join(f'{counts[verdict]} {verdict}' for verdict in VERDICTS)}."


def _report(results: Results) -> str:
    return f"{results.claim}-{results.scale}/report.md"


def _measured(results: Results) -> str:
    measure = key_measure(results)
    return estimate_and_claimed(measure) if measure else MISSING


def _row(results: Results) -> list[Cell]:
    measure = key_measure(results)
    return [
        Cell(results.claim, "link", _report(results)),
        Cell(f"{results.source.statement} ({results.source.paper})"),
        Cell(results.scale),
        Cell(results.verdict, "verdict"),
        Cell(f"{measure.label}: {estimate_and_interval(measure)}" if measure else MISSING),
        Cell(results.date[:10]),
        Cell(str(results.environment.get("device", MISSING))),
    ]
