"""A chat as Markdown, for people: whatever a message contains, it cannot swallow or imitate the next one.

A reply may end inside a code fence or an HTML comment, or contain a heading that looks like a speaker's. Open blocks
are closed and such headings escaped; a CommonMark parser checks the result. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

from mlxkv.store.records import SessionRecord
from mlxkv.text.clean import clean

_SPEAKERS = ("system", "user", "assistant", "tool")
_HTML_ENDS = ("-->", "?>", ">", "]]>", "</script>", "</pre>", "</style>", "</textarea>")  # CommonMark 4.6, 1 to 5
_NEXT = "\n\n## next\n"


def to_markdown(record: SessionRecord, *, joined: bool = False) -> str:
    """The chat with a heading `## user`, `## assistant`, ... before each message. Control characters are made visible.

    `joined`: for a file, in which joined emoji stay joined; see `clean`.
    """
    safe, parser = partial(clean, joined=joined), MarkdownIt("commonmark")
    title = " ".join(safe(record.title).split())
    title = re.sub(r"(#+)$", r"\\\1", title)  # else these would only close the heading
    out = [f"# {title}", f"{safe(record.model.name)} · {len(record.log):,} tokens"]
    if record.system is not None:
        out += ["## system", _closed(parser, safe(record.system))]
    for turn in record.turns:
        out.append(f"## {safe(turn.role)}")
        if turn.thinking:
            out.append("\n".join(f"> {line}".rstrip() for line in safe(turn.thinking).split("\n")))
        out.append(_closed(parser, safe(turn.text), " …" if turn.state != "done" else ""))
        out += [f"→ {' '.join(safe(f'{call.name}({call.arguments})').split())}" for call in turn.tool_calls]
    return "\n\n".join(out) + "\n"


def _closed(parser: MarkdownIt, text: str, ending: str = "") -> str:
    """`text` and `ending`, closed and escaped so that the next message starts outside of it."""
    text = _without_speakers(parser, text)
    for close in _closings(parser, text):
        if _is_closed(parser, closed := f"{text}{close}"):
            break
    else:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        closed = f"{fence}\n{text}\n{fence}"
    if not ending:
        return closed
    is_paragraph = [token.type for token in parser.parse(closed)][-1:] == ["paragraph_close"]
    return f"{closed}{ending}" if is_paragraph or not closed else f"{closed}\n\n{ending.strip()}"


def _closings(parser: MarkdownIt, text: str) -> Iterator[str]:
    yield ""
    last = next((token for token in reversed(parser.parse(text)) if token.level == 0), None)
    if last is not None and last.type == "fence":
        yield f"\n{last.markup}"
    yield from (f"\n{end}" for end in _HTML_ENDS)


def _is_closed(parser: MarkdownIt, text: str) -> bool:
    return [token.content for token in _headings(parser.parse(text + _NEXT))][-1:] == ["next"]


def _headings(tokens: list[Token]) -> Iterator[Token]:
    """The contents of second-level headings outside of lists and quotations."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2" and opening.level == 0:
            yield inline


def _without_speakers(parser: MarkdownIt, text: str) -> str:
    """`text` with `## user` as `\\## user`, and a line of hyphens under it as `\\---`."""
    lines = text.split("\n")
    while True:
        found = [h.map for h in _headings(parser.parse("\n".join(lines))) if _shown(h) in _SPEAKERS]
        if not found:
            return "\n".join(lines)
        for place in found:
            assert place is not None
            first, end = place  # of the inline content: a line of hyphens comes after it
            at = first if lines[first].lstrip().startswith("#") else end
            lines[at] = re.sub(r"^(\s*)", r"\1\\", lines[at])


def _shown(heading: Token) -> str:
    """A heading's text as displayed, without emphasis and a final colon."""
    return "".join(part.content for part in heading.children or ()).strip().rstrip(":").casefold()
