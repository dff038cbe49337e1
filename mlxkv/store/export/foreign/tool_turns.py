"""Tool calls of foreign chats: which part of which message is a call, and which its result. Pure; any thread.

A reply that calls tools is followed by a message of the role `tool` for each result, as in chats that began here. Calls
without a result, and results without a call, cannot be told to a model: they become text of the reply.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mlxkv.events import ToolCall
from mlxkv.store.export.foreign.chat import ForeignMessage, called, returned


def grouped(places: Iterable[Sequence[ForeignMessage]]) -> list[list[ForeignMessage]]:
    """The parts of each message: replies with the calls that have results, and a message for each result.

    `places`: the parts at each place of the chat; the user's are one message at each place. Ids of calls count from 1
    on, as those of chats that began here; a result has that of its call.
    """
    groups: list[list[ForeignMessage]] = []
    open_calls: list[ForeignMessage] = []
    answers: dict[int, str] = {}  # the id of each call that has a result
    before = -1
    for place, part in ((i, part) for i, parts in enumerate(places) for part in parts):
        last = groups[-1][0].role if groups else ""
        if part.role == "tool":
            if (match := _call_of(part, open_calls)) is not None:
                open_calls = [call for call in open_calls if call is not match]
                answers[id(match)] = f"call{len(answers) + 1:05d}"
                groups.append([replace(part, call_id=answers[id(match)])])
                continue
            part = as_text(part)
        if part.role == last and (last == "assistant" or place == before):
            groups[-1].append(part)
        else:
            open_calls = []  # a result comes before any other message
            groups.append([part])
        if part.call is not None:
            open_calls.append(part)
        before = place
    return [[_told(part, answers.get(id(part))) for part in group] for group in groups]


def _call_of(result: ForeignMessage, calls: Sequence[ForeignMessage]) -> ForeignMessage | None:
    """The call that a result answers: by its id, else by the tool's name, else the first."""
    named = [c for c in calls if c.call is not None and c.call.id == result.call_id != ""]
    named = named or [c for c in calls if not result.call_id or not (c.call and c.call.id)]
    same = [c for c in named if c.call is not None and c.call.name == result.name]
    return next(iter(same or named), None)


def _told(part: ForeignMessage, call_id: str | None) -> ForeignMessage:
    if part.call is None:
        return part
    return as_text(part) if call_id is None else replace(part, call=replace(part.call, id=call_id))


def as_text(part: ForeignMessage) -> ForeignMessage:
    """A call or a result as text of a reply."""
    if part.call is not None:
        return replace(part, call=None, text=called(part.call.name, part.source or part.call.arguments, part.language))
    return replace(part, role="assistant", call_id="", text=returned(part.name, part.text))


def call(name: str, arguments: object, call_id: object = "", language: str = "json") -> ForeignMessage:
    """A part of a reply that calls a tool. Code becomes the argument `code`, since templates want an object."""
    given = "" if call_id is None else str(call_id)
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            found = None
        table = found if isinstance(found, dict) else {"code": arguments}
        text = json.dumps(table, ensure_ascii=False)
        return ForeignMessage("assistant", call=ToolCall(name, text, given), source=arguments, language=language)
    source = json.dumps(arguments or {}, ensure_ascii=False, indent=1)
    text = json.dumps(arguments or {}, ensure_ascii=False)
    return ForeignMessage("assistant", call=ToolCall(name, text, given), source=source)
