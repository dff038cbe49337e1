"""Completion: a whole reply as one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mlxkv.events import TokenLogprobs, ToolCall
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
