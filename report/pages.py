"""Results as one HTML page and as GitHub's Markdown, by the templates in templates/.

HTML is escaped by Jinja, wherever it stands. Markdown has no such thing: its templates say |md of every text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # plotly 6 has no types

from report import content, grids
from report.figures import PALETTE
from report.interactive import interactive
from report.intervals import picture
from report.numbers import MISSING
from report.results import Results
from report.sources import ADDRESS

TEMPLATES = Path(__file__).parent / "templates"
SIGNS = {
    "reproduced": "✓",
    "weaker than claimed": "<",
    "no effect or worse": "✗",
    "undecided": "?",
    "out of regime": "⊘",
}


def as_html(results: Results, slots: Mapping[str, int]) -> str:
    """One page that needs no other file and no network. slots: of arms in the palette."""
    return shown(
        "page.html.jinja",
        results=results,
        sections=content.sections(results, slots),
        first=content.first_screen(results),
        chips=content.arms_shown(results, slots),
        signs=SIGNS,
        style=palette_style() + (TEMPLATES / "page.css").read_text("utf-8"),
        data={"palette": PALETTE, "figures": [interactive(each, slots) for each in results.figures]},
        plotly=get_plotlyjs(),
        script=(TEMPLATES / "page.js").read_text("utf-8"),
    )


def as_markdown(results: Results, slots: Mapping[str, int]) -> str:
    """The same for GitHub; pictures are files beside it."""
    sections, first = content.sections(results, slots), content.first_screen(results)
    return shown("page.md.jinja", results=results, sections=sections, first=first)


def shown(template: str, **values: Any) -> str:
    """The template with the values."""
    return _environment().get_template(template).render(**values).strip() + "\n"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"md": _escaped, "code": _code, "fenced": _fenced, "in_table": _in_table, "script": _script_safe}
    made.filters |= {"linked": _linked, "address": lambda url: re.sub("[<>]", "", url)}
    made.tests["safe_url"] = _is_safe
    made.globals |= {
        "MISSING": MISSING,
        "CONTINUES": content.CONTINUES,
        "n_colours": len(PALETTE["light"]),
        "measures_grid": grids.measures,
        "table_grid": grids.of_table,
        "picture": picture,
    }
    return made


def _linked(text: str) -> Markup:
    """Escaped for HTML, with addresses as links."""
    link = r'<a href="\g<0>" rel="noreferrer">\g<0></a>'
    return Markup(ADDRESS.sub(link, str(escape(text))))


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: letters it would read as its own get a backslash."""
    text = re.sub(r"([\\`*\[\]<>~$|#&]|^[-+=])", r"\\\1", _one_line(text))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it means nothing


def _code(text: str) -> str:
    """Text in a typewriter's letters, for Markdown."""
    fence = "`" * (_longest_fence(text) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{_one_line(text)}{pad}{fence}"


def _fenced(text: str) -> str:
    """Lines for a shell, for Markdown."""
    fence = "`" * max(3, _longest_fence(text) + 1)
    return f"{fence}\n{text}\n{fence}"


def _longest_fence(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _in_table(cell: str) -> str:
    """A cell's pipes would end it, in code too, where no backslash stands before them yet."""
    return re.sub(r"(?<!\\)\|", r"\\|", cell)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_safe(url: str | None) -> bool:
    """Whether a link may lead there: to the web, or to a file beside the report."""
    return url is not None and url != "" and (bool(re.match(r"https?://", url)) or ":" not in url)


def _script_safe(value: Any) -> Markup:
    """Returns JSON that cannot end the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def palette_style() -> str:
    """The arms' colours as CSS variables, for light and dark."""
    light, dark = (_variables(PALETTE[name]) for name in ("light", "dark"))
    return (
        f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
    )


def _variables(colours: Sequence[str]) -> str:
    return ";".join(f"--arm-{i}:{colour}" for i, colour in enumerate(colours))
