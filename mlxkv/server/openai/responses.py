"""/v1/responses, its text and tool part: the request to a Job, and its events to a response or to typed events.

Nothing is stored, so that every request has its whole input. No HTTP, no MLX.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxkv.server.errors import ApiError, invalid, of_error, shown
from mlxkv.server.jobs import Call, ChatMessage, Ended, Job, JobEvent, Piece
from mlxkv.server.openai.fields import Fields
from mlxkv.server.openai.messages import checked, json_text, text_of
from mlxkv.server.openai.parameters import check_model, refuse_the_rest, sampling_of
from mlxkv.server.openai.tools import schema_of, tools_of
from mlxkv.server.openai.usage import counts
from mlxkv.server.sse import COMMENT, data, with_keep_alives
from mlxkv.text.encoding import well_formed

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class ResponseRequest:
    """A parsed request. `echoed`: fields that the response repeats; else as of ChatRequest."""

    job: Job
    model: str | None
    stream: bool
    one_call: bool
    echoed: Mapping[str, Any]


def response_request(table: Fields) -> ResponseRequest:
    """Parse the request.

    Raises:
        ApiError: a field that cannot be honoured.
    """
    model, instructions = check_model(table), table.text("instructions")
    items = _input(table)
    system = [ChatMessage("system", well_formed(instructions))] if instructions else []
    messages = checked([*system, *items], "input")
    sampling = sampling_of(table, ("max_output_tokens",))
    tools = tools_of(table, is_flat=True)
    text = table.table("text")
    schema = None
    if text is not None:
        schema = schema_of(text.table("format"))
        text.only("verbosity", ("medium",), "models have no such switch")
        text.end()
    if tools and schema is not None:
        raise invalid("text.format", "A reply that follows a schema cannot call tools; leave out one of them.")
    think = _reasoning(table.table("reasoning"))
    table.only("truncation", ("disabled",), "a prompt that is too long is refused, not cut")
    table.only("background", (False,), "a reply is generated while the client waits")
    table.only("include", ([],), "nothing else can be included")
    table.only("top_logprobs", (0,), "use /v1/chat/completions for log-probabilities")
    table.refuse("previous_response_id", "conversation", "prompt", why="nothing is stored; send the whole input")
    table.refuse("max_tool_calls", "context_management", why="tools are called by the client")
    stream, options = table.flag("stream", False), table.table("stream_options")
    if options is not None:
        options.only("include_obfuscation", (False,), "no padding is sent")
        options.end()
    one_call = table.flag("parallel_tool_calls") is False
    echoed = {
        "instructions": instructions,
        "max_output_tokens": sampling.get("max_tokens"),
        "temperature": sampling.get("temperature"),
        "top_p": sampling.get("top_p"),
        "tools": table.any("tools") or [],
        "tool_choice": table.any("tool_choice") or "auto",
        "parallel_tool_calls": not one_call,
        "metadata": table.any("metadata") or {},
        "text": table.any("text") or {"format": {"type": "text"}},
        "reasoning": table.any("reasoning") or {"effort": None, "summary": None},
        "truncation": "disabled",
        "previous_response_id": None,
        "store": False,
    }
    refuse_the_rest(table)
    job = Job(messages, sampling=sampling, think=think, tools=tools, schema=schema)
    return ResponseRequest(job, model, stream, one_call, echoed)


def _reasoning(table: Fields | None) -> bool | None:
    if table is None:
        return None
    effort = table.any("effort")
    if effort not in (None, "none", "minimal", "low", "medium", "high", "xhigh"):
        raise table.wrong("effort", effort, "none, minimal, low, medium, high or xhigh")
    table.only("summary", ("auto",), "the reasoning itself is returned")
    table.only("generate_summary", ("auto",), "the reasoning itself is returned")
    table.end()
    return None if effort is None else effort != "none"


def _input(table: Fields) -> list[ChatMessage]:
    value = table.any("input")
    if isinstance(value, str) and value:
        return [ChatMessage("user", well_formed(value))]
    if not isinstance(value, list) or not value:
        raise table.wrong("input", value, "text, or a list of items")
    messages: list[ChatMessage] = []
    thinking = ""
    for i, raw in enumerate(value):
        item = Fields(raw, f"input[{i}]")
        kind = item.any("type") or "message"
        item.labels("id", "status")
        if kind == "reasoning":
            thinking = _reasoning_text(item)
        elif kind == "function_call":
            call = Call(item.text("name", ""), json_text(item, "arguments"), item.text("call_id", ""))
            _add_call(messages, call, thinking)
            thinking = ""
        elif kind == "function_call_output":
            messages.append(ChatMessage("tool", _output(item), call_id=item.text("call_id", "")))
        elif kind == "message":
            role = item.text("role", "")
            if role not in _ROLES:
                raise item.wrong("role", role, f"one of {', '.join(_ROLES)}")
            item.labels("phase")
            text = text_of(item, "content")
            messages.append(
                ChatMessage("system" if role == "developer" else role, text, thinking if role == "assistant" else "")
            )
            thinking = ""
        else:
            raise invalid(
                item.path("type"),
                f"An input item is {shown(kind)}; only messages, reasoning, calls and their outputs are taken.",
                "unsupported_content",
            )
        item.end()
    return messages


def _reasoning_text(item: Fields) -> str:
    item.refuse("encrypted_content", why="reasoning is sent as it is")
    item.items("summary")
    item.labels("summary")
    return text_of(_with_text_parts(item), "content", may_be_missing=True)


def _with_text_parts(item: Fields) -> Fields:
    """The item with `reasoning_text` parts as text parts."""
    parts = [
        {**part, "type": "text"} if isinstance(part, dict) and part.get("type") == "reasoning_text" else part
        for part in item.items("content")
    ]
    return Fields({"content": parts or None}, item.path("content"))


def _output(item: Fields) -> str:
    return text_of(item, "output")


def _add_call(messages: list[ChatMessage], call: Call, thinking: str) -> None:
    """A call belongs to the assistant's message before it."""
    if messages and messages[-1].role == "assistant":
        last = messages[-1]
        messages[-1] = replace(last, calls=(*last.calls, call), thinking=last.thinking or thinking)
    else:
        messages.append(ChatMessage("assistant", "", thinking, (call,)))


