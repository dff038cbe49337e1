"""Completion: a whole reply as one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.events import ToolCall
from mlxkv.stats import TurnStats


@dataclass(frozen=True)
class Completion:
    """The result of `Model.generate`, of each prompt of `Model.generate_batch`, and of `Chat.ask`.

    Attributes:
        text: the new text, without the prompt.
        tokens: its token ids, an end-of-text id included.
        stats: the figures.
        thinking: the reasoning before the text, of a list of messages or a chat.
        tool_calls: the tools that a chat's reply calls.
    """

    text: str
    tokens: tuple[int, ...]
    stats: TurnStats
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def finish_reason(self) -> str:
        """Why it ended, a FinishReason."""
        return self.stats.finish_reason
