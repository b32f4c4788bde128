"""Checks a page: every tag closed in order, and text that would break out of its place."""

from __future__ import annotations

from html.parser import HTMLParser

NASTY = "<script>alert(\"x\")</script> & 'y'"
VOID = {"meta", "img", "!doctype"}


class Checker(HTMLParser):
    """Collects tags and text; raises unless each tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    return checker
