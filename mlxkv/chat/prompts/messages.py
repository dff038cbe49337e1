"""Messages as a caller writes them: roles and contents checked, and what a chat template is given of them.

Accepts OpenAI's form: tool calls with a `function`, contents of text parts. Knows no chat and no model. Pure; any
thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from mlxkv.arguments import shown
from mlxkv.chat.prompts.prompt import Message, PromptFormat, message
from mlxkv.chat.tools import default_id
from mlxkv.errors import ModelError, PromptError
from mlxkv.events import Message as ShownMessage
from mlxkv.events import ToolCall
from mlxkv.store.records import TurnRecord
from mlxkv.text.encoding import well_formed

ROLES = ("system", "user", "assistant", "tool")
_SAME = {"developer": "system"}  # OpenAI's newer name
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING = ("reasoning_content", "thinking", "reasoning")
_KNOWN = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls", *_THINKING},
    "tool": {"role", "content", "tool_call_id", "name"},
}

# -- in --------------------------------------------------------------------------------------------------------------


def checked(messages: Any) -> tuple[str | None, tuple[TurnRecord, ...]]:
    """The system prompt, None if there is none, and the other messages, without token ids.

    Args:
        messages: mappings with a `role` and a `content`, as OpenAI's clients send them, or `Chat.messages`.

    Raises:
        PromptError: names the message, by its number from 0 on, and what is wrong with it.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"`messages` is {shown(messages)}; it must be a list of messages, each with a `role`.")
    system, turns = None, list[TurnRecord]()
    for i, item in enumerate(messages):
        table = _table(item)
        given = table.get("role")
        role = _SAME.get(given, given) if isinstance(given, str) else None
        if role not in ROLES:
            raise PromptError(
                f"Message {i} is {shown(item)}; it must have a `role`, which is {', '.join(ROLES[:-1])} or "
                f"{ROLES[-1]}, and a `content`, which is text."
            )
        if unknown := [key for key, value in table.items() if value and key not in _KNOWN[role]]:
            raise PromptError(f"Message {i}, of the role {role}, has {shown(unknown[0])}, which it cannot have.")
        calls = tuple(_calls(i, table.get("tool_calls") or (), sum(len(turn.tool_calls) for turn in turns)))
        text = "" if calls and table.get("content") is None else _text(i, table.get("content"))
        if role == "system":
            if i:
                raise PromptError(f"Message {i} is a system prompt; only the first message may be one.")
            system = text
            continue
        thinking = next((t for key in _THINKING if isinstance(t := table.get(key), str)), "")
        turn = TurnRecord(role, text, thinking=well_formed(thinking), tool_calls=calls)
        if role == "tool":
            turn = replace(turn, tool_call_id=_answered(f"Message {i}", turns, table.get("tool_call_id")))
        turns.append(turn)
    return system, tuple(turns)


def added(role: str, text: str, tool_call_id: str | None, before: Sequence[TurnRecord]) -> TurnRecord:
    """A message after those `before` it.

    Raises:
        PromptError: there is no such role, the text of a message is empty, or there is no call for a result.
    """
    if role not in ROLES[1:]:
        advice = "set `chat.system`" if role in ("system", *_SAME) else f"it must be one of {', '.join(ROLES[1:])}"
        raise PromptError(f"`role` is {shown(role)}; {advice}.")
    if role != "tool" and (tool_call_id is not None or not text.strip()):
        why = "is empty" if not text.strip() else "is no result of a tool, so it has no `tool_call_id`"
        raise PromptError(f"The message of the role {role} {why}.")
    if role != "tool":
        return TurnRecord(role, well_formed(text))
    return TurnRecord(role, well_formed(text), tool_call_id=_answered("The result", before, tool_call_id))


def pending_calls(turns: Sequence[TurnRecord]) -> tuple[ToolCall, ...]:
    """The calls of the last reply that have no result yet."""
    results = list(takewhile(lambda turn: turn.role == "tool", reversed(turns)))
    calls = turns[-1 - len(results)].tool_calls if len(results) < len(turns) else ()
    answered = {turn.tool_call_id for turn in results}
    return tuple(call for call in calls if call.id not in answered)


def _answered(what: str, before: Sequence[TurnRecord], given: Any) -> str:
    """The id of the call that a result answers; without one `given`, the first that has no result."""
    pending = [call.id for call in pending_calls(before)]
    if given in (None, ""):
        given = pending[0] if pending else None
    if given not in pending:
        rule = f"waiting are {', '.join(map(shown, pending))}" if pending else "no call waits for one"
        raise PromptError(f"{what} answers the tool call {shown(given)}, and {rule}.")
    return given


