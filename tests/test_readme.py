"""What README says of claims is what docs/claims holds."""

from pathlib import Path

from report.ledger import ledger_table
from report.results import Results, read
from reproduce import claims

ROOT = Path(__file__).parents[1]


def committed() -> list[Results]:
    return [read(path) for path in sorted((ROOT / "docs" / "claims").glob("*/results.json"))]


def test_the_ledger_has_every_claim_at_nano() -> None:
    found = {(results.claim, results.scale) for results in committed()}
    assert found == {(name, "nano") for name in claims.names()}


def test_readme_and_the_ledger_show_the_same_table() -> None:
    assert ledger_table(committed(), beside="docs/claims/") in (ROOT / "README.md").read_text("utf-8")
    assert ledger_table(committed()) in (ROOT / "docs" / "claims" / "README.md").read_text("utf-8")
