"""The committed reports are those of their results; results of an older schema wait for new runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from report import results as stored
from report.figures import slots
from report.files import write_report
from report.numbers import in_words
from report.pages import as_markdown
from report.results import SCHEMA, read
from tests.report.samples import rich


def current(root: Path) -> list[Path]:
    """The folders below it with results that this version wrote."""
    found = sorted(root.glob("*/results.json"))
    return [path.parent for path in found if json.loads(path.read_text("utf-8"))["schema"] == SCHEMA]


def is_shown_as_written(folder: Path) -> bool:
    results = read(folder / "results.json")
    shown = as_markdown(results, slots([arm.name for arm in results.arms]))
    return (folder / "report.md").read_text("utf-8") == shown


FOLDERS = current(Path(__file__).parents[2] / "docs" / "claims")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_report_is_what_its_results_are_shown_as(folder: Path) -> None:
    assert is_shown_as_written(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_sentence_spells_a_number_as_its_table_does(folder: Path) -> None:
    results = read(folder / "results.json")
    for protocol in results.protocols:
        found: dict[str, list[str]] = {}
        for measure in protocol.measures:  # two may have a label in common, with other claims
            found.setdefault(measure.label, []).append(in_words(measure))
        told = [label for label in found if f"{label} is " in protocol.sentence]
        assert all(any(words in protocol.sentence for words in found[label]) for label in told)


def test_a_committed_report_that_was_changed_is_found(tmp_path: Path) -> None:
    for name, content in (("new", rich()), ("old", replace(rich(), schema=SCHEMA - 1))):
        write_report(replace(rich(), figures=[], key_figure=""), tmp_path / name)
        stored.write(replace(content, figures=[], key_figure=""), tmp_path / name / "results.json")
    (folder,) = current(tmp_path)
    assert folder.name == "new"
    assert is_shown_as_written(folder)
    page = folder / "report.md"
    page.write_text(page.read_text("utf-8").replace("1.08×", "1.09×"), encoding="utf-8")
    assert not is_shown_as_written(folder)
