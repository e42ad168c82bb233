"""What a report is made of, and how each piece looks in HTML and in Markdown.

Pieces within a line (str, Code, Link, Verdict, ...) make cells and paragraphs; blocks (Paragraph, Grid, Plot, ...)
make sections. All text is escaped here, and only here.
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Protocol

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # plotly 6 has no types

from reproduce.figures import PALETTE
from reproduce.results import Figure, Measure

HERE = Path(__file__).parent
SIGNS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?"}
MISSING = "–"
NUMBER = rf"{MISSING}|not measured|[-+<]?\d[\d,.]*(e[-+]?\d+)?\s?\S{{0,4}}"


class Piece(Protocol):
    """Part of a line, or a block."""

    def html(self) -> str:
        """As HTML."""

    def markdown(self) -> str:
        """As GitHub's Markdown; empty if it has no form there."""


Inline = str | Piece


@dataclass(frozen=True)
class Code:
    """Text in a typewriter's letters."""

    text: str

    def html(self) -> str:
        """See Piece."""
        return f"<code>{html.escape(self.text)}</code>" if self.text else MISSING

    def markdown(self) -> str:
        """See Piece."""
        if not self.text:
            return MISSING
        fence = "`" * (max(map(len, re.findall("`+", self.text)), default=0) + 1)
        pad = " " if "`" in self.text else ""
        return f"{fence}{pad}{_one_line(self.text)}{pad}{fence}"


@dataclass(frozen=True)
class Link:
    """Text that leads to an address; only to http and https, or a file beside the report."""

    text: str
    url: str

    def html(self) -> str:
        """See Piece."""
        text = html.escape(self.text)
        return f'<a href="{html.escape(self.url)}" rel="noreferrer">{text}</a>' if _is_safe(self.url) else text

    def markdown(self) -> str:
        """See Piece."""
        text = _escaped(self.text)
        return f"[{text}](<{re.sub('[<>]', '', self.url)}>)" if _is_safe(self.url) else text


@dataclass(frozen=True)
class Verdict:
    """One of results.VERDICTS, as a badge."""

    verdict: str

    def html(self) -> str:
        """See Piece."""
        kind = html.escape(self.verdict.replace(" ", "-"))
        return f'<span class="badge {kind}">{SIGNS.get(self.verdict, "")} {html.escape(self.verdict)}</span>'

    def markdown(self) -> str:
        """See Piece."""
        return f"**{_escaped(self.verdict)}**"


@dataclass(frozen=True)
class Alarm:
    """Words in red."""

    text: str

    def html(self) -> str:
        """See Piece."""
        return f'<strong class="alarm">{html.escape(self.text)}</strong>'

    def markdown(self) -> str:
        """See Piece."""
        return f"**{_escaped(self.text)}**"


@dataclass(frozen=True)
class ArmName:
    """An arm with its colour."""

    text: str
    slot: int | None

    def html(self) -> str:
        """See Piece."""
        colour = "var(--quiet)" if self.slot is None else f"var(--arm-{self.slot % len(PALETTE['light'])})"
        return f'<span class="arm"><i style="background:{colour}"></i>{html.escape(self.text)}</span>'

    def markdown(self) -> str:
        """See Piece."""
        return _escaped(self.text)


