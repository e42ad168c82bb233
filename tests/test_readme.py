"""README: its table of claims is that of docs/claims, its links lead somewhere, its rows fit a laptop."""

import json
import re
from pathlib import Path

import pytest

from report.ledger import BEGIN, END, ledger_table, short_table
from report.results import SCHEMA, Results, read
from reproduce import claims
from tests.commands_in_docs import PAGES as IN_DOCS

ROOT = Path(__file__).parents[1]
PAGES = [*IN_DOCS, ROOT / "CHANGELOG.md"]


@pytest.fixture(scope="module")
def committed() -> list[Results]:
    """The committed results; those of an older schema wait, all together, for new runs."""
    paths = sorted((ROOT / "docs" / "claims").glob("*/results.json"))
    if not any(json.loads(path.read_text("utf-8"))["schema"] == SCHEMA for path in paths):
        pytest.skip("no committed results are of this version's schema")
    return [read(path) for path in paths]


def test_the_ledger_has_every_claim_at_nano_or_says_how_far_it_has_come(committed: list[Results]) -> None:
    done = {results.claim for results in committed if results.scale == "nano"}
    begun = set(re.findall(r"^\| (\w+) \| nano \|", (ROOT / "docs" / "claims" / "README.md").read_text("utf-8"), re.M))
    assert done | begun == {*claims.names()} and not done & begun


def test_the_ledger_and_readmes_short_table_show_what_the_results_say(committed: list[Results]) -> None:
    assert ledger_table(committed).strip() in (ROOT / "docs" / "claims" / "README.md").read_text("utf-8")
    table = short_table(committed, beside="docs/claims/")
    assert f"{BEGIN}{table}{END}" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_row_of_a_table_is_longer_than_a_line_on_a_laptop(page: Path) -> None:
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    assert max(map(len, rows), default=0) <= 115


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_checkout(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"^\[[^\]]+\]: <?([^>\n]+)>?$", text, re.MULTILINE)
    for link in links:
        assert link.startswith("https://") or (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("group", ("model", "optim", "data"))
def test_the_options_of_a_group_are_all_told(group: str) -> None:
    told = "".join(page.read_text("utf-8") for page in PAGES if page.parent.name == "docs")
    for option in (ROOT / "configs" / group).glob("*.yaml"):
        assert re.search(rf"`{option.stem}`|^\| {option.stem} \|", told, re.MULTILINE), option
