"""An HTML page as a test sees it: its tags and attributes, and whether its elements nest."""

from html.parser import HTMLParser

VOID = {"meta", "br", "input"}


class Checker(HTMLParser):
    """Collects tags and attributes, and notices elements that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(html: str) -> Checker:
    """The tags of a page whose elements all nest and end."""
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    return checker
