"""The ledger: a table of all claims with their verdicts, for README and for the folder of the reports."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from report.content import Cell, Grid, key_measure
from report.numbers import MISSING, estimate_and_interval
from report.pages import shown
from report.results import VERDICTS, Results

COLUMNS = ["claim", "what it says, in substance", "scale", "verdict", "measured", "date", "hardware"]


def write_ledger(rows: Sequence[Results], folder: Path) -> Path:
    """Writes README.md with every claim's verdict, linked to <claim>-<scale>/report.md in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counter(each.verdict for each in rows)
    path = folder / "README.md"
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    path.write_text(
        f"# Claims, re-run\n\n{len(rows)} claims: {summary}. Each links to its report, which says what was run, what "
        "its scale can show, and how to run it again. A verdict holds for its scale only.\n\n"
        f"{ledger_table(rows)}",
        encoding="utf-8",
    )
    return path


def ledger_table(rows: Sequence[Results], beside: str = "") -> str:
    """The ledger as a Markdown table. beside: the folder of the reports, with a slash, as the reader's file sees it."""
    return shown("ledger.md.jinja", table=Grid(COLUMNS, [_row(each, beside) for each in rows]))


def _row(results: Results, beside: str) -> list[Cell]:
    measure = key_measure(results)
    return [
        Cell(results.claim, "link", f"{beside}{results.claim}-{results.scale}/report.md"),
        Cell(f"{results.source.sentence} ({results.source.paper})"),
        Cell(results.scale),
        Cell(results.verdict, "verdict"),
        Cell(f"{measure.label}: {estimate_and_interval(measure)}" if measure else MISSING),
        Cell(results.date[:10]),
        Cell(str(results.environment.get("device", MISSING))),
    ]
