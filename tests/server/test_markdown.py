"""Markdown of a model becomes HTML that shows it and can do nothing."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.server.markdown import MAX_MARKDOWN, render, render_blocks

HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x)",
    "![x](https://tracker.invalid/a.png)",
    "<svg/onload=alert(1)>",
    "<iframe src=//evil.invalid></iframe>",
    '```"><script>alert(1)</script>\nx\n```',
    "```html\n<script>alert(1)</script>\n```",
    "[x]: javascript:alert(1)\n\n[x]",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>*{display:none}</style>",
    '| <img onerror=x> |\n|--|\n| <b style="x"> |',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<https://x.invalid/\"onmouseover='alert(1)'>",
]
TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)((?:\s+[a-z]+=\"[^\"]*\")*)>")
ALLOWED = "a blockquote br button code div em h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul"


def harmless(html: str) -> bool:
    """Every `<` opens or closes a tag of ours, with attributes of ours, and every link leads elsewhere by http."""
    rest = TAG.sub("", html)
    tags = {match.group(2) for match in TAG.finditer(html)}
    attributes = {name for match in TAG.finditer(html) for name in re.findall(r"([a-z]+)=\"", match.group(3))}
    links = re.findall(r'href="([^"]*)"', html)
    fine = all(link.lower().startswith(("http://", "https://", "mailto:")) for link in links)
    known = {"href", "title", "class", "rel", "target", "start", "type", "tabindex"}
    return "<" not in rest and tags <= set(ALLOWED.split()) and attributes <= known and fine


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(text: str) -> None:
    assert harmless(render(text)), render(text)
    assert harmless(render(f"- > {text}\n\n1. {text}")), render(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([*HOSTILE, "`", "```", "|", "\n", "**", "<", ">", "\\", "[", "](", "#", "a ", "&"]), max_size=9
    )
)
def test_no_mixture_does_anything(parts: list[str]) -> None:
    assert harmless(render("".join(parts)))


def test_what_it_shows() -> None:
    html = render("# Title\n\n**bold** *soft* ~~gone~~ `x < 1`\nnext\n\n3. three\n\n[site](https://a.org)")
    assert "<h2>Title</h2>" in html
    assert "<strong>bold</strong> <em>soft</em> <s>gone</s> <code>x &lt; 1</code><br>" in html
    assert '<ol start="3">' in html
    assert 'href="https://a.org"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


def test_html_is_shown_as_it_was_written() -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in render("<script>alert(1)</script>")
    assert "&lt;b&gt;x&lt;/b&gt;" in render("a <b>x</b>")


def test_code_is_coloured_by_classes_and_has_its_language() -> None:
    html = render("```python\ndef f():\n    return '<'\n```")
    assert '<span class="code-language">python</span>' in html
    assert '<span class="k">def</span>' in html
    assert "style=" not in html
    assert "&lt;" in html
    assert "<code>text</code>" in render("```no-such-language\ntext\n```").replace("\n", "")


def test_tables_align_by_class() -> None:
    html = render("| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert '<td class="align-center">1</td>' in html
    assert '<td class="align-right">2</td>' in html


def test_links_into_this_server_are_no_links() -> None:
    for text in ("[x](/api/export)", "[x](//evil.invalid)", "[x](#loop)", "![x](/api/export)"):
        assert "href" not in render(text)


def test_only_the_end_changes_while_a_text_grows() -> None:
    text = "# One\n\ntwo **three\n\n```python\nx = 1\n```\n\n| a |\n|--|\n| b |\n\nend"
    whole = render_blocks(text)
    assert len(whole) == 5
    assert "".join(whole) == render(text)
    for length in range(len(text)):
        blocks = render_blocks(text[:length])
        assert blocks[:-2] == whole[: max(0, len(blocks) - 2)]


def test_endless_text_is_shown_as_it_is() -> None:
    (block,) = render_blocks("<b>" * MAX_MARKDOWN)
    assert block.startswith("<pre><code>&lt;b&gt;")
