"""How numbers are spelled, and that nothing else spells them."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from report import numbers
from report.files import write_report
from report.intervals import picture
from report.ledger import ledger_table
from report.numbers import MISSING, compact, in_words
from report.results import Measure, ProtocolResult
from tests.report.page_text import Words
from tests.report.samples import measures, rich


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (5e3, "5000"), (2e4, "20k"), (-1.5e6, "-1.5M"), (1e9, "1G"), (2e20, "2e+20")]
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(1.0212, 1.1519, "1.02 to 1.15"), (1.0712, 1.0919, "1.071 to 1.092"), (1.02, None, "at least 1.02"),
     (None, 1.1519, "at most 1.15"), (None, None, "1.083×"), (1.0834, 1.0834, "1.083")],
)  # fmt: skip
def test_an_interval_is_written_to_the_place_it_leaves_certain(
    low: float | None, high: float | None, words: str, tmp_path: Path
) -> None:
    measure = replace(measures()[0], low=low, high=high)
    protocol = ProtocolResult("tuned", "", "weaker than claimed", "", None, [measure])
    text = ledger_table([replace(rich(), protocols=[protocol])])
    assert words in text
    assert ("interval" in text) == (low != high)  # none is known, or the number is exact
    write_report(replace(rich(), protocols=[protocol], figures=[], key_figure=""), tmp_path)
    assert words in (tmp_path / "report.html").read_text("utf-8")


def test_a_number_reads_the_same_in_a_sentence_and_in_every_table(tmp_path: Path) -> None:
    measure = replace(measures()[0], estimate=0.17649, low=0.0, high=0.35298)
    words = in_words(measure)
    assert words == "speed-up in steps, fitted curve is 0.18×, 95 % interval 0.00 to 0.35, claimed 2× (≥ 1.75×)"
    protocol = ProtocolResult("tuned", "", "weaker than claimed", words, None, [measure])
    write_report(replace(rich(), protocols=[protocol], sentence=words, figures=[], key_figure=""), tmp_path)
    for text in (
        (tmp_path / "report.md").read_text("utf-8"),
        Words((tmp_path / "report.html").read_text("utf-8")).text,
    ):
        assert text.count("0.18×") >= 4  # two sentences, the parts, the protocol
        assert "0.176" not in text


@pytest.mark.parametrize(
    ("censored", "low", "high", "estimate", "in_table", "words"),
    [
        ("<", None, 0.5, None, "< 0.5", "speed-up is < 0.5×, claimed 2×"),
        ("<", 0.0, 0.5, None, "< 0.5", "speed-up is < 0.5×, claimed 2×"),  # nothing is known of where it begins
        (">", 2.5, None, None, "> 2.5", "speed-up is > 2.5×, claimed 2×"),
        (">", 1.7, None, 2.5, "> 2.5", "speed-up is > 2.5×, 95 % interval at least 1.7, claimed 2×"),
        ("", None, None, None, MISSING, "speed-up could not be measured"),
    ],
)
def test_a_number_beyond_what_was_run_is_its_bound(
    censored: str, low: float | None, high: float | None, estimate: float | None, in_table: str, words: str
) -> None:
    measure = Measure("s", "speed-up", "x", estimate, low, high, claimed=2.0, no_effect=1.0, censored=censored)
    assert numbers.estimate(measure) == in_table
    assert in_words(measure) == words
    drawn = picture(measure)
    assert (drawn is None) == (censored == "")
    assert drawn is None or drawn.dot is None  # no point where nothing was run


@pytest.mark.parametrize(
    ("claimed", "least", "no_effect", "unit", "words"),
    [
        (2.0, 1.75, 1.0, "x", "2× (≥ 1.75×)"),
        (40.0, 40.0, 0.0, "%", "≥ 40 %"),
        (-0.05, -0.045, 0.0, "nats", "-0.05 nats (≤ -0.045 nats)"),
        (1.0, 0.87, 0.5, "x", "1× (≥ 0.87×)"),
        (2.0, None, 1.0, "x", "2×"),
    ],
)
def test_a_claimed_number_comes_with_the_end_of_its_rounding(
    claimed: float, least: float | None, no_effect: float, unit: str, words: str
) -> None:
    measure = Measure("s", "speed-up", unit, 1.0, claimed=claimed, least=least, no_effect=no_effect)
    assert numbers.claimed(measure) == words


def test_only_numbers_py_spells_numbers() -> None:
    folder = Path(numbers.__file__).parent
    for path in sorted(folder.glob("*.py")):
        found = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if (isinstance(node, ast.FormattedValue) and node.format_spec is not None)
            or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("format", "round"))
        ]
        assert bool(found) == (path.name == "numbers.py"), f"{path.name}: lines {found}"


@pytest.mark.parametrize(
    ("limit", "number", "decimals", "text"),
    [
        (0.1, 0.1014, 2, "0.101"),
        (0.1, 0.1, 2, "0.10"),
        (0.1, 0.25, 2, "0.25"),
        (10, 10.04, 0, "10.04"),
        (10, 9.96, 1, "9.96"),
    ],
)
def test_a_number_beside_its_limit_reads_as_another(limit: float, number: float, decimals: int, text: str) -> None:
    assert numbers.told_from(limit, number, decimals) == text
