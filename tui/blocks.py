"""What the transcript is made of: blocks of text that are laid out once each. Pure values; UI thread.

A block is the unit of caching: it never changes, so its lines are rendered once per width. How a block looks is
`render.py`'s business, how Markdown is cut into blocks `splitter.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mlxkv.stats import TurnStats


class Kind(Enum):
    USER = "user"  # plain text with the prompt sign
    MARKDOWN = "markdown"  # a paragraph, table, heading, quote or list item
    CODE = "code"  # (a piece of) a fenced block, without its fences; `info` is the language
    THOUGHT = "thought"  # folded reasoning; `text` says how much
    STATS = "stats"  # the figures under a reply
    META = "meta"  # a dim line of ours
    ERROR = "error"  # a line that starts with a cross


@dataclass(frozen=True)
class Block:
    """`tight`: no blank line above it, because it goes on with the block before (list items, long code)."""

    kind: Kind
    text: str
    info: str = ""
    tight: bool = False
    stats: TurnStats | None = None
    kv_added: int = 0
