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
    ForeignChat,
    ForeignFile,
    ForeignMessage,
    ForeignNode,
    called,
    files_of,
    name_of,
    returned,
    table_of,
    tables_of,
    text_of,
    time_of,
)

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
                systems.append("".join(text for _, text, _ in _parts(version) if text))
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


def _message(version: Mapping[str, Any]) -> tuple[ForeignMessage | None, int]:
    """A version of a message, and how many of its parts could not be read."""
    texts: list[str] = []
    thoughts: list[str] = []
    files: list[ForeignFile] = []
    unknown = 0
    for is_thought, text, file in _parts(version):
        if file is not None:
            files.append(file)
        elif text is None:
            unknown += 1
        elif text.strip():
            (thoughts if is_thought else texts).append(text)
    role = text_of(version.get("role"))
    if role not in ("user", "assistant") or not (texts or thoughts or files):
        return None, unknown
    return ForeignMessage(role, "\n\n".join(texts), "\n\n".join(thoughts), tuple(files)), unknown


def _parts(version: Mapping[str, Any]) -> Iterator[tuple[bool, str | None, ForeignFile | None]]:
    """The parts of a version: whether it is reasoning, and its text or file; neither if its kind is unknown."""
    steps = tables_of(version.get("steps")) if version.get("type") == "multiStep" else [{**version, "type": ""}]
    for step in steps:
        if step.get("type") in _QUIET:
            continue
        is_thought = table_of(step.get("style")).get("type") == "thinking"
        content = step.get("content")
        if isinstance(content, str):
            yield is_thought, text_of(content), None
        elif not isinstance(content, list):
            yield is_thought, None, None
        for item in tables_of(content):
            match item.get("type"):
                case "text":
                    yield is_thought, text_of(item.get("text")), None
                case "file":
                    kind = "image" if item.get("fileType") == "image" else "file"
                    yield is_thought, "", files_of([item], "name", "fileIdentifier", kind=kind)[0]
                case "toolCallRequest":
                    arguments = json.dumps(item.get("parameters") or {}, ensure_ascii=False, indent=1)
                    yield False, called(item.get("name"), arguments), None
                case "toolCallResult":
                    result = item.get("content")
                    text = text_of(result) or json.dumps(result, ensure_ascii=False)
                    yield False, returned(item.get("name"), text), None
                case _:
                    yield is_thought, None, None