# -- the response ------------------------------------------------------------------------------------------------------


def _response(
    asked: ResponseRequest, reply_id: str, created: int, model: str, status: str, output: list[Any],
    end: Ended | None = None, error: ApiError | None = None,
) -> dict[str, Any]:  # fmt: skip
    incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
    found: dict[str, Any] = {
        "id": reply_id, "object": "response", "created_at": created, "status": status, "model": model,
        "error": None if error is None else {"code": error.code or "server_error", "message": error.message},
        "incomplete_details": incomplete, "output": output, **asked.echoed, "usage": None,
    }  # fmt: skip
    if end is not None:
        prompt, cached, generated = counts([end])
        found["usage"] = {
            "input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": generated, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + generated,
        }  # fmt: skip
    return found


def _reasoning_item(item_id: str, text: str, status: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def _message_item(item_id: str, text: str | None, status: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if text is None else [_text_part(text)],
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(item_id: str, call: Call, status: str, arguments: str | None = None) -> dict[str, Any]:
    text = call.arguments if arguments is None else arguments
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": text,
        "status": status,
    }


def _status(end: Ended) -> str:
    return "incomplete" if end.reason == "length" else "completed"


def _output_items(end: Ended, one_call: bool, reply_id: str) -> list[dict[str, Any]]:
    calls, status = end.calls[:1] if one_call else end.calls, _status(end)
    found = [_reasoning_item(f"rs_{reply_id}", end.thinking, "completed")] if end.thinking else []
    if end.text or not calls:
        found.append(_message_item(f"msg_{reply_id}", end.text, status))
    return [*found, *(_call_item(f"fc_{reply_id}_{i}", call, "completed") for i, call in enumerate(calls))]


async def whole_response(
    events: AsyncIterator[JobEvent], asked: ResponseRequest, reply_id: str, created: int, model: str
) -> dict[str, Any]:
    """The whole response."""
    end: Ended | None = None
    async for event in events:
        end = event if isinstance(event, Ended) else end
    assert end is not None
    return _response(asked, reply_id, created, model, _status(end), _output_items(end, asked.one_call, reply_id), end)


async def response_events(
    events: AsyncGenerator[JobEvent], asked: ResponseRequest, reply_id: str, created: int, model: str, keep_alive: float
) -> AsyncGenerator[str]:
    """The stream of typed events."""
    numbers = itertools.count()

    def send(kind: str, **fields: Any) -> str:
        return data({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    def state(
        status: str, output: list[Any], end: Ended | None = None, error: ApiError | None = None
    ) -> dict[str, Any]:
        return _response(asked, reply_id, created, model, status, output, end, error)

    yield send("response.created", response=state("in_progress", []))
    yield send("response.in_progress", response=state("in_progress", []))
    writer, end = _Items(send, reply_id), None
    try:
        async for event in with_keep_alives(events, keep_alive):
            if event is None:
                yield COMMENT
            elif isinstance(event, Piece):
                for piece in writer.add(event):
                    yield piece
            elif isinstance(event, Ended):
                end = event
    except Exception as error:
        yield send("response.failed", response=state("failed", writer.done, None, of_error(error)))
        return
    assert end is not None
    for piece in writer.finish(end, asked.one_call):
        yield piece
    kind = _status(end)
    yield send(f"response.{kind}", response=state(kind, writer.done, end))


class _Items:
    """The items of a response as they grow. `done`: those that are complete."""

    def __init__(self, send: Any, reply_id: str) -> None:
        self._send, self._id = send, reply_id
        self.done: list[dict[str, Any]] = []
        self._open: str | None = None  # "reasoning" or "message"
        self._text = ""

    def add(self, piece: Piece) -> list[str]:
        kind = "reasoning" if piece.thinking else "message"
        sent = [] if self._open == kind else [*self._close("completed"), *self._begin(kind)]
        self._text += piece.text
        return [*sent, self._send(f"response.{self._part}.delta", **self._place, delta=piece.text, **self._extra)]

    def finish(self, end: Ended, one_call: bool) -> list[str]:
        calls, sent = end.calls[:1] if one_call else end.calls, list[str]()
        if self._open is None and not calls and not any(item["type"] == "message" for item in self.done):
            sent += self._begin("message")
        sent += self._close(_status(end))
        for i, call in enumerate(calls):
            at, item_id = len(self.done), f"fc_{self._id}_{i}"
            place = {"output_index": at, "item_id": item_id}
            done = _call_item(item_id, call, "completed")
            sent.append(
                self._send(
                    "response.output_item.added", output_index=at, item=_call_item(item_id, call, "in_progress", "")
                )
            )
            sent.append(self._send("response.function_call_arguments.delta", **place, delta=call.arguments))
            sent.append(
                self._send("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
            )
            sent.append(self._send("response.output_item.done", output_index=at, item=done))
            self.done.append(done)
        return sent

    @property
    def _part(self) -> str:
        return "output_text" if self._open == "message" else "reasoning_text"

    @property
    def _item_id(self) -> str:
        return f"{'msg' if self._open == 'message' else 'rs'}_{self._id}"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self.done), "content_index": 0}

    @property
    def _extra(self) -> dict[str, Any]:
        return {"logprobs": []} if self._open == "message" else {}

    def _begin(self, kind: str) -> list[str]:
        self._open, self._text = kind, ""
        is_message = kind == "message"
        item = (
            _message_item(self._item_id, None, "in_progress")
            if is_message
            else _reasoning_item(self._item_id, "", "in_progress")
        )
        sent = [self._send("response.output_item.added", output_index=len(self.done), item=item)]
        part = _text_part("") if is_message else {"type": "reasoning_text", "text": ""}
        return [*sent, self._send("response.content_part.added", **self._place, part=part)]

    def _close(self, status: str) -> list[str]:
        if self._open is None:
            return []
        is_message = self._open == "message"
        part = _text_part(self._text) if is_message else {"type": "reasoning_text", "text": self._text}
        item = (
            _message_item(self._item_id, self._text, status)
            if is_message
            else _reasoning_item(self._item_id, self._text, "completed")
        )
        sent = [
            self._send(f"response.{self._part}.done", **self._place, text=self._text, **self._extra),
            self._send("response.content_part.done", **self._place, part=part),
            self._send("response.output_item.done", output_index=len(self.done), item=item),
        ]
        self.done.append(item)
        self._open = None
        return sent
