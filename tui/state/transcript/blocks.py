"""Blocks of text that make up the transcript. Pure values; UI thread.

A block is the unit of caching: it never changes, so its lines are rendered once per width.
`tui/markdown/block_renderer.py` draws blocks, `tui/markdown/stream_splitter.py` cuts Markdown into them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mlxkv.stats import TurnStats
from mlxkv.tui.state.transcript.forgetting import Rule

NO_MESSAGE = -1
NO_ANSWER = "no answer"  # `info` of a line about a reply without text


class Kind(StrEnum):
    USER = "user"  # plain text with the prompt sign
    REPLY = "reply"  # a whole reply, cut into the kinds below when it comes into view
    MARKDOWN = "markdown"  # a paragraph, table, heading, quote or list item
    CODE = "code"  # (a piece of) a fenced block, without its fences; `info` is the language
    THOUGHT = "thought"  # reasoning: `text` is its size, `detail` the reasoning itself
    STATS = "stats"  # the figures under a reply
    META = "meta"  # a dim notice
    OUTPUT = "output"  # a row of the pane: `info` is the name before it
    ERROR = "error"  # a line that starts with a cross


@dataclass(frozen=True)
class ContextRow:
    """A line of /context. `number` is that of its question (0: none), `most` the tokens of the longest message,
    `waiting` those yet to be prefilled, `note` the cells of the longest note of all rows."""

    number: int
    name: str
    text: str
    tokens: int
    live: int
    most: int
    waiting: int = 0
    note: int = 0


@dataclass(frozen=True)
class Block:
    """`tight`: no blank line above it, because it continues the block before (list items, long code).

    `message` is the index of the message it belongs to, which the message cursor moves by; stats and reasoning have
    that of their reply, notices have none.
    """

    kind: Kind
    text: str
    info: str = ""
    tight: bool = False
    stats: TurnStats | None = None
    kv_added: int = 0
    detail: str = ""
    context: ContextRow | None = None  # drawn instead of `text`
    folded: bool = True  # for reasoning and long questions
    message: int = NO_MESSAGE
    version: tuple[int, int] = (1, 1)  # of stats: number and count of the replies to the same question
    asked: tuple[int, int] = (1, 1)  # of stats: the same of the questions in its place
    made_with: str = ""  # of stats: the model or the settings in which the reply differs from the other versions
    is_open: bool = False  # Markdown that is still growing
    is_muted: bool = False  # the model no longer attends to it
    rule: Rule | None = None  # above it, or in it after `rule_at` characters of its source
    rule_at: int = 0
    source: str = field(default="", compare=False)  # the Markdown it was cut from, fences and blank lines included
