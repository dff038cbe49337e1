"""The pages of documentation, parsed: links, anchors, headings, code blocks. Used by the tests of this folder.

Markdown is read by markdown-it, as GitHub and the site read it. A block has a kind (the word after its fence).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "examples" / "README.md"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced or indented block. `line` is the number of its first line of code."""

    page: Path
    line: int
    kind: str
    code: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def blocks(page: Path) -> Iterator[Block]:
    for token in tokens(page):
        if token.type in ("fence", "code_block") and token.map:
            words = token.info.split()
            yield Block(page, token.map[0] + 2, words[0] if words else "", token.content)


def links(page: Path) -> Iterator[str]:
    """The targets of links and images, those of HTML included."""
    for token in inline(page):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src") or "")
    html = "".join(t.content for t in [*tokens(page), *inline(page)] if t.type in ("html_block", "html_inline"))
    html = re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL)
    yield from re.findall(r'(?:href|src|srcset)="([^"]*)"', html)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of the headings, by GitHub's rule: lower case, no punctuation, hyphens for spaces."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    for heading, content in pairwise(tokens(page)):
        if heading.type == "heading_open":
            text = "".join(child.content for child in content.children or () if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return frozenset(found)
