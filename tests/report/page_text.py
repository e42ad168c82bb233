"""What a page says, read without a browser."""

from html.parser import HTMLParser


class Words(HTMLParser):
    """The page's visible text, its scripts and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.inside = "", list[str](), ""
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside not in ("script", "style") else ""
