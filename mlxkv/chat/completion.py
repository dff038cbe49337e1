"""Completion: a whole reply as one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.arguments import shown
from mlxkv.events import TokenLogprobs, ToolCall
from mlxkv.stats import TurnStats, plural
from mlxkv.text.notebook import notebook_markdown

_MOST_SHOWN = 28  # characters of a text in a repr


@dataclass(frozen=True)
class Completion:
    """The result of `Model.generate`, of each prompt of `Model.generate_batch`, and of `Chat.ask`. `str` is the text.

    Attributes:
        text: the new text, without the prompt.
        tokens: its token ids, an end-of-text id included.
        stats: the figures.
        thinking: the reasoning before the text, of a list of messages or a chat.
        tool_calls: the tools that a chat's reply calls.
        logprobs: of `tokens`, if they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    stats: TurnStats
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def finish_reason(self) -> str:
        """Why it ended, a FinishReason."""
        return self.stats.finish_reason

    def __repr__(self) -> str:
        start = self.text if len(self.text) <= _MOST_SHOWN else f"{self.text[: _MOST_SHOWN - 1]}…"
        return f"<Completion {shown(start)} {plural(len(self.tokens), 'token')}, {self.stats.finish_reason}>"

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        """The text, for a notebook."""
        return notebook_markdown(self.text)
