"""Names of branches: the question with which a branch departs, and the one after which. Pure; any thread.

One wording for the window, line mode and the command line. Titles belong to chats; a branch that the user has renamed
is called by its title.
"""

from __future__ import annotations

from typing import NamedTuple

from mlxkv.text.clean import clean

_LONGEST = 60  # characters of a question


class Departure(NamedTuple):
    """How a fork begins to differ from the chat it was made from; messages may be cut.

    Attributes:
        question: its first question of its own; "" if there is none yet.
        after: the last question that both have; "" if there is none.
        is_retry: both have the same question, and different replies.
        changes_system: its system prompt is another one.
    """

    question: str = ""
    after: str = ""
    is_retry: bool = False
    changes_system: bool = False

    @property
    def own(self) -> str:
        """`What about sinks?`, or what else it begins with."""
        if self.changes_system:
            return "with another system prompt"
        if self.is_retry:
            return f"another reply to “{_line(self.question or self.after)}”"
        return _line(self.question) or self.place

    @property
    def place(self) -> str:
        """`after “What is a KV cache?”`."""
        return f"after “{shared}”" if (shared := _line(self.after)) else "from the start"

    @property
    def text(self) -> str:
        """`What about sinks? · after “What is a KV cache?”`."""
        is_placed = self.is_retry or self.changes_system or not _line(self.question)
        return self.own if is_placed else f"{self.own} · {self.place}"


def _line(text: str) -> str:
    """The first line of a message, shortened."""
    line = next((line for line in text.splitlines() if line.strip()), "")[: 4 * _LONGEST]
    line = " ".join(clean(line).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1].rstrip()}…"
