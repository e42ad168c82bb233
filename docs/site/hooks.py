"""What mkdocs calls: adds the generated pages and the files that pages link to, and makes links those of the site."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from generated import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
START, LINK = "README.md", re.compile(r"(\]\(|^\[[^\]]+\]: )<?([^)>\s#]+)>?(#[\w-]+)?", re.MULTILINE)
OUTSIDE = (START, "CONTRIBUTING.md", "CHANGELOG.md")  # pages that lie beside docs/


def on_startup(command: str, dirty: bool) -> None:
    """Makes the checkout importable again: mkdocs forgets what a file of hooks adds to sys.path."""
    sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages beside docs/, the generated ones, and files of the checkout that pages link to."""
    texts = {file: Path(file.abs_src_path or "").read_text("utf-8") for file in files.documentation_pages()}
    sources = {file.src_uri: text for file, text in texts.items()}
    for name in OUTSIDE:
        sources[_in_site(ROOT / name)] = text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, _in_site(ROOT / name), content=text))
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for uri, text in sources.items():
        for target in _targets(uri, text):
            if not target.is_relative_to(DOCS) and _in_site(target) not in files.src_uris and target.is_file():
                files.append(File.generated(config, _in_site(target), abs_src_path=str(target)))
    config.nav = [_listed(entry, files) for entry in config.nav or []]
    return files


def _listed(entry: Any, files: Files) -> Any:
    """An entry of the navigation; in place of a folder, NAME/, all pages in it."""
    if isinstance(entry, dict):
        return {title: _listed(inside, files) for title, inside in entry.items()}
    if isinstance(entry, list):
        return [_listed(each, files) for each in entry]
    return [each.src_uri for each in files.documentation_pages() if f"{Path(each.src_uri).parent}/" == entry] or entry


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Returns the page with links between its place in the checkout and others made those of the site."""
    place = page.file.src_uri

    def in_site(found: re.Match[str]) -> str:
        target = _target(place, found[2])
        if target is None:
            return found[0]
        return f"{found[1]}{os.path.relpath(_in_site(target), Path(place).parent)}{found[3] or ''}"

    return LINK.sub(in_site, markdown)


def _source(uri: str) -> Path:
    """The file of the checkout that became a page of the site."""
    if uri.startswith("add/"):
        return ROOT / "CONTRIBUTING.md"
    outside = {_in_site(ROOT / name): ROOT / name for name in OUTSIDE}
    return outside.get(uri, DOCS / uri)


def _in_site(path: Path) -> str:
    """Where a file of the checkout lies in the site."""
    if path == ROOT / START:
        return "index.md"
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def _target(uri: str, link: str) -> Path | None:
    """The file of the checkout that a page's link leads to; None if it is none."""
    target = Path(os.path.normpath(_source(uri).parent / link))
    return target if "://" not in link and target.is_relative_to(ROOT) and target.exists() else None


def _targets(uri: str, text: str) -> list[Path]:
    return [target for found in LINK.finditer(text) if (target := _target(uri, found[2])) is not None]
