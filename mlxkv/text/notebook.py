"""A model's text as Markdown that a notebook may render. Pure."""

from __future__ import annotations

import re

from mlxkv.text.clean import clean


def notebook_markdown(text: str) -> str:
    """`text`; as a block of code if it has HTML or images, which a notebook would run or load from other hosts."""
    from markdown_it import MarkdownIt

    text = clean(text, joined=True)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {part.type for token in tokens for part in (token, *(token.children or ()))}
    if not kinds & {"html_block", "html_inline", "image"}:
        return text
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
