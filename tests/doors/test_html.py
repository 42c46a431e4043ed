"""Pages that need nothing but themselves."""

import re
from html.parser import HTMLParser

from wayfield import html


def test_a_page_is_whole_and_closed():
    parts = [
        html.paragraph("a < b & c"),
        html.code("run --this"),
        html.facts([("name", "<value>")]),
        html.table(["a", "b"], [["x", "*1"], ["real", "2"]], floor=1),
        html.picture(b"png", 'what "it" shows', b"dark"),
    ]
    page = html.page("A & B", "lead <i>", [html.section("One", *parts, html.part("Two & three", *parts[:1]))])
    open_tags = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "source"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []
    assert "a &lt; b &amp; c" in page
    assert "lead &lt;i&gt;" in page
    assert "&lt;value&gt;" in page
    assert "<b>1</b>" in page
    assert "<h3>Two &amp; three</h3><p>a &lt; b" in page
    assert "prefers-color-scheme: dark" in page


def test_nothing_is_fetched():
    page = html.page("x", "y", [html.section("z", html.picture(b"1", "p"))])
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert re.findall(r'src="([^"]{10})', page) == ["data:image"]
