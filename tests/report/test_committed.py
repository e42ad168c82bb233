"""The committed reports are those of their results."""

from pathlib import Path

import pytest

from report.figures import slots
from report.numbers import in_words
from report.pages import as_markdown
from report.results import read

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[2] / "docs" / "claims").glob("*/results.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_report_is_what_its_results_are_shown_as(folder: Path) -> None:
    results = read(folder / "results.json")
    shown = as_markdown(results, slots([arm.name for arm in results.arms]))
    assert (folder / "report.md").read_text("utf-8") == shown


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_sentence_spells_a_number_as_its_table_does(folder: Path) -> None:
    results = read(folder / "results.json")
    for protocol in results.protocols:
        found: dict[str, list[str]] = {}
        for measure in protocol.measures:  # two may have a label in common, with other claims
            found.setdefault(measure.label, []).append(in_words(measure))
        told = [label for label in found if f"{label} is " in protocol.sentence]
        assert told
        assert all(any(words in protocol.sentence for words in found[label]) for label in told)
