"""What the transcript is made of: blocks of text that are laid out once each. Pure values; UI thread.

A block is the unit of caching: it never changes, so its lines are rendered once per width. How a block looks is
`tui/markdown/block_renderer.py`'s business, how Markdown is cut into blocks `tui/markdown/stream_splitter.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mlxkv.stats import TurnStats

NO_MESSAGE = -1
NO_ANSWER = "no answer"  # `info` of a line about a reply without text


class Kind(Enum):
    USER = "user"  # plain text with the prompt sign
    REPLY = "reply"  # a whole reply, cut into the kinds below when it comes into view
    MARKDOWN = "markdown"  # a paragraph, table, heading, quote or list item
    CODE = "code"  # (a piece of) a fenced block, without its fences; `info` is the language
    THOUGHT = "thought"  # reasoning; `text` says how much, `detail` is what was thought
    STATS = "stats"  # the figures under a reply
    META = "meta"  # a dim line of ours
    ERROR = "error"  # a line that starts with a cross


@dataclass(frozen=True)
class ContextRow:
    """A message in the answer to /context. `number` is that of its question, `most` the tokens of the longest one."""

    number: int
    name: str
    text: str
    tokens: int
    live: int
    most: int


@dataclass(frozen=True)
class Block:
    """`tight`: no blank line above it, because it goes on with the block before (list items, long code).

    `message` counts the questions and replies of the chat from 0; a line of ours belongs to none. Everything that
    belongs to a message carries its number, figures and reasoning too: the message cursor moves by it.
    """

    kind: Kind
    text: str
    info: str = ""
    tight: bool = False
    stats: TurnStats | None = None
    kv_added: int = 0
    detail: str = ""
    folded: bool = True  # reasoning, and questions that are long
    message: int = NO_MESSAGE
    version: tuple[int, int] = (1, 1)  # of figures: which of how many replies to the same question
    context: ContextRow | None = None  # the row to draw instead of `text`
    is_open: bool = False  # Markdown that goes on growing
    source: str = field(default="", compare=False)  # the Markdown it was cut from, fences and blank lines included
