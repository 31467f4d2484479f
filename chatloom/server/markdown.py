"""Safe HTML of what a model, or a person, wrote in Markdown.

CommonMark with tables and strikethrough (`markdown-it-py`), code coloured by classes (`pygments`). HTML in
the text stays text: the parser escapes it. What the parser gives is nevertheless cleaned by an allow-list (`nh3`), so
that two mistakes would be needed before anything that a model writes could run. Images become links, because fetching
one would tell its server that, and when, the answer was read.

A text that grows is rendered as a list of blocks: while it streams only the last ones change.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

MAX_COLOURED = 20_000  # characters of code; more is shown in one colour
MAX_MARKDOWN = 200_000  # characters; a longer text is shown as it is
_SCHEMES = {"http", "https", "mailto"}

_PROSE = {"p", "br", "hr", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "a", "ul", "ol", "li", "blockquote"}
_TAGS = _PROSE | {"code", "pre", "span", "div", "button", "table", "thead", "tbody", "tr", "th", "td"}
_CLASSES = {"code", "code-bar", "code-language", "code-copy", "table", "image-link", "align-center", "align-right"}


def render(text: str) -> str:
    """The whole text as one piece of safe HTML."""
    return "".join(render_blocks(text))


def render_blocks(text: str) -> list[str]:
    """The text's paragraphs, lists, tables and code, each as safe HTML that stands alone."""
    if len(text) > MAX_MARKDOWN:
        return [f"<pre><code>{escape(text)}</code></pre>"]
    parser = _parser()
    environment: EnvType = {}
    tokens = parser.parse(text, environment)
    return [_clean(parser.renderer.render(block, parser.options, environment)) for block in _blocks(tokens)]


def forget() -> None:
    """Keep nothing of what was rendered; it is remembered for texts that grow."""
    _clean.cache_clear()
    _coloured.cache_clear()


def _blocks(tokens: Sequence[Token]) -> list[list[Token]]:
    blocks: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            blocks.append([])
        blocks[-1].append(token)
        depth += token.nesting
    return blocks


@lru_cache(maxsize=512)
def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=_TAGS,
        attributes={"a": {"href", "title"}, "ol": {"start"}, "button": {"type"}, "pre": {"tabindex"}},
        attribute_filter=_kept,
        allowed_classes={tag: _CLASSES | _pygments_classes() for tag in _TAGS - {"p", "br"}},
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _kept(tag: str, name: str, value: str) -> str | None:
    """Only links to elsewhere: a relative one would be a way into this server's own addresses."""
    if (tag, name) == ("a", "href") and value.split(":", 1)[0].lower() not in _SCHEMES:
        return None
    return value


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True}, renderer_cls=_Renderer)
    return parser.enable(["table", "strikethrough"])


class _Renderer(RendererHTML):
    """Code with a bar that names its language and copies it, tables that scroll, images as links."""

    def heading_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Below the page's own, which is the conversation's title."""
        return f"<{_heading(tokens[index])}>"

    def heading_close(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """The end of it."""
        return f"</{_heading(tokens[index])}>"

    def fence(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """A fenced block."""
        return _code(tokens[index].content, tokens[index].info.strip().split(" ")[0][:30])

    def code_block(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """An indented block."""
        return _code(tokens[index].content, "")

    def table_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """A table lies in a box of its own, which scrolls sideways on a narrow screen."""
        return '<div class="table"><table>'

    def table_close(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """The end of both."""
        return "</table></div>"

    def th_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Alignment by class: a style attribute would not pass the page's policy."""
        return f"<th{_aligned(tokens[index])}>"

    def td_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """See `th_open`."""
        return f"<td{_aligned(tokens[index])}>"

    def image(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """A link to the picture."""
        token = tokens[index]
        address = escape(str(token.attrs.get("src", "")), quote=True)
        return f'<a class="image-link" href="{address}">{escape(token.content or address)}</a>'


def _heading(token: Token) -> str:
    return f"h{min(6, int(token.tag[1:]) + 1)}"


def _aligned(token: Token) -> str:
    style = str(token.attrs.get("style", ""))
    side = style.removeprefix("text-align:")
    return f' class="align-{side}"' if side in ("center", "right") else ""


def _code(content: str, language: str) -> str:
    label = f'<span class="code-language">{escape(language)}</span>'
    bar = f'<div class="code-bar">{label}<button type="button" class="code-copy"></button></div>'
    return f'<div class="code">{bar}<pre tabindex="0"><code>{_coloured(content, language)}</code></pre></div>'


@lru_cache(maxsize=256)
def _coloured(content: str, language: str) -> str:
    if not language or len(content) > MAX_COLOURED:
        return escape(content)
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return escape(content)
    return str(highlight(content, lexer, HtmlFormatter(nowrap=True)))


@cache
def _pygments_classes() -> set[str]:
    from pygments.token import STANDARD_TYPES

    return {name for name in STANDARD_TYPES.values() if name}
