"""Chats of LM Studio: one `<number>.conversation.json` each. Pure; any thread.

The format is undocumented. A message has `versions`, one of which is `currentlySelected`; a version is a `singleStep`
with `content`, or a `multiStep` reply with `steps`: thinking, text, tool calls and their results. Later messages follow
the selected versions, so any other version is a branch that ends there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mlxkv.store.export.foreign.chat import (
    MAX_NAME,
    ForeignChat,
    ForeignMessage,
    ForeignNode,
    files_of,
    name_of,
    table_of,
    tables_of,
    text_of,
    time_of,
)
from mlxkv.store.export.foreign.tool_turns import call

PROGRAM = "LM Studio"
_SYSTEM = "llm.prediction.systemPrompt"
_QUIET = ("debugInfoBlock", "toolStatus", "status", "citationBlock")  # steps without content


def is_chat(found: object) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("messages"), list)
        and any("versions" in message or "name" in found for message in tables_of(found["messages"]) or [{}])
        and ("createdAt" in found or "lastUsedModel" in found)
    )


def read(found: Mapping[str, Any], name: str) -> ForeignChat:
    """The chat in the file `name`, which identifies it."""
    nodes: list[ForeignNode] = []
    systems = [text_of(found.get("systemPrompt"))]
    fields = tables_of(table_of(found.get("perChatPredictionConfig")).get("fields"))
    systems += [text_of(field.get("value")) for field in fields if field.get("key") == _SYSTEM]
    last, unknown = None, 0
    for i, message in enumerate(tables_of(found["messages"])):
        versions, chosen = tables_of(message.get("versions")), message.get("currentlySelected")
        selected = chosen if isinstance(chosen, int) and 0 <= chosen < len(versions) else len(versions) - 1
        before = last
        for k, version in enumerate(versions):
            if version.get("role") == "system":
                systems.append("".join(part.text for part in _parts(version, "system") if part is not None))
                continue
            shown, num_unknown = _message(version)
            unknown += num_unknown
            nodes.append(ForeignNode(f"{i}.{k}", before, shown))
            last = nodes[-1].id if k == selected else last
    created = time_of(found.get("createdAt"), 1e-3)
    updated = max(time_of(found.get(key), 1e-3) for key in ("userLastMessagedAt", "assistantLastMessagedAt"))
    model = name_of(table_of(found.get("lastUsedModel")).get("identifier"))
    system = next((text for text in reversed(systems) if text.strip()), "")
    return ForeignChat(PROGRAM, name, text_of(found.get("name")), created, updated, model, system, nodes, last, unknown)


def _message(version: Mapping[str, Any]) -> tuple[list[ForeignMessage], int]:
    """The parts of a version of a message, and how many could not be read."""
    role = text_of(version.get("role"))
    found = [*_parts(version, role)]
    parts = [p for p in found if p is not None and (p.text.strip() or p.thinking.strip() or p.files or p.call)]
    return parts if role in ("user", "assistant") else [], found.count(None)


def _parts(version: Mapping[str, Any], role: str) -> Iterator[ForeignMessage | None]:
    """The parts of a version; None for one of an unknown kind."""

    def said(text: object, is_thought: bool) -> ForeignMessage:
        shown = text_of(text)
        return ForeignMessage(role, thinking=shown) if is_thought else ForeignMessage(role, shown)

    steps = tables_of(version.get("steps")) if version.get("type") == "multiStep" else [{**version, "type": ""}]
    for step in steps:
        if step.get("type") in _QUIET:
            continue
        is_thought = table_of(step.get("style")).get("type") == "thinking"
        content = step.get("content")
        if isinstance(content, str):
            yield said(content, is_thought)
        elif not isinstance(content, list):
            yield None
        for item in tables_of(content):
            match item.get("type"):
                case "text":
                    yield said(item.get("text"), is_thought)
                case "file":
                    kind = "image" if item.get("fileType") == "image" else "file"
                    yield ForeignMessage(role, files=(*files_of([item], "name", "fileIdentifier", kind=kind),))
                case "toolCallRequest":
                    yield call(name_of(item.get("name")), item.get("parameters"), item.get("callId"))
                case "toolCallResult":
                    result = item.get("content")
                    text = text_of(result) or json.dumps(result, ensure_ascii=False)
                    number = item.get("toolCallId")
                    call_id = "" if number is None else str(number)[:MAX_NAME]
                    yield ForeignMessage("tool", text, call_id=call_id, name=name_of(item.get("name")))
                case _:
                    yield None