def _table(item: Any) -> Mapping[str, Any]:
    if isinstance(item, ShownMessage):
        more = {"thinking": item.thinking, "tool_calls": item.tool_calls, "tool_call_id": item.tool_call_id}
        return {"role": item.role, "content": item.text, **{key: value for key, value in more.items() if value}}
    return item if isinstance(item, Mapping) else {}


def _text(i: int, content: Any) -> str:
    """Text, or the text of a list of parts."""
    if isinstance(content, str):
        return well_formed(content)
    texts = []
    for part in content if isinstance(content, list | tuple) and content else [content]:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            what = f"a part of the type {shown(kind)}" if kind else shown(content)
            raise PromptError(f"Message {i} has the `content` {what}; it must be text.")
        texts.append(well_formed(text))
    return "\n".join(texts)


def _calls(i: int, given: Any, num_before: int) -> Iterator[ToolCall]:
    """The tool calls of message `i`."""
    for n, call in enumerate(given if isinstance(given, list | tuple) else [given], num_before + 1):
        table = call if isinstance(call, Mapping) else {}
        table = {"id": call.id, "name": call.name, "arguments": call.arguments} if isinstance(call, ToolCall) else table
        inner = table.get("function", table)
        name, arguments = (
            (inner.get("name"), inner.get("arguments", "{}")) if isinstance(inner, Mapping) else (None, "")
        )
        if isinstance(arguments, Mapping):
            arguments = json.dumps(dict(arguments), ensure_ascii=False, default=str)
        if not (isinstance(name, str) and name and isinstance(arguments, str)):
            raise PromptError(
                f"Message {i} has the tool call {shown(call)}; it must have a `function` with a `name` and `arguments`."
            )
        given_id = table.get("id")
        yield ToolCall(
            name, well_formed(arguments), given_id if isinstance(given_id, str) and given_id else default_id(n)
        )


# -- out -------------------------------------------------------------------------------------------------------------


def template_messages(system: str | None, turns: Sequence[TurnRecord], *, joined: bool = False) -> list[Message]:
    """What a chat template takes.

    Args:
        joined: for templates that insist on alternating roles: replies without text or calls (stopped before it, or
            while thinking) are left out, and messages of one role in a row are joined.
    """
    out = [message("system", system)] if system else []
    names: dict[str, str] = {}
    for turn in turns:
        new = message(turn.role, turn.text, turn.thinking)
        if turn.role == "tool":
            new |= {"tool_call_id": turn.tool_call_id, "name": names.get(turn.tool_call_id, "")}
        elif turn.tool_calls:
            names |= {call.id: call.name for call in turn.tool_calls}
            new["tool_calls"] = [_call_for_template(call) for call in turn.tool_calls]
        if joined and turn.role == "assistant" and not (turn.text or turn.tool_calls):
            continue
        if joined and out and out[-1]["role"] == turn.role != "tool" and "tool_calls" not in {**out[-1], **new}:
            out[-1] = new | {"content": f"{out[-1]['content']}\n\n{turn.text}"}
        else:
            out.append(new)
    return out


def without_tools(turns: Sequence[TurnRecord]) -> list[TurnRecord]:
    """The messages for a model that knows no tools: calls are text of the reply, results messages of the user."""
    out = []
    for turn in turns:
        if turn.role == "tool":
            turn = replace(turn, role="user", text=f"Result of the tool: {turn.text}")
        elif turn.tool_calls:
            lines = [*([turn.text] if turn.text else []), *(f"{c.name}({c.arguments})" for c in turn.tool_calls)]
            turn = replace(turn, text="\n".join(lines), tool_calls=())
        out.append(turn)
    return out


def name_refused(prompts: PromptFormat, messages: Sequence[Message], error: ModelError) -> ModelError:
    """The template's `error`, beginning with the message that it refuses: the one after the longest list it takes."""
    for num in reversed(range(1, len(messages))):
        try:
            prompts.render(messages[:num])
        except ModelError:
            continue
        return type(error)(f"Message {num}, of the role {messages[num]['role']}, does not fit there: {error}")
    return error


def _call_for_template(call: ToolCall) -> dict[str, Any]:
    """Templates print the arguments as JSON, so they take an object; text that is none stays text."""
    try:
        arguments: Any = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    if not isinstance(arguments, dict):
        arguments = call.arguments
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}}
