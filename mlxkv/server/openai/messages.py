"""Messages of a request: roles, content parts, tool calls and their results. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlxkv.server.errors import ApiError, invalid, shown
from mlxkv.server.jobs import Call, ChatMessage
from mlxkv.server.openai.fields import Fields
from mlxkv.text.encoding import well_formed

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")


def messages_of(table: Fields, name: str = "messages") -> tuple[ChatMessage, ...]:
    """The messages of /v1/chat/completions.

    Raises:
        ApiError: one is not a message, or cannot be honoured.
    """
    found = [_message(Fields(item, f"{name}[{i}]")) for i, item in enumerate(table.items(name))]
    if not found:
        raise invalid(
            name, f"`{name}` is missing or empty; it must be a list of messages.", "missing_required_parameter"
        )
    return checked(found, name)


def checked(messages: Sequence[ChatMessage], name: str) -> tuple[ChatMessage, ...]:
    """System prompts at the beginning as one, since chat templates know one, and nothing that no template shows.

    Raises:
        ApiError: a system prompt follows another message, or a tool's result no call of it.
    """
    first = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if first == len(messages):
        raise invalid(name, f"`{name}` has only a system prompt; end with what is to be answered.")
    if late := next((i for i in range(first, len(messages)) if messages[i].role == "system"), 0):
        raise invalid(
            f"{name}[{late}].role",
            "A system or developer message must come before all others; move it to the beginning.",
        )
    ids: set[str] = set()
    for i, message in enumerate(messages):
        ids |= {call.id for call in message.calls}
        if message.role == "tool" and message.call_id not in ids:
            raise invalid(
                f"{name}[{i}].tool_call_id",
                f"{shown(message.call_id)} is the id of no tool call before this message; send the call, too.",
            )
    system = "\n\n".join(m.text for m in messages[:first])
    return (*([ChatMessage("system", system)] if first else []), *messages[first:])


def _message(table: Fields) -> ChatMessage:
    role = table.text("role", "")
    if role not in _ROLES:
        raise table.wrong("role", role, f"one of {', '.join(_ROLES)}")
    table.labels("name", "id", "status", "annotations")  # of an author, or of a reply that comes back
    table.refuse("audio", "function_call", why="replies are text and tool calls")
    if table.any("refusal"):
        raise table.wrong("refusal", "...", "left out")
    calls = tuple(
        _call(Fields(item, f"{table.path('tool_calls')}[{i}]")) for i, item in enumerate(table.items("tool_calls"))
    )
    thinking = table.text("reasoning_content", "") or table.text("reasoning", "")
    table.labels("reasoning", "reasoning_content")
    call_id = table.text("tool_call_id", "")
    text = text_of(table, "content", may_be_missing=role == "assistant" and bool(calls or thinking))
    if calls and role != "assistant":
        raise invalid(table.path("tool_calls"), "Only an assistant's message can have tool calls.")
    table.end()
    return ChatMessage(_ROLES[role], text, well_formed(thinking), calls, call_id if role == "tool" else "")


def text_of(table: Fields, name: str, *, may_be_missing: bool = False) -> str:
    """The text of a content: a string, or a list of text parts, one after the other.

    Raises:
        ApiError: there is none, or a part is something else, such as an image.
    """
    content = table.any(name)
    if isinstance(content, str):
        return well_formed(content)
    if content is None and may_be_missing:
        return ""
    if not isinstance(content, list):
        raise table.wrong(name, content, "a string, or a list of text parts")
    texts = []
    for i, item in enumerate(content):
        part = Fields(item, f"{table.path(name)}[{i}]")
        kind = part.text("type", "")
        if kind not in _TEXT_PARTS:
            raise _refused_part(part, kind)
        part.labels("annotations", "logprobs")  # of a reply that comes back
        texts.append(well_formed(part.text("text", "")))
        part.end()
    return "".join(texts)


def _refused_part(part: Fields, kind: str) -> ApiError:
    what = (
        "an image" if "image" in kind else "audio" if "audio" in kind else "a file" if "file" in kind else shown(kind)
    )
    return invalid(
        part.path("type"), f"A content part is {what}; this server takes text parts only.", "unsupported_content"
    )


def _call(table: Fields) -> Call:
    table.only("type", ("function",), "tools are functions here")
    call_id, function = table.text("id", ""), table.table("function")
    table.labels("index")
    table.end()
    if function is None:
        raise table.wrong("function", None, "an object with `name` and `arguments`")
    call = Call(function.text("name", ""), json_text(function, "arguments"), call_id)
    function.end()
    return call


def json_text(table: Fields, name: str) -> str:
    """A field with JSON as text, as tool calls have it."""
    value = table.any(name)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    try:
        parsed: Any = json.loads(value or "{}")
    except (ValueError, TypeError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise table.wrong(name, value, "a JSON object as text")
    return value or "{}"
