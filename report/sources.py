"""Where a source that is named in words stands on the web."""

import re

# owner/name#12, owner/name PR 12 or PR #12, owner/name issue 12: the number's page, which GitHub serves for both.
GITHUB = re.compile(r"\b([A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*)(?:#|,? (?:PR|issue) #?)(\d+)\b")
ARXIV = re.compile(r"\barXiv[: ]\s?(\d{4}\.\d{4,5})", re.IGNORECASE)
ADDRESS = re.compile(r"https?://[^\s<>&]*[^\s<>&.,;:)]")


def address(source: str) -> str | None:
    """The address in it, else that of the arXiv number or of the GitHub thread it names; None if it names none."""
    if found := ADDRESS.search(source):
        return found[0]
    if found := ARXIV.search(source):
        return f"https://arxiv.org/abs/{found[1]}"
    if found := GITHUB.search(source):
        return f"https://github.com/{found[1]}/issues/{found[2]}"
    return None
