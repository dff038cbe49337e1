"""What crosses between the event loop and the MLX thread: a Job in, JobEvents out. Frozen plain values; any thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxkv.stats import TurnStats


@dataclass(frozen=True)
class Call:
    """A call of a tool that the model asks for. `arguments` is JSON text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """One message as a client sent it, with `developer` as system.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        text: its text parts, one after the other.
        thinking: the reasoning before the text of a reply.
        calls: of a reply.
        call_id: of a tool's result.
    """

    role: str
    text: str
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""

    def is_same(self, other: ChatMessage) -> bool:
        """Whether a client means the same message: it may have lost blanks around the text, and the reasoning."""
        if (self.role, self.text.strip(), self.call_id) != (other.role, other.text.strip(), other.call_id):
            return False
        return [(c.name, c.arguments, c.id) for c in self.calls] == [(c.name, c.arguments, c.id) for c in other.calls]


@dataclass(frozen=True)
class Job:
    """One reply, or `n` of them, to one prompt.

    Attributes:
        messages: a conversation, which ends with what is to be answered; or
        prompt: raw text or token ids to continue.
        sampling: SamplingParams fields that the client named.
        n: how many replies.
        think: the template's switch for reasoning.
        tools: JSON schemas of the tools that may be called, as chat templates take them.
        schema: the JSON schema that the reply must satisfy.
        logprobs: how many of the likeliest tokens are reported beside each token; None: no log-probabilities.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    think: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    schema: Any = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Accepted:
    """The prompt was checked, and waits for its turn. `num_tokens` are those of the prompt."""

    num_tokens: int


@dataclass(frozen=True)
class Prefilling:
    """`done` of `total` tokens are prefilled; `cached` were there."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of one token, and of the likeliest ones in its place."""

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of reply number `index`; `restarts` as in TextDelta."""

    index: int
    text: str
    thinking: bool = False
    restarts: bool = False
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The end of reply number `index`: the whole of it.

    Attributes:
        reason: OpenAI's: "stop", "length" or "tool_calls".
        stats: the figures; `stats.prompt_tokens` counts cached ones.
    """

    index: int
    reason: str
    text: str
    thinking: str
    stats: TurnStats
    calls: tuple[Call, ...] = ()
    scores: tuple[TokenScore, ...] = ()


JobEvent = Accepted | Prefilling | Piece | Ended
