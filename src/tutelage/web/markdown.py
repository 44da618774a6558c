"""Markdown from models and people -> HTML that a page may contain."""

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")


def markdown(text: str) -> Markup:
    """Render Markdown as sanitised HTML: no scripts, and nothing loaded from elsewhere."""
    return Markup(nh3.clean(_markdown.render(text), link_rel="noopener noreferrer nofollow"))