@dataclass(frozen=True)
class Interval:
    """A measure's interval as a small picture, with marks at no effect and at the claim; HTML only."""

    measure: Measure
    words: Mapping[str, str]  # "no_effect", "claimed" -> what stands at the mark; empty for a picture without words

    def html(self) -> str:
        """See Piece."""
        marks = {"no_effect": self.measure.no_effect, "claimed": self.measure.claimed}
        ends = (self.measure.estimate, self.measure.low, self.measure.high)
        if self.measure.estimate is None or not any(value is not None for value in (*ends[1:], *marks.values())):
            return ""
        values = [value for value in (*ends, *marks.values()) if value is not None]
        width, middle, height = (320.0, 32.0, 64.0) if self.words else (132.0, 11.0, 22.0)
        place = _scale(values, width, self.measure.log_scale)
        parts = [f'<line class="rail" x1="0" x2="{width:g}" y1="{middle:g}" y2="{middle:g}"/>']
        for name, value in marks.items():
            if value is not None:
                parts.append(self._mark(name, place(value), middle, width))
        if (self.measure.low, self.measure.high) != (None, None):  # open towards where it has no bound
            low = 0.0 if self.measure.low is None else place(self.measure.low)
            high = width if self.measure.high is None else place(self.measure.high)
            parts.append(f'<rect x="{low:.1f}" y="{middle - 4:g}" width="{max(high - low, 1):.1f}" height="8" rx="2"/>')
        parts.append(f'<circle cx="{place(self.measure.estimate):.1f}" cy="{middle:g}" r="5"/>')
        box = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        return f'<svg class="interval" role="img" aria-label="interval" {box}>{"".join(parts)}</svg>'

    def markdown(self) -> str:
        """See Piece."""
        return ""

    def _mark(self, name: str, x: float, middle: float, width: float) -> str:
        reach = 14 if self.words else 9
        line = f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - reach:g}" y2="{middle + reach:g}"/>'
        anchor = "start" if x < width / 2 else "end"
        y = middle - 19 if name == "no_effect" else middle + 28
        word = html.escape(self.words.get(name, ""))
        return line + (f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{word}</text>' if word else "")


@dataclass(frozen=True)
class Paragraph:
    """A line of pieces."""

    parts: Sequence[Inline]
    quiet: bool = False

    def html(self) -> str:
        """See Piece."""
        return f"<p{' class=quiet' if self.quiet else ''}>{''.join(map(_html, self.parts))}</p>"

    def markdown(self) -> str:
        """See Piece."""
        return "".join(_markdown(part) for part in self.parts)


@dataclass(frozen=True)
class Quote:
    """Somebody else's words."""

    text: str
    source: Link
    setting: str

    def html(self) -> str:
        """See Piece."""
        end = f"<footer>{self.source.html()}. {html.escape(self.setting)}</footer>"
        return f"<blockquote><p>{html.escape(self.text)}</p>{end}</blockquote>"

    def markdown(self) -> str:
        """See Piece."""
        return f"> {_escaped(self.text)}\n>\n> {self.source.markdown()}. {_escaped(self.setting)}"


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[Inline]

    def html(self) -> str:
        """See Piece."""
        return f"<ul>{''.join(f'<li>{_html(item)}</li>' for item in self.items)}</ul>"

    def markdown(self) -> str:
        """See Piece."""
        return "\n".join(f"* {_markdown(item)}" for item in self.items)


@dataclass(frozen=True)
class Heading:
    """A heading within a section, with a verdict if it has one."""

    text: str
    verdict: str | None = None

    def html(self) -> str:
        """See Piece."""
        badge = f" {Verdict(self.verdict).html()}" if self.verdict else ""
        return f"<h3>{html.escape(self.text)}{badge}</h3>"

    def markdown(self) -> str:
        """See Piece."""
        return f"### {_escaped(self.text)}" + (f": {_escaped(self.verdict)}" if self.verdict else "")


@dataclass(frozen=True)
class Command:
    """Lines for a shell."""

    text: str

    def html(self) -> str:
        """See Piece."""
        return f'<pre class="scroll" tabindex="0"><code>{html.escape(self.text)}</code></pre>'

    def markdown(self) -> str:
        """See Piece."""
        fence = "`" * max(3, max(map(len, re.findall("`+", self.text)), default=0) + 1)
        return f"{fence}\n{self.text}\n{fence}"


@dataclass(frozen=True)
class Grid:
    """A table. Long ones are folded away in Markdown and scroll in HTML. Columns without content are left out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Inline]]
    note: str = ""
    is_long: bool = False

    def html(self) -> str:
        """See Piece."""
        kept = self._kept([[_html(cell) for cell in row] for row in self.rows])
        kinds = {i: self._kind([row[i] for row in self.rows]) for i in kept}
        head = "".join(f'<th scope="col"{kinds[i]}>{html.escape(self.columns[i])}</th>' for i in kept)
        body = "".join(f"<tr>{''.join(f'<td{kinds[i]}>{_html(row[i])}</td>' for i in kept)}</tr>" for row in self.rows)
        shape = "scroll long" if self.is_long else "scroll"
        note = f'<p class="quiet">{html.escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="{shape}" tabindex="0" role="region" aria-label="table">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )

    def markdown(self) -> str:
        """See Piece."""
        cells = [[_markdown(cell) for cell in row] for row in self.rows]
        kept = self._kept(cells)
        rows = [
            [_escaped(self.columns[i]) for i in kept],
            ["---"] * len(kept),
            *([row[i] for i in kept] for row in cells),
        ]
        text = "\n".join(f"| {' | '.join(_in_table(cell) for cell in row)} |" for row in rows)
        if self.is_long:
            text = f"<details><summary>{len(self.rows)} rows</summary>\n\n{text}\n\n</details>"
        return text + (f"\n\n{_escaped(self.note)}" if self.note else "")

    def _kept(self, cells: Sequence[Sequence[str]]) -> list[int]:
        return [i for i in range(len(self.columns)) if any(row[i] not in ("", MISSING) for row in cells)]

    def _kind(self, column: Sequence[Inline]) -> str:
        """How the browser sets a column: numbers to the right, sentences in a block, all else on one line."""
        texts = [cell if isinstance(cell, str) else cell.text for cell in column if isinstance(cell, str | Alarm)]
        if len(texts) == len(column) and all(re.fullmatch(NUMBER, text) for text in texts):
            return ' class="number"'
        return ' class="prose"' if max(map(len, texts), default=0) > 30 else ""


@dataclass(frozen=True)
class Plot:
    """A figure; page.js draws it where its name stands."""

    figure: Figure

    def html(self) -> str:
        """See Piece."""
        caption = f"<figcaption>{html.escape(self.figure.caption)}</figcaption>" if self.figure.caption else ""
        title = html.escape(self.figure.title)
        inner = '<div class="controls"></div><div class="canvas"></div>'
        name, kind = html.escape(self.figure.name), html.escape(self.figure.kind)
        return f'<figure data-figure="{name}" class="{kind}"><h3>{title}</h3>{inner}{caption}</figure>'

    def markdown(self) -> str:
        """See Piece."""
        name, title = self.figure.name, _escaped(self.figure.title)
        caption = f"{_escaped(self.figure.caption)} " if self.figure.caption else ""
        return f"### {title}\n\n![{title}]({name}.png)\n\n{caption}([PDF]({name}.pdf))"


@dataclass(frozen=True)
class Arms:
    """One button per arm; page.js lets it hide the arm in every figure. HTML only."""

    names: Mapping[str, ArmName]  # by key

    def html(self) -> str:
        """See Piece."""
        buttons = (
            f'<button type="button" data-arm="{html.escape(key)}" aria-pressed="true">{name.html()}</button>'
            for key, name in self.names.items()
        )
        return f'<div class="chips" role="group" aria-label="arms shown">{"".join(buttons)}</div>'

    def markdown(self) -> str:
        """See Piece."""
        return ""


@dataclass(frozen=True)
class Headline:
    """The verdict, the one number behind it, and the scale it holds for."""

    verdict: str
    sentence: str
    number: str
    interval: str
    beside: str  # what the number is
    picture: Interval | None
    scale: str
    scale_note: str

    def html(self) -> str:
        """See Piece."""
        kind, sign = html.escape(self.verdict.replace(" ", "-")), SIGNS.get(self.verdict, "")
        interval = f" <small>{html.escape(self.interval)}</small>" if self.interval else ""
        number = f'<p class="number">{html.escape(self.number)}{interval}</p>' if self.number else ""
        return (
            f'<section class="headline {kind}" id="verdict">'
            f'<p class="verdict"><span aria-hidden="true">{sign}</span> {html.escape(self.verdict.capitalize())}</p>'
            f'<p class="sentence">{html.escape(self.sentence)}</p>'
            f'<div class="key"><div>{number}<p class="quiet">{html.escape(self.beside)}</p></div>'
            f"{self.picture.html() if self.picture else ''}</div>"
            f'<p class="scale"><strong>Scale: {html.escape(self.scale)}.</strong> {html.escape(self.scale_note)}</p>'
            "</section>"
        )

    def markdown(self) -> str:
        """See Piece."""
        number = f"**{_escaped(self.number)}**" if self.number else ""
        number = ", ".join(part for part in (number, _escaped(self.interval), _escaped(self.beside)) if part)
        scale = f"**Scale: {_escaped(self.scale)}.** {_escaped(self.scale_note)}"
        head = f"## Verdict: {_escaped(self.verdict)}"
        return "\n\n".join(part for part in (head, _escaped(self.sentence), number, scale) if part)


@dataclass(frozen=True)
class Section:
    """Blocks below a title."""

    title: str
    blocks: Sequence[Piece]

    @property
    def anchor(self) -> str:
        """Its address within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def as_html(
    title: str, top: str, opening: Sequence[Piece], sections: Sequence[Section], figures: Sequence[Mapping[str, Any]]
) -> str:
    """One page that needs no other file and no network. top: the small line above the title."""
    body = "".join(
        f'<section id="{each.anchor}"><h2>{html.escape(each.title)}</h2>{"".join(map(_html, each.blocks))}</section>'
        for each in sections
    )
    return Template((HERE / "page.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        top=html.escape(top),
        style=_palette() + (HERE / "page.css").read_text("utf-8"),
        opening="".join(block.html() for block in opening),
        links="".join(f'<a href="#{each.anchor}">{html.escape(each.title)}</a>' for each in sections),
        body=body,
        data=_script_safe({"palette": PALETTE, "figures": list(figures)}),
        plotly=get_plotlyjs(),
        script=(HERE / "page.js").read_text("utf-8"),
    )


def as_markdown(title: str, opening: Sequence[Piece], sections: Sequence[Section]) -> str:
    """The same for GitHub; pictures are files beside it."""
    blocks = [f"# {_escaped(title)}", *(block.markdown() for block in opening)]
    for each in sections:
        blocks += [f"## {_escaped(each.title)}", *(block.markdown() for block in each.blocks)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _html(part: Inline) -> str:
    if not isinstance(part, str):
        return part.html()
    text = html.escape(part)
    return re.sub(
        r"https?://[^\s<>&]*[^\s<>&.,;:)]", lambda url: f'<a href="{url[0]}" rel="noreferrer">{url[0]}</a>', text
    )


def _markdown(part: Inline) -> str:
    return _escaped(part) if isinstance(part, str) else part.markdown()


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: letters it would read as its own get a backslash."""
    text = re.sub(r"([\\`*\[\]<>~$|#&]|^[-+=])", r"\\\1", _one_line(text))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it means nothing


def _in_table(cell: str) -> str:
    """A cell's pipes would end it, in code too, where no backslash stands before them yet."""
    return re.sub(r"(?<!\\)\|", r"\\|", cell)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_safe(url: str) -> bool:
    return bool(re.match(r"https?://", url)) or ":" not in url


def _script_safe(value: Any) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _palette() -> str:
    """The arms' colours as CSS variables, for light and dark."""
    light, dark = (";".join(f"--arm-{i}:{colour}" for i, colour in enumerate(PALETTE[name])) for name in PALETTE)
    return (
        f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
    )


def _scale(values: Sequence[float], width: float, log: bool) -> Any:
    """Value to place between the edges, with some room at both; logarithmic where all values allow it."""
    bend = math.log if log and min(values) > 0 else float
    low, high = bend(min(values)), bend(max(values))
    room = 0.1 * (high - low) or 1.0
    return lambda value: width * (bend(value) - low + room) / (high - low + 2 * room)
