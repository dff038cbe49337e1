"""/v1/chat/completions: the request to a Job, and its events to chunks or to one response. No HTTP, no MLX."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.server.errors import invalid
from mlxkv.server.jobs import Accepted, Call, Ended, Job, JobEvent, Piece, TokenScore
from mlxkv.server.openai.fields import Fields
from mlxkv.server.openai.head import Head
from mlxkv.server.openai.messages import messages_of
from mlxkv.server.openai.parameters import (
    MAX_REPLIES,
    MAX_TOP_LOGPROBS,
    check_model,
    refuse_the_rest,
    sampling_of,
    stream_of,
    thinking_of,
)
from mlxkv.server.openai.tools import schema_of, tools_of
from mlxkv.server.openai.usage import usage
from mlxkv.server.sse import COMMENT, DONE, data, with_keep_alives


@dataclass(frozen=True)
class ChatRequest:
    """A parsed request.

    Attributes:
        model: as named; None: the loaded one.
        has_usage: the stream ends with the usage.
        one_call: at most one tool is called in a reply.
    """

    job: Job
    model: str | None
    stream: bool = False
    has_usage: bool = False
    one_call: bool = False


def chat_request(table: Fields) -> ChatRequest:
    """Parse the request.

    Raises:
        ApiError: a field that cannot be honoured.
    """
    model = check_model(table)
    messages, sampling = messages_of(table), sampling_of(table, ("max_completion_tokens", "max_tokens"))
    wants_scores, num_top = table.flag("logprobs", False), table.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if num_top is not None and not wants_scores:
        raise invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`.")
    tools, schema = tools_of(table), schema_of(table.table("response_format"))
    if tools and schema is not None:
        raise invalid("response_format", "A reply that follows a schema cannot call tools; leave out one of them.")
    stream, has_usage = stream_of(table)
    table.only("modalities", (["text"],), "replies are text")
    table.refuse("audio", "prediction", "web_search_options", why="replies are generated text and tool calls")
    table.refuse("functions", "function_call", why="they were replaced by `tools` and `tool_choice`")
    job = Job(
        messages,
        sampling=sampling,
        n=table.whole("n", 1, MAX_REPLIES, 1),
        think=thinking_of(table),
        tools=tools,
        schema=schema,
        logprobs=(num_top or 0) if wants_scores else None,
    )
    one_call = table.flag("parallel_tool_calls") is False
    refuse_the_rest(table)
    return ChatRequest(job, model, stream, has_usage, one_call)


async def chat_response(
    events: AsyncIterator[JobEvent], asked: ChatRequest, reply_id: str, created: int, model: str
) -> dict[str, Any]:
    """The whole response."""
    ends: list[Ended] = []
    async for event in events:
        if isinstance(event, Ended):
            ends.append(event)
    head, choices = Head(reply_id, created, model), []
    for end in sorted(ends, key=lambda end: end.index):
        calls = end.calls[:1] if asked.one_call else end.calls
        message: dict[str, Any] = {"role": "assistant", "content": end.text or (None if calls else ""), "refusal": None}
        if end.thinking:
            message["reasoning_content"] = end.thinking
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        scores = _scores(end.scores) if asked.job.logprobs is not None else None
        choices.append({"index": end.index, "message": message, "logprobs": scores, "finish_reason": end.reason})
    return head.table("chat.completion", choices, usage=usage(ends), system_fingerprint=None)


async def chat_chunks(
    events: AsyncGenerator[JobEvent], asked: ChatRequest, reply_id: str, created: int, model: str, keep_alive: float
) -> AsyncGenerator[str]:
    """The stream: chunks as server-sent events, with comments while a prompt waits or is prefilled."""
    head, ends = Head(reply_id, created, model), list[Ended]()
    usual: dict[str, Any] = {"usage": None} if asked.has_usage else {}
    has_begun: set[int] = set()

    def chunk(index: int, delta: Mapping[str, Any], reason: str | None = None, scores: Any = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}
        return data(head.table("chat.completion.chunk", [choice], system_fingerprint=None, **usual))

    async for event in with_keep_alives(events, keep_alive):
        match event:
            case None:
                yield COMMENT
            case Piece(index, text, thinking):
                if index not in has_begun:
                    has_begun.add(index)
                    yield chunk(index, {"role": "assistant", "content": ""})
                scores = _scores(event.scores) if asked.job.logprobs is not None else None
                yield chunk(index, {"reasoning_content" if thinking else "content": text}, None, scores)
            case Ended(index, reason):
                ends.append(event)
                if index not in has_begun:
                    yield chunk(index, {"role": "assistant", "content": ""})
                calls = event.calls[:1] if asked.one_call else event.calls
                for n, call in enumerate(calls):
                    yield chunk(index, {"tool_calls": [{"index": n, **_call(call)}]})
                yield chunk(index, {}, reason)
            case Accepted() | _:
                pass
    if asked.has_usage:
        yield data(head.table("chat.completion.chunk", [], usage=usage(ends), system_fingerprint=None))
    yield DONE


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
    def entry(text: str, raw: bytes, logprob: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(raw), "logprob": logprob}

    content = [
        entry(score.text, score.data, score.logprob) | {"top_logprobs": [entry(*top) for top in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}
