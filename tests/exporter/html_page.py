"""A page of HTML, read as a browser would."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


class Read(HTMLParser):
    """A page's text, tags and references; tags that do not fit together are an error."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.references, self.words, self._open = Counter(), [], [], []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.references += [
            value for name, value in attributes if name in ("href", "src", "xlink:href", "data")
        ]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words)
