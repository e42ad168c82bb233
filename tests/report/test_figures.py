"""Figures for the page and for paper."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.figures import PALETTE, FigureError
from report.files import write_report
from report.interactive import interactive
from report.pages import SIGNS, TEMPLATES
from report.paper import draw
from report.results import VERDICTS, Figure, Series
from tests.report.samples import bars, evidence, lines, rich


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(bars(), name="../up"), "names its files"),
        (replace(bars(), kind="pie"), "expected one of lines, bars, points"),
        (replace(bars(), series=[Series("AdamW", [1.0, 2.0], [1.0])]), "series 'AdamW': 2 x but 1 y"),
        (replace(evidence(), series=[replace(evidence().series[1], labels=["one"])]), "but 1 y, low, high or labels"),
        (replace(lines(), series=[replace(lines().series[0], hollow=True)]), "only points can be hollow, not lines"),
        (replace(lines(), alternatives={"tokens": [[1.0]]}), "x axis 'tokens' needs one value per point"),
    ],
)
def test_a_figure_that_cannot_be_drawn_says_so_before_anything_is_written(
    broken: Figure, message: str, tmp_path: Path
) -> None:
    with pytest.raises(FigureError, match=message):
        write_report(replace(rich(), figures=[bars(), broken], key_figure=""), tmp_path)
    assert not list(tmp_path.iterdir())


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.1."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("theme", "page"), [("light", "#ffffff"), ("dark", "#14171c")])
def test_every_arm_stands_out_from_the_page(theme: str, page: str) -> None:
    for colour in PALETTE[theme]:
        assert contrast(colour, page) >= 3, colour  # WCAG 1.4.11, graphics


def test_a_key_figure_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="key_figure='speed' must be one of the figures: state-bytes"):
        write_report(replace(rich(), figures=[bars()], key_figure="speed"), tmp_path)
    assert not list(tmp_path.iterdir())


def colours(theme: str) -> dict[str, str]:
    """The page's colours by name: the first block of the style sheet is light, the second dark."""
    blocks = re.findall(r":root[^{]*\{([^{}]*)\}", (TEMPLATES / "page.css").read_text("utf-8"))
    dark = {tuple(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks[1:]}
    assert len(dark) == 1  # by the button, and by what the system asks for
    return dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[0]) if theme == "light" else dark.pop())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_is_readable_in_its_colours(verdict: str, theme: str) -> None:
    style = (TEMPLATES / "page.css").read_text("utf-8")
    name = verdict.replace(" ", "-")
    rule = re.search(rf"^\.{name} {{ --tone: var\(--(\S+)\); --back: var\(--(\S+)\); }}$", style, re.MULTILINE)
    assert rule is not None
    known = colours(theme)
    assert contrast(known[rule[1]], known[rule[2]]) >= 4.5  # WCAG 1.4.3, text
    assert contrast(known["text"], known[rule[2]]) >= 4.5
    assert sum(known[rule[1]] == colour for colour in known.values()) == 1  # no two verdicts share one
    assert SIGNS[verdict] not in [sign for other, sign in SIGNS.items() if other != verdict]  # for those who see none


def traces(figure: Figure) -> dict[str, dict[str, Any]]:
    """By the part of the drawing and the name of the series."""
    drawn = interactive(figure, {"sophiag": 1})["data"]
    return {f"{each['meta']['part']} {each['name']}": each for each in drawn}


def test_what_others_measured_is_hollow_in_the_colour_of_its_arm() -> None:
    found = traces(evidence())
    ours, theirs = found["line SophiaG, ours"], found["line SophiaG, Wen et al."]
    assert (ours["marker"]["symbol"], theirs["marker"]["symbol"]) == ("square", "square-open")
    assert ours["meta"]["slot"] == theirs["meta"]["slot"] == 1
    assert theirs["text"][:2] == ["130M, 1x Chinchilla", "130M, 8x Chinchilla"]
    assert "<b>" not in theirs["text"][2]


@pytest.mark.parametrize(("low", "high", "ends_at", "sign"), [(None, 0.5, 0.375, "<"), (4.0, None, 5.0, ">")])
def test_a_number_beyond_what_was_run_is_an_arrow_from_its_bound(
    low: float | None, high: float | None, ends_at: float, sign: str
) -> None:
    series = Series("SophiaG, ours", [3e5, 2e6], [1.1, None], [1.0, low], [1.2, high], arm="sophiag")
    found = traces(replace(evidence(), series=[series]))
    arrow = found["limit SophiaG, ours"]
    assert found["line SophiaG, ours"]["y"] == [1.1, None]
    assert arrow["y"] == [ends_at]
    (above,), (below,) = arrow["error_y"]["array"], arrow["error_y"]["arrayminus"]
    assert {ends_at + above, ends_at - below} == {ends_at, low or high}  # the shaft begins at the bound
    assert arrow["customdata"][0].startswith(f"{sign} {(low or high):g}")
    assert arrow["marker"]["angle"] == [180 if sign == "<" else 0]


def test_a_picture_for_paper_has_hollow_marks_and_arrows(tmp_path: Path) -> None:
    for name, figure in (
        ("as it is", evidence()),
        ("filled", replace(evidence(), series=[replace(each, hollow=False) for each in evidence().series])),
        ("no arrow", replace(evidence(), series=[replace(each, low=None, high=None) for each in evidence().series])),
    ):
        draw(figure, {"sophiag": 1}, tmp_path)
        (tmp_path / "evidence.png").rename(tmp_path / f"{name}.png")
    assert len({path.read_bytes() for path in tmp_path.glob("*.png")}) == 3


@pytest.mark.parametrize(("level", "side"), [(2.0, "top"), (0.5, "bottom")])
def test_the_words_at_a_level_stand_on_the_side_where_the_figure_goes_on(level: float, side: str) -> None:
    (shape,) = interactive(replace(evidence(), hline=level), {"sophiag": 1})["layout"]["shapes"]
    assert (shape["y0"], shape["label"]["text"], shape["label"]["yanchor"]) == (level, "claimed", side)
