"""What a reader finds in a report."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from report import results as stored
from report.files import write_report
from report.sources import address
from tests.report.page_text import Words
from tests.report.samples import NASTY, checks, evidence, rich


def test_results_survive_their_file(tmp_path: Path) -> None:
    stored.write(rich(), tmp_path / "results.json")
    assert stored.read(tmp_path / "results.json") == rich()


def test_a_report_is_every_file_a_reader_needs(folder: Path) -> None:
    figures = {f"{each.name}.{kind}" for each in rich().figures for kind in ("png", "pdf")}
    expected = {"report.html", "report.md", "curves.csv", "table-1-memory-measured.csv", *figures}
    assert {path.name for path in folder.iterdir()} == expected


def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for path in write_report(rich(), tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_text_of_results_stays_text(folder: Path) -> None:
    words = Words((folder / "report.html").read_text("utf-8"))
    assert words.tags.count("script") == 4
    assert "b" not in words.tags
    told = (
        2 + 1 + 1 + 1 + 2 + 1 + 2
    )  # a part twice, what others measured, a protocol, tuning, a figure, a column, notes
    assert words.text.count(NASTY) == told
    assert "sha256:77aa" in words.text


def test_the_page_loads_nothing(folder: Path) -> None:
    words = Words((folder / "report.html").read_text("utf-8"))
    assert {each for each in words.addresses if not each.startswith(("#", "data:"))} == {
        rich().source.url,
        "https://arxiv.org/abs/2509.02046",
        "https://github.com/Liuhong99/Sophia/issues/46",
    }
    assert "default-src 'none'" in (folder / "report.html").read_text("utf-8")


def test_a_script_is_no_link(tmp_path: Path) -> None:
    write_report(
        replace(rich(), source=replace(rich().source, url="javascript:alert(1)"), figures=[], key_figure=""), tmp_path
    )
    assert "javascript:alert" not in (tmp_path / "report.html").read_text("utf-8")
    assert "javascript:alert" not in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_verdict_sentence_tuning_checks_and_figure_come_first_in_that_order(folder: Path, name: str) -> None:
    text = (folder / name).read_text("utf-8")
    text = Words(text).text if name.endswith("html") else text
    order = ["eaker than claimed at nano", rich().sentence, rich().tuning, "9 of 11 checks pass", evidence().title]
    order += [
        "Scale: nano",
        rich().source.statement,
        "The parts of the claim",
        "What others measured",
        "What was found",
    ]
    places = [text.index(each) for each in order]
    if name.endswith("html"):  # the checks that do not pass stand before the line that says how many do
        assert places[2] < text.index("no number is censored") < text.index("not run") < places[3]
    assert places == sorted(places)
    for told in ("not measured", "diverged", "3f9ac01b22d8", "2.897", "the seed of the paper's curves", "sha256:77aa"):
        assert told in text
    assert rich().command in text


def rows_of(text: str, title: str) -> list[list[str]]:
    """The cells of the first Markdown table below a title."""
    lines = iter(text[text.index(title) :].splitlines())
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    return [rows[0], *rows[2:]]


def test_every_part_of_the_claim_is_judged_beside_what_is_claimed(folder: Path) -> None:
    columns, *rows = rows_of((folder / "report.md").read_text("utf-8"), "## The parts of the claim")
    assert columns == ["part of the claim", "claimed", "measured", "95 % interval", "verdict", "note"]
    assert [row[1:5] for row in rows] == [
        ["2× (≥ 1.75×)", "1.08×", "1.02 to 1.15", "**weaker than claimed**"],
        ["2× (≥ 1.75×)", "1.96×", "1.78 to 2.16", "**reproduced**"],
        ["0 nats per token", "0.042 nats per token", "0.030 to 0.054", "**weaker than claimed**"],
        ["2× (≥ 1.75×)", r"\< 0.5×", "at most 0.5", "**no effect or worse**"],
    ]


def test_checks_are_all_shown_those_that_do_not_pass_first(folder: Path) -> None:
    columns, *rows = rows_of((folder / "report.md").read_text("utf-8"), "9 of 11 checks pass")
    assert columns == ["id", "what is checked", "passes if", "found", "result", "note"]
    assert [row[0] for row in rows[:3]] == ["R1", "R10", "R2"]
    assert {row[0]: row[4] for row in rows} == {
        each.id: {True: "pass", False: "**fail**", None: "**not known**"}[each.passed] for each in checks()
    }


def test_what_others_measured_has_its_value_its_source_and_how_it_is_known(folder: Path) -> None:
    _, *rows = rows_of((folder / "report.md").read_text("utf-8"), "## What others measured")
    assert {row[1] for row in rows} == {"SophiaG"}
    assert [row[4:] for row in rows] == [
        ["1.03×", "[arXiv:2509.02046](<https://arxiv.org/abs/2509.02046>)", "authors' files"],
        [r"\-0.034", r"[Liuhong99/Sophia issue \#46](<https://github.com/Liuhong99/Sophia/issues/46>)", "thread"],
        ["1.5× (1.2 to 1.9)", "a talk", "unverified"],
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("arXiv:2509.02046, table 3", "https://arxiv.org/abs/2509.02046"),
        ("KellerJordan/modded-nanogpt PR #353", "https://github.com/KellerJordan/modded-nanogpt/issues/353"),
        ("Liuhong99/Sophia#46", "https://github.com/Liuhong99/Sophia/issues/46"),
        ("see https://example.org/a?b=1, page 2", "https://example.org/a?b=1"),
        ("Liu et al. 2023", None),
    ],
)
def test_a_source_is_linked_where_its_words_name_a_place(source: str, expected: str | None) -> None:
    assert address(source) == expected


def test_results_without_checks_and_key_figure_have_neither(tmp_path: Path) -> None:
    bare = replace(rich(), checks=[], key_figure="", published=[], tuning="", figures=[evidence()])
    write_report(bare, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "checks pass" not in text and "What others measured" not in text and rich().tuning not in text
    assert text.index("## Figures") < text.index(evidence().title)
    assert '<div class="shown">' not in (tmp_path / "report.html").read_text("utf-8")


def test_a_diverged_run_is_red_and_counted(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    assert page.count('<strong class="alarm">diverged</strong>') == 1
    tally = re.search(r"Lion</span></td>(.*?)</tr>", page[page.index(">finished</th>") :])
    assert tally is not None
    assert re.findall(r">(\d+)<", tally[1]) == ["2", "1", "0"]


def test_markdown_tables_keep_their_columns(folder: Path) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", (folder / "report.md").read_text("utf-8"), re.MULTILINE)
    assert (
        len(blocks) == 10
    )  # checks, parts, others, measures of two protocols, a table, arms, runs twice, what was run
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block


def test_markdown_shows_every_figure(folder: Path) -> None:
    pictures = re.findall(r"!\[.*?\]\((\S+?)\)", (folder / "report.md").read_text("utf-8"))
    assert pictures == [f"{each.name}.png" for each in rich().figures]


def test_curves_csv_reads_back_exactly(folder: Path) -> None:
    with (folder / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "arm", "seed", "step", "tokens", "flops", "seconds", "val/loss"]
    for name, recorded in rich().curves.items():
        own = [row for row in rows if row["run"] == name]
        assert {row["arm"] for row in own} == {name.split("-")[0]}
        for key, values in recorded.items():
            assert [float(row[key]) for row in own] == values


def test_results_without_training_make_a_report(tmp_path: Path) -> None:
    bare = replace(rich(), runs=[], arms=[], curves={}, figures=[], tables=[], protocols=[], environment={}, data={})
    bare = replace(bare, key_figure="", checks=[], published=[])
    assert {path.name for path in write_report(bare, tmp_path)} == {"report.html", "report.md"}
    assert "No training runs are behind this" in (tmp_path / "report.md").read_text("utf-8")
    write_report(replace(bare, scale_note="State of the full-size model."), tmp_path)
    assert "State of the full-size model." in (tmp_path / "report.md").read_text("utf-8")
